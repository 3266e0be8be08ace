"""Image-to-image: begin with the image, noised, at a timestep that is already near it.

The more noise, the more is drawn anew. Source: Meng et al. 2021 (arXiv 2108.01073); diffusers
`pipelines/flux/pipeline_flux_img2img.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from minflux.arrays import Array
from minflux.edit.base import Edit, noised
from minflux.errors import ArgumentError, quoted


@dataclass(frozen=True, eq=False)
class ImageToImage(Edit):
    """Begin at x = (1 - t₀) · image + t₀ · noise, and take the share `strength` of the steps, the last ones."""

    image: Array
    strength: float = 0.6
    draws: int = 1

    def timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Return the last timesteps (see `skipped_steps`)."""
        return timesteps[skipped_steps(len(timesteps) - 1, self.strength) :]

    def start(self, noises: Sequence[Array], t: float) -> Array:
        """Return the image's latents, noised."""
        return noised(self.image, noises[-1], t)


def skipped_steps(steps: int, strength: float) -> int:
    """Return how many steps are left out: int(steps - steps · strength), diffusers' formula, rounding included.

    BFL's int((1 - strength) · steps) is another one in floating point: at 20 steps and 0.8 it leaves out one less.
    Raises `ArgumentError` where no step would be left.
    """
    skipped = int(steps - steps * check_share("strength", strength))
    if skipped == steps:
        raise ArgumentError(f"strength {strength:g} leaves none of {steps} steps; raise strength, or steps")
    return skipped


def check_share(name: str, value: Any) -> float:
    """Return a share, a number above 0 and at most 1."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= 1:
        raise ArgumentError(f"{name} must be a number above 0 and at most 1, got {quoted(value)}")
    return float(value)
