"""What the small model knows words for, as the command says it."""

import re

from minflux.commands.vocabulary import wrapped
from minflux.world.scenes import BACKGROUNDS, THINGS
from minflux.world.vocabulary import known_words
from tests.commands.runner import run


def test_all_things_and_backgrounds_are_listed():
    result = run("vocabulary")
    assert result.exit_code == 0
    said = set(re.findall(r"[a-z]+", result.output.lower()))
    assert set(THINGS) <= said
    assert {word for name in BACKGROUNDS for word in name.split()} <= said


def test_every_prompt_to_try_is_of_known_words():
    lines = run("vocabulary").output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("prompts"))
    prompts = [line.removeprefix("prompts").strip().replace("HELLO", "") for line in lines[first:]]
    assert len(prompts) == 3
    assert set(re.findall(r"[a-z]+", " ".join(prompts).lower())) <= known_words()


def test_lines_are_not_wider_than_asked():
    lines = wrapped(tuple("abcdefghijkl"), 10)
    assert max(map(len, lines)) <= 11  # and a comma
    assert " ".join(lines) == ", ".join("abcdefghijkl")
