"""RF-inversion: find the noise that an image comes from, and draw anew from there, held near the image at first.

An image runs to noise along the velocity, backwards in time. Plain inversion (γ = 0) follows the model's own; what it
ends at is seldom noise that the model knows, so it is drawn to a noise of its kind, y:

    dx/dt = v(x, t) + γ · ((y - x) / (1 - t) - v(x, t)),    from t = 0, the image, to t = 1

On the way back, with another prompt, the image draws in turn, in the first steps alone:

    dx/dt = v(x, t) + η · ((x - image) / t - v(x, t)),      from t = 1 to t = 0

Each bracket is the velocity of a straight line, to y or from the image, less the model's. With γ = η = 0 and one prompt
the way there and back ends at the image, but for the error of the steps. Source: Rout et al. 2024 (arXiv 2410.10792),
algorithms 1 and 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minflux.arrays import Array
from minflux.edit.base import Edit
from minflux.errors import ArgumentError
from minflux.sampling.solvers import Velocity, euler


def invert(velocity: Velocity, image: Array, noise: Array, timesteps: np.ndarray, gamma: float = 0.5) -> Array:
    """Return the latents at t = 1 that lead to the image (B, h, w, C): as the model sees it, or drawn to `noise`.

    velocity: the model's, best of the prompt "". timesteps: those of sampling, from 1 to 0, followed from the last to
    the first. gamma: 0 for plain inversion, to 1 for `noise` itself.
    """
    check_pull("gamma", gamma)

    def controlled(x: Array, t: float) -> Array:
        own = velocity(x, t)
        return own + gamma * ((noise - x) / (1 - t) - own)

    for step in euler(controlled, image, np.ascontiguousarray(timesteps[::-1])):
        x = step.x
    return x


@dataclass(frozen=True, eq=False)
class RFInversion(Edit):
    """Draw from inverted latents, which `sample` takes as its `start`, and be drawn to the image with strength `eta`.

    eta: 0 for not at all, to 1 for nothing else. window: the share of the steps at which that begins and ends.
    """

    image: Array
    eta: float = 0.9
    window: tuple[float, float] = (0.0, 0.25)
    draws: int = 1

    def velocity(self, model: Velocity, noises: Sequence[Array], ahead: Sequence[float]) -> Velocity:
        """Return the model's velocity, and in the window the controlled one."""
        check_pull("eta", self.eta)
        first, last = (int(share * len(ahead)) for share in self.window)
        held = ahead[first:last]

        def v(x: Array, t: float) -> Array:
            own = model(x, t)
            return own + self.eta * ((x - self.image) / t - own) if t in held else own

        return v


def check_pull(name: str, value: float) -> None:
    """Raise `ArgumentError` unless a strength is a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name} must be a number from 0 to 1, got {value!r}")
