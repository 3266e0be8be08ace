"""Every script of examples/ runs as it is, in an empty folder, without a warning; what it says it writes is there."""

import re
import runpy

import pytest

from tests.project.test_docs import ROOT, needs_weights

FOLDER = ROOT / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
LONGEST = 40  # lines that are neither empty nor in the docstring at the top
PAGE = "onefile.py"  # is a whole model on one page, and tests/project/test_mine.py says how long it may be

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@needs_weights
@each_script
def test_an_example_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    named = re.findall(r"[\w-]+\.(?:png|gif)", printed)
    assert printed.strip()
    assert [name for name in named if not (tmp_path / name).exists()] == []
    assert {path.name for path in tmp_path.glob("*.[pg][ni][gf]")} == set(named)


@each_script
def test_an_example_is_short_and_says_what_it_shows(script):
    docstring, code = re.fullmatch(r'"""(.*?)"""\n(.*)', script.read_text(), re.DOTALL).groups()
    assert docstring.partition("\n")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= LONGEST or script.name == PAGE


def test_the_table_names_every_example():
    named = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == [script.name for script in SCRIPTS]
