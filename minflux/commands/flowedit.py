"""FlowEdit on the command line: its options, what they go with, and what they are unless given."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import click

from minflux.commands.png import ImageSettings
from minflux.edit.flowedit import USUAL, check_counts
from minflux.errors import ArgumentError
from minflux.inference.arguments import check_steps, check_strength

FLOW_EDIT = ("source_prompt", "source_guidance", "n_max", "n_min", "n_avg")
BESIDE = ("image", "steps", "guidance", "width", "height", *FLOW_EDIT)  # settings that it has a use for

OPTIONS = (
    click.option(
        "--source-prompt",
        help="What --image shows, where PROMPT is what it is to show; takes 28 steps and guidance 5.5 unless told.",
    ),
    click.option("--source-guidance", type=float, help="Guidance of --source-prompt.  [1.5]"),
    click.option("--n-max", type=int, help="Of --steps, how many are taken; more change more.  [24]"),
    click.option("--n-min", type=int, help="How many of them, the last, are ordinary sampling.  [0]"),
    click.option("--n-avg", type=int, help="How many noises each step averages over.  [1]"),
)


def flow_edit_options(command: Callable) -> Callable:
    """Add FlowEdit's options to a command."""
    for add in reversed(OPTIONS):
        command = add(command)
    return command


def with_flow_edit(given: dict[str, Any]) -> dict[str, Any]:
    """Return an image's settings, those of FlowEdit complete where it is asked for, by a source prompt.

    Raises `ArgumentError` for a setting of FlowEdit without it, and for one that it has no use for.
    """
    if given["source_prompt"] is None:
        alone = [name for name in FLOW_EDIT if given[name] is not None]
        if alone:
            raise ArgumentError(f"{', '.join(alone)} without a source_prompt, which says what the image shows")
        return given
    check_beside(given)
    given = given | {name: value for name, value in USUAL.items() if given[name] is None}
    check_strength("source_guidance", given["source_guidance"])
    check_counts(given["n_max"], given["n_min"], given["n_avg"], check_steps(given["steps"]))
    return given


def check_beside(given: dict[str, Any]) -> None:
    """Raise `ArgumentError` unless FlowEdit has an image, and nothing beside it that would have no effect."""
    if given["image"] is None:
        raise ArgumentError("source_prompt without an image: give image, which it says what is shown by")
    usual = {field.name: None if field.default is MISSING else field.default for field in fields(ImageSettings)}
    others = [name for name in given if name not in BESIDE and given[name] != usual[name]]
    if others:
        raise ArgumentError(f"{', '.join(others)}: has no effect with source_prompt (FlowEdit): leave it out")
