"""The pages that the site adds to docs/ hold what they are made from: chapters whole, links right, no room left out.

That the whole site builds without a warning is what `make docs` shows.
"""

import base64
import doctest
import importlib.util
import json
import posixpath
import re

import pytest

from tests.project.test_docs import ROOT

SPEC = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)

each_notebook = pytest.mark.parametrize("path", pages.notebooks())


def relinked(name: str) -> str:
    made = pages.pages()
    sources = {page: path for path, page in pages.origins().items()}
    return pages.relinked(made[name] if name in made else (ROOT / sources[name]).read_text(), name)


def test_examples():
    result = doctest.testmod(pages)
    assert result.attempted > 0
    assert result.failed == 0


@each_notebook
def test_a_chapter_s_page_has_every_cell_and_figure(path):
    page, images = pages.notebook_page(path), dict(pages.notebook_images(path))
    cells = json.loads((ROOT / path).read_text())["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        written = pages.with_formulas(source) if cell["cell_type"] == "markdown" else source
        assert written.rstrip().splitlines()[-1] in page
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    pngs = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert list(images.values()) == [base64.b64decode("".join(png)) for png in pngs]
    shown = re.findall(r"!\[.*?\]\((.*?)\)\{ \.figure \}", page)
    assert [posixpath.join(posixpath.dirname(path), name) for name in shown] == list(images)


@pytest.mark.parametrize("name", sorted(pages.origins().values()))
def test_every_link_leads_to_a_page_or_a_file_of_the_site(name):
    there = pages.origins().values() | pages.pages().keys() | pages.files().keys()
    there |= {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*") if path.is_file()}
    text = "".join(part for part in pages.FENCE.split(relinked(name)) if not part.startswith("```"))
    links = [link for _, link, _ in pages.LINK.findall(text) if ":" not in link]
    resolved = {posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) for link in links}
    assert resolved - there == set()


def test_code_that_looks_like_a_link_stays_as_it_is():
    assert pages.relinked("`a`\n\n```python\nf[0](../README.md)\n```\n", "log.md").endswith("f[0](../README.md)\n```\n")
    assert pages.relinked("[a](../README.md#two)", "log.md") == "[a](index.md#two)"


def test_every_module_is_on_a_page_of_the_api():
    text = "".join(page for name, page in pages.pages().items() if name.startswith("api/"))
    listed = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "minflux").rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    assert names - listed == {"minflux.__main__", "minflux.zoo"}
