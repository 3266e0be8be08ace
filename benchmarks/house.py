"""Count the house: arrows up, circles, returns while loading, operations a line, lengths of functions, and words.

    python -m benchmarks.house [FOLDER] [--list]        FOLDER: a checkout, this one unless given

- An arrow is a file that imports a file of another room, inside functions too. It runs up when the imported room
  stands later in `ROOMS`. Imports for type checkers alone don't count.
- A circle is a set of files each of which imports, by way of others, all the others.
- A return is counted while `minflux.load("tiny")` runs: see `benchmarks/house_loading.py`.
- Operations a line are calls, subscripts, arithmetic, comparisons, conditionals and comprehensions to a code line of
  function body. A code line is neither blank nor comment nor docstring. Constructors are left out.
"""

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (  # from the cellar to the roof: what stands earlier is used by what stands later
    ("errors", "arrays", "images", "version", "zoo"),
    ("backend",),
    ("model",),
    ("sampling",),
    ("edit",),
    ("checkpoints",),
    ("explain",),
    ("inference",),
    ("world",),
    ("train",),
    ("commands",),
    ("__init__", "__main__"),
)
TRANSFORMER = (
    "flux",
    "blocks",
    "attention",
    "modulation",
    "rope",
    "embeddings",
    "latents",
    "layers",
    "linear",
    "hooks",
)
OTHERS = ("minflux", "chapters", "examples", "tests", "tools")  # folders that have no business with benchmarks/
TARGETS: dict[str, float] = {
    "arrows up": 0,
    "files in no room": 0,
    "circles in minflux": 0,
    "circles in benchmarks and tools": 0,
    "imports of benchmarks from outside": 0,
    "operations a line, transformer": 2.0,
    "files at the top": 6,
}
AIMS: dict[str, float] = {"returns while loading": 15}  # not reached: the files became smaller, and so more
OPERATIONS = (
    ast.Call, ast.Subscript, ast.BinOp, ast.Compare, ast.IfExp, ast.BoolOp,
    ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp,
)  # fmt: skip
NO_VERB = re.compile(
    r"(The|A|An|It|Its|They|This|These|That|What|Which|Whether|How|As|So|Also|Likewise|Same|Tell|Give)\b"
)


# -- files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """One Python file of a package: its path within the package's parent, and its text."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Parse the file."""
        return ast.parse(self.text)

    @cached_property
    def code_lines(self) -> set[int]:
        """Return the numbers of the lines that hold code: no blanks, no comments."""
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                lines.update(range(token.start[0], token.end[0] + 1))
        return lines

    @property
    def module(self) -> str:
        """Return the module's name, that of its folder for an `__init__.py`."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def functions(self) -> Iterator[ast.FunctionDef]:
        """Yield every function, methods and inner ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef))


def sources(folder: Path, package: str) -> dict[str, Source]:
    """Read all files of a package: module -> source."""
    paths = sorted((folder / package).rglob("*.py"))
    read = [Source(path.relative_to(folder), path.read_text()) for path in paths]
    return {source.module: source for source in read}


# -- arrows and circles ----------------------------------------------------------------------------------------


def imports(source: Source, known: Mapping[str, Source]) -> set[str]:
    """Return the modules among `known` that a file imports when it runs, inside functions too."""
    found: set[str] = set()
    for node in running(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else str(node.module) for name in names}
    return (found & set(known)) - {source.module}


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, but for what stands under `if TYPE_CHECKING`."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from running(child)


def graph(files: Mapping[str, Source]) -> dict[str, set[str]]:
    """Return which modules each module imports."""
    return {name: imports(source, files) for name, source in files.items()}


def room(module: str) -> str:
    """Return the room of a module: the folder or file at the top of the package.

    >>> room("minflux.model.flux"), room("minflux")
    ('model', '__init__')
    """
    return [*module.split("."), "__init__"][1]


def floor(module: str) -> int | None:
    """Return how high a module's room lies, or None where `ROOMS` doesn't name it."""
    heights = [height for height, rooms in enumerate(ROOMS) if room(module) in rooms]
    return heights[0] if heights else None


