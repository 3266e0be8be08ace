"""What the README and docs/ say is so: code runs; files, tests, commands and functions that they name are there."""

import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from minflux.commands.main import main
from tests.shipped import SHIPPED, needs_weights
from tools import parity_table, samples

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "chapters/README.md", "examples/README.md", "tests/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
README = PAGES[0].read_text()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """A page's code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The words of each of minflux's commands in a page's shell code, without what a shell would do with its output."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("minflux ")]
    return [shlex.split(line.partition(" | ")[0], comments=True)[1:] for line in lines]


def command(name: str) -> click.Command:
    """One of minflux's commands."""
    found = main.get_command(click.Context(main), name)
    assert found is not None, name
    return found


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_COMMANDS = [page for page in PAGES if commands(page)]
RUN = [page for page in WITH_COMMANDS if page.stem in ("README", "all-of-minflux", "questions")]  # others: large models


@each_page
def test_linked_and_named_files_are_there(page):
    text = page.read_text()
    linked = [page.parent / path for path in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text)]
    named = [ROOT / path for path in re.findall(r"`((?:minflux|tests|docs|benchmarks|tools|examples)/[\w/.-]+)`", text)]
    paths = [path for path in linked + named if SHIPPED or path.suffix != ".png"]
    assert [path for path in paths if not path.exists()] == []


@each_page
def test_links_to_headings_lead_to_one(page):
    for path, anchor in re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)", (page.parent / path if path else page).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


@each_page
def test_named_tests_are_there(page):
    for file, name in re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", page.read_text()):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@each_page
def test_named_verbs_of_make_are_there(page):
    verbs = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= verbs


@each_page
def test_named_modules_and_functions_are_there(page):
    for name in re.findall(r"`(minflux(?:\.(?!json)\w+)+)", page.read_text()):
        assert pkgutil.resolve_name(name) is not None, name


# -- code --------------------------------------------------------------------------------------------------------


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@needs_weights
@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_a_page_s_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": page.stem}
    for code in blocks(page, "python"):
        exec(code, names)
    if page.name == "README.md":
        assert names["image"].size == names["owl"].size == (128, 128)
        assert len(names["steps"]) == 20
        assert (tmp_path / "cat.png").exists()


@needs_weights
@pytest.mark.parametrize("page", RUN, ids=named)
def test_a_page_s_commands_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in commands(page):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
    if page.name == "README.md":
        assert (tmp_path / "again.png").exists()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_a_page_s_commands_have_options_that_there_are(page):
    for name, *arguments in commands(page):
        command(name).make_context(name, arguments)  # raises click's errors


def test_an_option_that_is_not_there_is_noticed():
    with pytest.raises(click.NoSuchOption):
        command("generate").make_context("generate", ["a cat", "--colour", "red"])


# -- words -------------------------------------------------------------------------------------------------------


def test_the_glossary_has_every_letter_of_the_dimension_key():
    architecture, glossary = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("architecture", "glossary"))
    letters = re.findall(r"^\| `([A-Z])` \|", architecture, re.MULTILINE)
    assert len(letters) > 10
    row = r"^\| (.*?) \|"
    firsts = " ".join(re.findall(row, glossary.partition("## The dimension key")[2], re.MULTILINE))
    assert [letter for letter in letters if f"`{letter}`" not in firsts] == []


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
    assert [prompt for prompt, _ in images if f"<br>{prompt} |" not in table] == []
