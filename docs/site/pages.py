"""The pages of the site that are not written in docs/: each is made from the file that it shows.

A page is a name in the site and its Markdown; an image or another file is a name and its bytes. Links in a page are
written for the file it comes from, so that they work on a forge too; `relinked` writes them anew for the site.
"""

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
WHOLE = {  # files of the project that are pages as they stand
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "chapters/README.md": "chapters/index.md",
    "examples/README.md": "examples/index.md",
    "tests/README.md": "tests.md",
}
ROOMS = ["backend", "model", "sampling", "checkpoints", "inference", "explain", "edit", "world", "train", "commands"]
FRONT = ["minflux.inference.load.load"]
STEPS = ["__call__", "explain", "encode", "sample", "decode", "encode_image", "velocity"]
PLAIN = {"show_root_heading": "false", "show_root_toc_entry": "false"}  # the page has a heading of its own
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
DOCTEST = re.compile(r"(?m)^( *)>>> .*(?:\n.+)*")  # to the next empty line
CODE = re.compile(r"(`[^`]+`|(?m:^ {4}.*$))")  # spans and indented lines
ARGUMENT = re.compile(r"(?m)^([a-z_]+(?:, [a-z_]+)*):(?= )")
FORMULA = re.compile(r"```.*?```|`[^`]+`|\$\$(?P<alone>.+?)\$\$|\$(?P<inline>[^$\s][^$\n]*)\$", re.DOTALL)
FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)


# -- files and pages -----------------------------------------------------------------------------------------------