def arrows(imported: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the pairs (module, what it imports) whose rooms differ; the files of the cellar are one room."""
    pairs = [(module, other) for module, others in imported.items() for other in sorted(others)]
    return [
        (module, other) for module, other in pairs if room(module) != room(other) and not both_in_cellar(module, other)
    ]


def both_in_cellar(module: str, other: str) -> bool:
    """Return whether both modules are of those that all rooms stand on."""
    return floor(module) == floor(other) == 0


def arrows_up(imported: Mapping[str, set[str]]) -> list[str]:
    """Return the arrows that run up, or between two rooms of one floor, as text."""
    known = [(m, o, floor(m), floor(o)) for m, o in arrows(imported)]
    return [f"{m} -> {o}" for m, o, low, high in known if low is not None and high is not None and high >= low]


def roomless(files: Mapping[str, Source]) -> list[str]:
    """Return the modules that stand in no room of `ROOMS`."""
    return [module for module in files if floor(module) is None]


def circles(imported: Mapping[str, set[str]]) -> list[str]:
    """Return every circle as its modules' names."""
    reached = {module: reachable(module, imported) for module in imported}
    found = {frozenset(o for o in reached[m] if m in reached[o]) for m in imported if m in reached[m]}
    return sorted(" ".join(sorted(circle)) for circle in found)


def reachable(module: str, imported: Mapping[str, set[str]]) -> set[str]:
    """Return all modules that a module imports by way of others."""
    seen: set[str] = set()
    todo = list(imported[module])
    while todo:
        other = todo.pop()
        if other not in seen:
            seen.add(other)
            todo.extend(imported[other])
    return seen


def importers_of_benchmarks(folder: Path) -> list[str]:
    """Return the files that import a benchmark and neither are one nor test one."""
    text = {path: path.read_text() for top in OTHERS for path in sorted((folder / top).rglob("*.py"))}
    found = [
        path.relative_to(folder) for path, code in text.items() if re.search(r"^(from|import) benchmarks\b", code, re.M)
    ]
    return [str(path) for path in found if not path.is_relative_to("tests/benchmarks")]


# -- functions -------------------------------------------------------------------------------------------------


def body(function: ast.FunctionDef) -> list[ast.stmt]:
    """Return a function's statements without its docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def density(files: list[Source]) -> tuple[int, int]:
    """Count the operations in function bodies, and the code lines of those bodies."""
    operations, lines = 0, 0
    for source in files:
        held: set[int] = set()
        for function in outer_functions(source.tree):
            for statement in body(function):
                operations += sum(isinstance(node, OPERATIONS) for node in ast.walk(statement))
                held |= source.code_lines.intersection(range(statement.lineno, (statement.end_lineno or 0) + 1))
        lines += len(held)
    return operations, lines


def outer_functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield the functions that are in no other, constructors left out."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef):
            yield from outer_functions(child)
        elif child.name != "__init__":
            yield child


def lengths(files: Mapping[str, Source]) -> list[tuple[int, str]]:
    """Return the code lines of every function, its `def` among them and its docstring not, with its name."""
    found = []
    for module, source in files.items():
        for function in source.functions:
            held = source.code_lines.intersection(range(function.lineno, (function.end_lineno or 0) + 1))
            if ast.get_docstring(function) is not None:
                docstring = function.body[0]
                held -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
            found.append((len(held), f"{module}.{function.name}"))
    return sorted(found, reverse=True)


# -- words -----------------------------------------------------------------------------------------------------


def leaning_docstrings(files: Mapping[str, Source]) -> list[str]:
    """Return the functions whose docstring's first sentence begins without a verb, or is a single word."""
    found = []
    for module, source in files.items():
        for function in source.functions:
            sentence = re.split(r"[.:](\s|$)", ast.get_docstring(function) or "Do nothing yet")[0]
            noun_allowed = any("property" in ast.unparse(decorator) for decorator in function.decorator_list)
            if (NO_VERB.match(sentence) and not noun_allowed) or len(sentence.split()) < 2:
                found.append(f"{module}.{function.name}: {sentence}")
    return found


def shared_names(files: Mapping[str, Source]) -> list[str]:
    """Return the functions and classes that two modules define, with the modules."""
    homes: dict[str, set[str]] = defaultdict(set)
    for module, source in files.items():
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes[node.name].add(module)
    return [f"{name}: {', '.join(sorted(modules))}" for name, modules in sorted(homes.items()) if len(modules) > 1]


# -- loading ---------------------------------------------------------------------------------------------------


def loading_path(folder: Path) -> list[str]:
    """Return the files that loading goes through, in order, as `benchmarks/house_loading.py` notes them."""
    worker = Path(__file__).with_name("house_loading.py")
    env = os.environ | {"PYTHONPATH": str(folder.resolve())}
    command = [sys.executable, "-P", str(worker), str(folder.resolve())]
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


# -- the whole -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """All that was counted: a figure for each name in `TARGETS`, `AIMS` and others, and the places behind it."""

    figures: dict[str, float]
    places: dict[str, list[str]]


def count(folder: Path) -> House:
    """Count the checkout in `folder`."""
    files = sources(folder, "minflux")
    path = loading_path(folder)
    places = {
        "arrows up": arrows_up(graph(files)),
        "files in no room": roomless(files),
        "circles in minflux": circles(graph(files)),
        "circles in benchmarks and tools": circles(graph(sources(folder, "benchmarks") | sources(folder, "tools"))),
        "imports of benchmarks from outside": importers_of_benchmarks(folder),
        "returns while loading": [file for i, file in enumerate(path) if file in path[:i]],
        "files at the top": sorted(file.name for file in (folder / "minflux").glob("*.py")),
        "docstrings that lean on others": leaning_docstrings(files),
        "names that two modules define": shared_names(files),
    }
    figures: dict[str, float] = {name: len(found) for name, found in places.items()}
    figures |= {"stays while loading": len(path), "files while loading": len(set(path))}
    figures |= {"arrows between rooms": len(arrows(graph(files)))}
    figures |= densities(files)
    return House(figures | length_figures(files), places)


def densities(files: Mapping[str, Source]) -> dict[str, float]:
    """Return the operations a line of the transformer, and of each other part that people come to read."""
    groups = {
        "transformer": [s for m, s in files.items() if re.match(rf"minflux\.model\.({'|'.join(TRANSFORMER)})\b", m)],
        "T5 and CLIP": [s for m, s in files.items() if re.match(r"minflux\.model\.(t5|clip)$", m)],
        "sampling": [s for m, s in files.items() if m.startswith("minflux.sampling")],
        "model": [s for m, s in files.items() if m.startswith("minflux.model")],
        "minflux": list(files.values()),
    }
    groups |= {str(s.path.relative_to("minflux")): [s] for s in groups["model"]}
    counted = {name: density(group) for name, group in groups.items()}
    return {f"operations a line, {name}": round(ops / lines, 2) for name, (ops, lines) in counted.items() if lines}


def length_figures(files: Mapping[str, Source]) -> dict[str, float]:
    """Return a function's median, 90% and longest length."""
    found = [length for length, _ in lengths(files)]
    ninth = sorted(found)[int(0.9 * len(found))]
    return {"function median": statistics.median(found), "function p90": ninth, "function longest": max(found)}


def main() -> None:
    """Print every figure, with its target where there is one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--list", action="store_true", help="name every place that is counted")
    args = parser.parse_args()
    house = count(args.folder)
    for name, figure in house.figures.items():
        print(f"{figure:>8g}  {name}{verdict(name, figure)}")
        for place in house.places.get(name, []) if args.list or name.startswith(("arrows up", "circles")) else []:
            print(f"            {place}")
    if args.list:
        print(
            "longest functions:",
            *(f"{n:>4} {name}" for n, name in lengths(sources(args.folder, "minflux"))[:12]),
            sep="\n",
        )


def verdict(name: str, figure: float) -> str:
    """Say whether a figure is within its target."""
    target = (TARGETS | AIMS).get(name)
    if target is None:
        return ""
    return f" (target {target:g}: {'met' if figure <= target else 'NOT MET'})"


if __name__ == "__main__":
    main()
