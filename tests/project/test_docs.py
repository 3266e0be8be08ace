"""What the README and docs/ say is so: the code runs, and the files, tests, commands and functions named are there."""

import doctest
import io
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import insert, model_card, parity_table, samples
from minflux import zoo
from minflux.commands.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "chapters/README.md", "examples/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
README = PAGES[0].read_text()
SHIPPED = (zoo.FOLDER / "tiny" / "model_index.json").exists()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def needs_weights(test):
    """Mark a test that draws with the shipped model."""
    skip = pytest.mark.skipif(not SHIPPED, reason="minflux/zoo/tiny has no weights yet")
    return pytest.mark.weights(skip(test))


def blocks(language: str) -> list[str]:
    """The README's code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@each_page
def test_linked_and_named_files_are_there(page):
    text = page.read_text()
    linked = [page.parent / path for path in re.findall(r"\]\(([^):]+)\)", text)]
    named = [ROOT / path for path in re.findall(r"`((?:minflux|tests|docs|benchmarks)/[\w/.-]+)`", text)]
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


@pytest.mark.parametrize("module", [insert, model_card, parity_table, samples], ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_pages_that_lack_a_mark_are_refused():
    with pytest.raises(ValueError, match="expected the marks <!-- sizes: begin --> and"):
        insert.insert("<!-- sizes: begin --> but no end", "sizes", "text")


def test_inserting_twice_is_inserting_once():
    page = "a\n<!-- x: begin -->\n<!-- x: end -->\nb\n"
    once = insert.insert(page, "x", "old\n")
    assert once == "a\n<!-- x: begin -->\n\nold\n\n<!-- x: end -->\nb\n"
    assert insert.insert(insert.insert(page, "x", "new"), "x", "old") == once


def test_nothing_is_written_unless_all_pages_have_the_mark(tmp_path, monkeypatch):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("<!-- x: begin --><!-- x: end -->")
    bad.write_text("no marks")
    monkeypatch.setattr("sys.stdin", io.StringIO("text"))
    with pytest.raises(SystemExit, match="expected the marks"):
        insert.main("x", str(good), str(bad))
    assert "text" not in good.read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO("text"))
    insert.main("x", str(good))
    assert "text" in good.read_text()


def test_a_training_is_summed_up(tmp_path):
    for part, losses in (("vae", [4, 2]), ("flow", [1] * 150)):
        (tmp_path / part).mkdir()
        rows = [f"{i},{loss},0.1,0.001,36" for i, loss in enumerate(losses, 1)]
        text = "\n".join(["step,loss,gradient_norm,learning_rate,seconds", *rows])
        (tmp_path / part / "log.csv").write_text(text + "\n")
    _, vae, flow = model_card.training(tmp_path)
    assert vae[1:] == ["2", "0.0", "3.0000"]
    assert flow[1:] == ["150", "1.5", "1.0000"]


@needs_weights
def test_the_sizes_of_the_shipped_model_add_up():
    *parts, (_, total, megabytes) = model_card.sizes(zoo.FOLDER / "tiny")[1:]
    assert sum(int(part[1].replace(",", "")) for part in parts) == int(total.replace(",", ""))
    assert float(megabytes) <= 40


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
