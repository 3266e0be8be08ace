"""The mutants know the house: every module that computes is broken in turn, by tests that are there."""

from pathlib import Path

import pytest

import minflux
from tests import mutants

PACKAGE = Path(minflux.__file__).parent


@pytest.mark.parametrize("room", ["backend", "model", "sampling"])
def test_every_module_that_computes_is_watched(room):
    known = {name for name in (*mutants.WATCHED, *mutants.NOTHING_COMPUTED) if name.split(".")[1] == room}
    assert known == {name for name, text in sources(room).items() if "\ndef " in text or "\nclass " in text}


def sources(room: str) -> dict[str, str]:
    """The modules of a folder of the package, and their texts."""
    paths = {path: path.relative_to(PACKAGE.parent).with_suffix("") for path in (PACKAGE / room).rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path.read_text() for path, name in paths.items()}


def test_the_tests_that_watch_are_there():
    files = {file for tests, _ in mutants.WATCHED.values() for file in tests.split()}
    assert [file for file in files if not (mutants.HERE / file).is_file()] == []