def origins() -> dict[str, str]:
    """Return the page of every file that has one: path in the project -> name in the site.

    >>> origins()["README.md"], origins()["docs/log.md"]
    ('index.md', 'log.md')
    """
    found = {path: name for path, name in WHOLE.items() if (ROOT / path).exists()}
    found |= {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    found |= {path: path.replace(".ipynb", ".md") for path in notebooks()}
    return found | {"LICENSE": "licence.md"}


def notebooks() -> list[str]:
    """List the chapters, then their solutions."""
    paths = [*sorted(ROOT.glob("chapters/[0-9A]*.ipynb")), *sorted(ROOT.glob("chapters/solutions/[0-9A]*.ipynb"))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def pages() -> dict[str, str]:
    """Return every page that is made here: name in the site -> Markdown."""
    made = {name: (ROOT / path).read_text() for path, name in WHOLE.items() if (ROOT / path).exists()}
    made["licence.md"] = f"# Licence\n\n```text\n{(ROOT / 'LICENSE').read_text()}\n```\n"
    if "examples/index.md" in made:
        made["examples/index.md"] += examples()
    for path in notebooks():
        made[origins()[path]] = notebook_page(path)
    return made | api_pages()


def files() -> dict[str, bytes]:
    """Return every other file that pages show or link to: name in the site -> bytes."""
    found = {}
    for path in notebooks():
        found |= dict(notebook_images(path))
    for path in origins():
        if not path.endswith(".ipynb"):
            found |= linked_files(path)
    return found


def linked_files(path: str) -> dict[str, bytes]:
    """Return the files that a page links to and that are no pages themselves, under their path in the project."""
    texts = [part for part in FENCE.split((ROOT / path).read_text()) if not part.startswith("```")]
    links = {target for text in texts for _, target, _ in LINK.findall(text)}
    targets = {resolved(path, link) for link in links} - origins().keys()
    return {
        target: (ROOT / target).read_bytes()
        for target in targets
        if (ROOT / target).is_file() and not target.startswith("docs/") and not is_example(target)
    }


def is_example(target: str) -> bool:
    """Return whether a file is a script of examples/, which are all on one page."""
    return target.startswith("examples/") and target.endswith(".py")


# -- links ---------------------------------------------------------------------------------------------------------


def resolved(path: str, link: str) -> str:
    """Return the path in the project that a link of the file `path` leads to; a folder's is its README's.

    >>> resolved("docs/log.md", "../README.md"), resolved("README.md", "chapters/")
    ('README.md', 'chapters/README.md')
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    readme = f"{target}/README.md"
    return readme if readme in WHOLE else target


def relinked(text: str, name: str) -> str:
    """Write the links of a page of the site anew: they were written for the file that it is made from."""
    sources = {page: path for path, page in origins().items()}
    if name not in sources:
        return text
    parts = [
        part if part.startswith("```") else LINK.sub(lambda m: _moved(m, sources[name], name), part)
        for part in FENCE.split(text)
    ]
    return "".join(parts)


def _moved(match: re.Match, path: str, name: str) -> str:
    before, link, after = match.groups()
    if ":" in link:
        return match[0]
    target = resolved(path, link)
    if is_example(target):  # its place on the page of all of them
        target, after = "examples/README.md", f"#{posixpath.basename(target).replace('.', '')}{after}"
    there = origins().get(target, target.removeprefix("docs/"))
    return before + posixpath.relpath(there, posixpath.dirname(name) or ".") + after


# -- chapters ------------------------------------------------------------------------------------------------------


def notebook_page(path: str) -> str:
    """Write a notebook as Markdown: text, code, and what each cell printed and drew when it was committed."""
    parts, images, heading = [], iter(notebook_images(path)), title(path)
    for cell in cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next(reversed(re.findall(r"^#+ (.*)", source, re.MULTILINE)), heading)
            parts.append(with_formulas(spaced_lists(source)))
        elif source.strip():
            parts.append(fenced(source, ".python"))
            parts += [shown(output, images, path, heading) for output in cell["outputs"]]
    return "\n\n".join([*parts, "---", source_note(path)]) + "\n"


def with_formulas(text: str) -> str:
    """Write LaTeX between dollars as MathML, which a browser draws by itself; code stays as it is.

    >>> print(with_formulas("`$x$` is $x$")[:24])
    `$x$` is <math xmlns="ht
    """
    return FORMULA.sub(_drawn, text)


def _drawn(match: re.Match) -> str:
    alone, inline = match["alone"], match["inline"]
    if alone is None and inline is None:
        return match[0]
    return convert(alone or inline, display="block" if alone else "inline")


def source_note(path: str) -> str:
    """Say which notebook a page is, and link a chapter to its solutions."""
    folder, _, file = path.rpartition("/")
    note = f"This page is the notebook `{path}` with the outputs that it was committed with."
    if folder == "chapters" and (ROOT / "chapters" / "solutions" / file).exists():
        return f"{note} [Its exercises, solved](solutions/{file})."
    return f"{note} [Back to the chapter](../{file})." if folder == "chapters/solutions" else note


def shown(output: dict, images: Iterator[tuple[str, bytes]], path: str, heading: str) -> str:
    """Write what a cell printed, or the image that it drew, whose alternative text is the heading above it."""
    if "image/png" in output.get("data", {}):
        name, _ = next(images)
        return f"![Figure: {heading}]({posixpath.relpath(name, posixpath.dirname(path))}){{ .figure }}"
    text = output.get("text") or output["data"]["text/plain"]
    return fenced("".join(text), ".text .output")


def notebook_images(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield the PNGs of a notebook, each with its name in the site."""
    count = 0
    for cell in cells(path):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                count += 1
                png = "".join(output["data"]["image/png"])
                yield f"{path.removesuffix('.ipynb')}-{count}.png", base64.b64decode(png)


def cells(path: str) -> list[dict]:
    """Read a notebook's cells."""
    return json.loads((ROOT / path).read_text())["cells"]


def fenced(text: str, classes: str) -> str:
    """Put text between fences longer than any in it.

    >>> print(fenced("x = 1", ".python"))
    ``` { .python }
    x = 1
    ```
    """
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("```+", text))])
    return f"{fence} {{ {classes} }}\n{text.rstrip()}\n{fence}"


def spaced_lists(text: str) -> str:
    """Put an empty line before each list: Jupyter needs none, Python-Markdown does.

    >>> spaced_lists("Two things:\\n- one\\n- two")
    'Two things:\\n\\n- one\\n- two'
    """
    return re.sub(r"(?m)^(?![-*] |\d+\. |\s|$)(.*)\n(?=(?:[-*]|\d+\.) )", r"\1\n\n", text)


def title(path: str) -> str:
    """Return a notebook's heading."""
    return "".join(cells(path)[0]["source"]).partition("\n")[0].removeprefix("# ")


# -- examples ------------------------------------------------------------------------------------------------------


def examples() -> str:
    """Write every script of examples/ under its name, in the order of the table in its README."""
    names = re.findall(r"^\| \[(\w+)\.py\]", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)
    return "".join(f"\n## {name}.py\n\n{example(name)}\n" for name in names)


def example(name: str) -> str:
    """Write a script: its docstring as prose, then its code."""
    _, docstring, code = (ROOT / "examples" / f"{name}.py").read_text().split('"""', 2)
    return f"{docstring.strip()}\n\n{fenced(code.strip(), '.python')}"


# -- API -----------------------------------------------------------------------------------------------------------


