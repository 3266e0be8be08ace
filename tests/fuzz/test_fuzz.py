"""A short run of the fuzzers: whatever strangers' files and callers' arguments hold, minflux ends in one error."""

import json
import sys
import time

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from minflux.errors import ArgumentError
from tests.fuzz.judge import RIGHT, Fault, check_line, judge, room
from tests.fuzz.tally import QUIET, fuzz
from tests.fuzz.targets import NAMES, targets

COUNT = 25  # cases of a kind, for a second or two


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINFLUX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # some cases name repositories
        patch.chdir(tmp_path_factory.mktemp("here"))  # some cases name folders to write
        yield targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", NAMES)
def test_every_bad_input_ends_in_one_error_of_minflux(kind, kinds):
    @settings(max_examples=COUNT, **QUIET)
    @seed(1)
    @given(kinds[kind])
    def try_one(case):
        judge(case)

    try_one()


# -- the judge itself ------------------------------------------------------------------------------------------


def allocate():
    np.ones(1 << 32, np.uint8)


def recurse():
    json.loads("[" * 200_000)


def refuse_in_colour():
    check_line("\x1b[31mred")


@pytest.mark.parametrize("act", [allocate, recurse, refuse_in_colour, [].pop, lambda: int("x")])
def test_the_judge_sees(act):
    with pytest.raises(Fault):
        judge(act)


def test_the_judge_passes_what_is_right_and_what_is_refused():
    def refuse():
        raise ArgumentError("\x1b[31mred")  # shown without its escape

    assert judge(lambda: None) == RIGHT
    assert judge(refuse) == "refused"


def test_a_case_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr("tests.fuzz.judge.SECONDS", 1)
    with pytest.raises(Fault, match="more than 1 s"):
        judge(lambda: time.sleep(30))


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory by /proc")
def test_the_limit_of_memory_is_taken_away_again():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with room(1 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS) != before
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_fault_is_told_with_the_command_that_shows_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.tally.LAST", tmp_path / "last.txt")
    cases = st.integers(0, 9).map(lambda n: lambda: 1 // (n - 3))
    tally = fuzz("settings", cases, 40, 0, None)
    number = next(iter(tally.faults.values())).number
    assert f"ZeroDivisionError at : '{'ZeroDivisionError'}" in tally.report("AGAIN")
    assert f"AGAIN --only settings --case {number}" in tally.report("AGAIN")
    assert fuzz("settings", cases, 40, 0, number).endings == {"bad": 1}
