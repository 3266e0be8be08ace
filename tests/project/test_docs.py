"""What the README and docs/ say is so: the code runs, and the files, tests, commands and functions named are there."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from minflux.commands.main import main
from tests.shipped import SHIPPED, needs_weights
from tools import parity_table, samples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "chapters/README.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
README = PAGES[0].read_text()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(language: str) -> list[str]:
    """The README's code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@each_page
def test_linked_and_named_files_are_there(page):
    text = page.read_text()
    linked = [page.parent / path for path in re.findall(r"\]\(([^):]+)\)", text)]
    named = [ROOT / path for path in re.findall(r"`((?:minflux|tests|docs|benchmarks|tools|examples)/[\w/.-]+)`", text)]
    paths = [path for path in linked + named if SHIPPED or path.suffix != ".png"]
    assert [path for path in paths if not path.exists()] == []


@each_page
def test_named_tests_are_there(page):
    for file, name in re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", page.read_text()):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@each_page
def test_named_verbs_of_make_are_there(page):
    verbs = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= verbs


@needs_weights
def test_the_readme_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    assert names["image"].size == names["owl"].size == (64, 64)
    assert len(names["steps"]) == 20
    assert (tmp_path / "cat.png").exists()


@needs_weights
def test_the_readme_s_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("minflux ")]
    assert len(lines) >= 3
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert (tmp_path / "again.png").exists()


# -- generated figures ---------------------------------------------------------------------------------------


def parity_rows(page: str) -> list[list[str]]:
    """The rows of a page's table of parity, without its heading."""
    table = (ROOT / page).read_text().split("<!-- parity: begin -->")[1].split("<!-- parity: end -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]


def test_the_parity_table_has_every_component_on_both_backends():
    components = [row for row in parity_rows("docs/parity.md") if "`" not in row[0]]
    assert len(components) > 30
    assert [row[0] for row in components if "–" in row[1:3]] == []


def test_the_readme_s_rows_of_parity_are_of_the_whole_table():
    rows = parity_rows("README.md")
    assert [row[0] for row in rows] == list(parity_table.SHORT)
    assert [row for row in rows if row not in parity_rows("docs/parity.md")] == []


def test_the_readme_s_first_images_are_there_each_with_its_prompt():
    table = README.split("<!-- samples: begin -->")[1].split("<!-- samples: end -->")[0]
    images = re.findall(r"!\[(.*?)\]\((.*?)\)", table)
    assert len(images) == samples.COUNT
    assert [path for _, path in images if not (ROOT / path).exists()] == []
    assert [prompt for prompt, _ in images if f"| {prompt} |" not in table] == []
