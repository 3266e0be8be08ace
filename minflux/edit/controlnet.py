"""Control images for ControlNets: which of them sees which image, how strongly, and during which of the steps.

Like references they belong to the conditioning, so that any edit can have them. The names of the modes are those of the
cards of InstantX's and Shakker Labs' Union ControlNets. Source of what `start` and `end` mean: diffusers
`pipelines/flux/pipeline_flux_controlnet.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Self

import numpy as np

from minflux.arrays import Array
from minflux.errors import ArgumentError, quoted

MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "lq")  # of a Union ControlNet, in the order of its table
NO_MODE = "none"


@dataclass(frozen=True)
class Use:
    """How a control image is used: by the ControlNet of this number, in this mode, times the scale, during these steps.

    start, end: which share of the steps is left out before it and has passed after it; all of them are from 0 to 1.
    """

    number: int = 0
    scale: float = 1.0
    mode: int | None = None
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, eq=False)
class Control:
    """A control image as its ControlNet sees it, and how it is used.

    shown: latents (1 or B, h, w, C), or for XLabs' ControlNets pixels (1, H, W, 3) in [-1, 1]. between: the timesteps
    of `use.start` and `use.end`, all of them until `during` says which steps there are.
    """

    shown: Array
    use: Use = Use()
    between: tuple[float, float] = (1.0, 0.0)

    def during(self, timesteps: np.ndarray) -> Self:
        """Return the control image at work in its share of these steps."""
        return replace(self, between=working_times(self.use, timesteps))

    def is_at_work(self, t: float) -> bool:
        """Return whether the timestep t is one of those during which it is used."""
        first, last = self.between
        return t <= first and (t > last or last == 0)


def working_times(use: Use, timesteps: np.ndarray) -> tuple[float, float]:
    """Return the timesteps at which the first of the steps begins that it is used in, and the last of them ends.

    Of n steps that is step i where i / n ≥ start and (i + 1) / n ≤ end. Raises `ArgumentError` where no step is left.

    >>> working_times(Use(start=0.2, end=0.7), np.array([1.0, 0.75, 0.5, 0.25, 0.0]))
    (0.75, 0.5)
    """
    count = len(timesteps) - 1
    kept = [i for i in range(count) if i / count >= use.start and (i + 1) / count <= use.end]
    if not kept:
        raise ArgumentError(
            f"control_start {use.start:g} and control_end {use.end:g} leave none of {count} steps; take more of them"
        )
    last = kept[-1] + 1
    return float(timesteps[kept[0]]), 0.0 if last == count else float(timesteps[last])


# -- what is asked for -------------------------------------------------------------------------------------------


def numbers_of(images: int, controlnets: int) -> list[int]:
    """Return which ControlNet sees each image: the only one all of them, of several each its own."""
    if controlnets > 1 and images != controlnets:
        raise ArgumentError(
            f"control: got {images} images for {controlnets} ControlNets; give one for each, in their order"
        )
    return list(range(images)) if controlnets > 1 else [0] * images


def mode_of(given: Any, modes: int) -> int | None:
    """Return the number of a mode that is given by number or by name, of so many that a ControlNet has.

    None and "none" are for ControlNets without any. Raises `ArgumentError` for a mode that a ControlNet has not, and
    for a Union one without any.
    """
    name = given if isinstance(given, str) else None
    if given is None or name == NO_MODE:
        if modes:
            raise ArgumentError(f"control_mode: a Union ControlNet needs one: {listed(modes)}")
        return None
    if not modes:
        raise ArgumentError(f"control_mode: the ControlNet has no modes, got {quoted(given)}; leave it out")
    number = MODES.index(name) if name in MODES else as_number(given)
    if number is None or number >= modes:
        raise ArgumentError(f"control_mode must be one of {listed(modes)}, got {quoted(given)}")
    return number


def as_number(given: Any) -> int | None:
    """Return a whole number of at least 0, or the one that a text consists of; None for anything else."""
    if isinstance(given, str):
        return int(given) if given.isdecimal() and given.isascii() and len(given) < 4 else None
    is_number = isinstance(given, Integral) and not isinstance(given, bool)
    return int(given) if is_number and given >= 0 else None


def listed(modes: int) -> str:
    """List a Union ControlNet's modes for a message."""
    return f"{', '.join(MODES[:modes])}, or 0 to {modes - 1}"


def spread_modes(given: Any, modes: Sequence[int]) -> list[Any]:
    """Return a mode for each image: a single one is for all whose ControlNet has `modes`."""
    if isinstance(given, list | tuple):
        return list(given)
    return [given if count or not any(modes) else None for count in modes]
