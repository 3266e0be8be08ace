"""The mutants know the house: every module that computes is broken in turn, by tests that are there."""

from pathlib import Path

import pytest

import minflux
from tests import mutants

PACKAGE = Path(minflux.__file__).parent


@pytest.mark.parametrize("room", ["backend", "model", "sampling"])
def test_every_module_that_computes_is_watched(room):
    files = [file.relative_to(PACKAGE).with_suffix("") for file in (PACKAGE / room).rglob("*.py")]
    computing = {file for file in files if file.name not in ("__init__", *mutants.NOTHING_COMPUTED)}
    modules = {".".join(("minflux", *file.parts)) for file in computing}
    assert modules == {name for name in mutants.WATCHED if name.startswith(f"minflux.{room}.")}


def test_the_tests_that_watch_are_there():
    assert [tests for tests, _ in mutants.WATCHED.values() if not (mutants.HERE / tests).is_file()] == []