def rooms() -> list[str]:
    """List the rooms, which are the packages inside minflux that have modules, in the order in which they build up."""
    found = [path.parent.name for path in (ROOT / "minflux").glob("*/__init__.py") if path.parent.name != "zoo"]
    return sorted(found, key=lambda name: (ROOMS.index(name) if name in ROOMS else len(ROOMS), name))


def modules(room: str) -> list[str]:
    """List a room's modules: as its docstring names them, then by name."""
    folder = ROOT / "minflux" / room
    names = [path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted(folder.rglob("*.py"))]
    names = [name.removesuffix("/__init__").replace("/", ".") for name in names if "/sprites/" not in name]
    text = (folder / "__init__.py").read_text()
    mentioned = re.findall(r"`(\w+)`", text)
    order = {word: place for place, word in reversed(list(enumerate(mentioned)))}
    inner = [name for name in names if name != f"minflux.{room}"]
    return sorted(inner, key=lambda name: (order.get(name.split(".")[2], len(order)), name))


def api_pages() -> dict[str, str]:
    """Write a page of API for the package's front door and for each room."""
    made = {"api/index.md": front_page()}
    for room in rooms():
        parts = [f"# minflux.{room}", directive(f"minflux.{room}", **PLAIN)]
        parts += [directive(module, heading_level="2", show_root_full_path="true") for module in modules(room)]
        made[f"api/{room}.md"] = "\n\n".join(parts) + "\n"
    return made


def front_page() -> str:
    """Write the page of what one begins with, `load` and a pipeline, and of the modules beside the rooms."""
    listed = "\n".join(f"- [`minflux.{room}`]({room}.md): {first_sentence(room)}" for room in rooms())
    once = {"heading_level": "3", "skip_local_inventory": "true"}  # links lead to their own room's page
    parts = ["# API", directive("minflux", members="false", **PLAIN), "## What one begins with"]
    parts += [directive(name, **once) for name in FRONT]
    parts += [directive("minflux.inference.pipeline.Pipeline", members=f"[{', '.join(STEPS)}]", **once)]
    parts += [f"## The rooms\n\n{listed}"]
    singles = sorted(path.stem for path in (ROOT / "minflux").glob("*.py") if not path.stem.startswith("_"))
    parts += [directive(f"minflux.{name}", heading_level="2", show_root_full_path="true") for name in singles]
    return "\n\n".join(parts) + "\n"


def first_sentence(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    text = (ROOT / "minflux" / room / "__init__.py").read_text()
    found = re.match(r'\s*"""(.*?\.)(?:\s|""")', text, re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def directive(name: str, **options: str) -> str:
    """Write what mkdocstrings puts a module's documentation in the place of.

    >>> print(directive("minflux.errors", heading_level="2"))
    ::: minflux.errors
        options:
          heading_level: 2
    """
    lines = [f"::: {name}", "    options:", *(f"      {key}: {value}" for key, value in options.items())]
    return "\n".join(lines)


def docstring(text: str) -> str:
    r"""Write a docstring as Markdown: doctests between fences, lines that each begin with a name as a list.

    >>> docstring("Two:\n\n`a`   one\n`b`   two\n\n>>> 1 + 1\n2")
    'Two:\n\n- `a`   one\n- `b`   two\n\n```pycon\n>>> 1 + 1\n2\n```'
    """
    text = DOCTEST.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
    return "\n\n".join(literal(listed(paragraph)) for paragraph in text.split("\n\n"))


def listed(paragraph: str) -> str:
    """Make a list of a paragraph of several lines that begin with a name in `code`, or with "name: " as arguments do.

    >>> print(listed("seed: a number,\\nor one each\\nsteps: how many"))
    - `seed`: a number,
      or one each
    - `steps`: how many
    """
    lines = paragraph.split("\n")
    if len(lines) > 1 and all(re.match("`[^`]", line) for line in lines):
        return "\n".join(f"- {line}" for line in lines)
    if len(ARGUMENT.findall(paragraph)) > 1 and ARGUMENT.match(paragraph):
        return ARGUMENT.sub(r"- `\1`:", "\n".join(line if ARGUMENT.match(line) else f"  {line}" for line in lines))
    return paragraph


def literal(text: str) -> str:
    r"""Escape what is an index after an index to a reader, and a reference to Markdown.

    >>> print(literal('p["a"][3] is `p["a"][3]`'))
    p["a"]\[3] is `p["a"][3]`
    """
    return "".join(part if part[:1] in ("`", " ") else part.replace("][", r"]\[") for part in CODE.split(text))
