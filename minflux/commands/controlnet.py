"""ControlNets on the command line: their options, and what a call makes of them."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from minflux.edit.controlnet import MODES, numbers_of
from minflux.errors import ArgumentError

OPTIONS = (
    click.option(
        "--controlnet", multiple=True, help="Show --control to it: a folder, a file or OWNER/NAME[:FILE]; repeatable."
    ),
    click.option("--control-scale", type=float, multiple=True, help="How strongly; for all --control, or each.  [1]"),
    click.option("--control-start", type=float, multiple=True, help="From which share of the steps on.  [0]"),
    click.option("--control-end", type=float, multiple=True, help="Up to which share of the steps.  [1]"),
    click.option(
        "--control-mode", multiple=True, help=f"What a Union ControlNet is shown: {', '.join(MODES)}, or a number."
    ),
)


def controlnet_options(command: Callable) -> Callable:
    """Add ControlNets' options to a command."""
    for add in reversed(OPTIONS):
        command = add(command)
    return command


def as_in_a_call(values: tuple) -> Any:
    """Return the values of a repeatable option as a call takes them: None for none, one alone, or a list."""
    return list(values) if len(values) > 1 else next(iter(values), None)


def check_controlnets(given: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for ControlNets without control images, and for more of the one than the other takes."""
    if given["controlnet"] and not given["control"]:
        raise ArgumentError("--controlnet goes with --control, the image that it is shown")
    numbers_of(len(given["control"]), len(given["controlnet"]))
