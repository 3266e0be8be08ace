"""The help of a long command: every option under one heading, and lines no wider than the terminal."""

import re

import click
import pytest

from minflux.commands import generate, main
from minflux.commands.headings import REST, WithHeadings


@pytest.mark.parametrize("columns", [80, 120])
def test_every_option_of_generate_stands_under_a_heading(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    parent = click.Context(main.main, **main.main.context_settings)
    text = generate.command.get_help(click.Context(generate.command, parent=parent))
    sections = re.split(r"^(\S.*):$", text, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(found) == [*generate.HEADINGS, REST]
    assert re.findall(r"^  (-.*?)  ", found.pop(REST), re.MULTILINE) == ["-h, --help"]
    listed = re.findall(r"^  (--[\w-]+)", "".join(found.values()), re.MULTILINE)
    assert sorted(listed) == sorted(p.opts[0] for p in generate.command.params if isinstance(p, click.Option))
    widest = max(len(line) for section in found.values() for line in section.splitlines())
    assert columns - 12 <= widest <= columns - 2


def test_an_option_that_no_heading_names_stands_at_the_end_and_a_hidden_one_nowhere():
    options = [click.Option(["--a"], help="One."), click.Option(["--b"]), click.Option(["--c"], hidden=True)]
    command = WithHeadings("x", params=[*options, click.Argument(["file"])], headings={"First": ["b"]})
    text = command.get_help(click.Context(command)).partition("First:")[2]
    assert text.split() == [
        "--b",
        "TEXT",
        "Options:",
        "--a",
        "TEXT",
        "One.",
        "--help",
        "Show",
        "this",
        "message",
        "and",
        "exit.",
    ]
