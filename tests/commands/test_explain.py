"""`minflux explain`: a prompt to a page, and one clear line for what can't be."""

import pytest

from tests.commands.runner import assert_refused, run

PROMPT = "a cat on a blue background"


def test_a_page_is_written(here, model):
    result = run("explain", PROMPT, "--model", model, "--steps", 2, "--seed", 3, "--size", "48x32", "--out", "cat.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == "cat.html\n"
    text = (here / "cat.html").read_text()
    assert f"<title>{PROMPT} – minflux</title>" in text
    assert '"size":[48,32]' in text
    assert '"seed":3' in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "cat.png"], "--out must end in .html"),
        (["--out", "nowhere/cat.html"], "does not exist"),
        (["--size", "64"], "--size must be WIDTHxHEIGHT"),
        (["--size", "50x64"], "width"),
        (["--steps", "0"], "steps"),
        (["--seed", "-1"], "seed"),
        (["--guidance", "-2"], "guidance"),
        (["--model", "nothing-like-it"], "nothing-like-it"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_computed(here, options, words):
    assert_refused(run("explain", PROMPT, *options), words)
    assert list(here.iterdir()) == []


def test_a_prompt_is_asked_for(here):
    result = run("explain")
    assert result.exit_code == 2
    assert "PROMPT" in result.stderr
