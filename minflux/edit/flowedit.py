"""FlowEdit: from the image itself, without inverting it, along the difference of two prompts' velocities.

At each step the image is noised anew, x_t = (1 - t) · image + t · noise, and both velocities are taken at points that
differ as the edit z and the image do:

    v' = v_target(z + x_t - image, t) - v_source(x_t, t),    averaged over n_avg noises

In the last n_min steps one noise is kept, and the source's velocity is that of its straight path, noise - image. This
is ordinary sampling of z + x_t - image with the target prompt. Source: Kulikov et al. 2024 (arXiv 2412.08629),
algorithm 1; `FlowEdit_utils.py` of its authors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of
from minflux.edit.base import Edit, noised
from minflux.errors import ArgumentError, quoted
from minflux.sampling.solvers import Velocity

MOST_NOISES = 1000  # averaged over at each step

MakeVelocity = Callable[[Sequence[float]], Velocity]  # of the timesteps at which it will be asked
# what its authors take with FLUX.1-dev
USUAL = {"steps": 28, "source_guidance": 1.5, "guidance": 5.5, "n_max": 24, "n_min": 0, "n_avg": 1}


@dataclass(frozen=True, eq=False)
class FlowEdit(Edit):
    """Edit an image from a source prompt, whose velocity `source` makes, towards the model's prompt.

    n_max: the steps that are taken, the last ones of all; n_min of them, the very last, are ordinary sampling. n_avg:
    the noises that a step averages over.
    """

    image: Array
    source: MakeVelocity
    n_max: int = 24
    n_min: int = 0
    n_avg: int = 1

    @property
    def draws(self) -> int:  # type: ignore[override]
        """Return how many noises are drawn from each seed."""
        return self.n_avg * max(self.n_max - self.n_min, 0) + 1

    def timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Return the last n_max steps' timesteps."""
        return timesteps[max(len(timesteps) - 1 - self.n_max, 0) :]

    def start(self, noises: Sequence[Array], t: float) -> Array:
        """Return the image's clean latents, once for each seed."""
        return backend_of(self.image).broadcast_to(self.image, noises[-1].shape)

    def velocity(self, model: Velocity, noises: Sequence[Array], ahead: Sequence[float]) -> Velocity:
        """Return v', which takes fresh noises at each t but the last n_min."""
        edited = ahead[: max(len(ahead) - self.n_min, 0)]
        if self.n_avg * len(edited) >= len(noises):
            raise ArgumentError("FlowEdit needs a noise for each velocity: use the solver 'euler', and no start")
        source, kept = self.source(edited), noises[self.n_avg * len(edited)]

        def v(z: Array, t: float) -> Array:
            if t not in edited:
                return self.difference(model, lambda x, t: kept - self.image, z, kept, t)
            first = self.n_avg * edited.index(t)
            return mean([self.difference(model, source, z, noise, t) for noise in noises[first : first + self.n_avg]])

        return v

    def difference(self, target: Velocity, source: Velocity, z: Array, noise: Array, t: float) -> Array:
        """Return v_target(z + x_t - image, t) - v_source(x_t, t) in float32."""
        nx = backend_of(z)
        x = noised(self.image, noise, t)
        return nx.as_float32(target(z + x - self.image, t)) - nx.as_float32(source(x, t))


def mean(arrays: Sequence[Array]) -> Array:
    """Return the mean of arrays."""
    return sum(arrays[1:], arrays[0]) / len(arrays)


def check_counts(n_max: Any, n_min: Any, n_avg: Any, steps: int) -> tuple[int, int, int]:
    """Return n_max > n_min ≥ 0 and n_avg ≥ 1, whole numbers; of n_max and n_min what there are steps for."""
    counts = {"n_max": (n_max, 1), "n_min": (n_min, 0), "n_avg": (n_avg, 1)}
    for name, (value, least) in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ArgumentError(f"{name} must be a whole number of at least {least}, got {quoted(value)}")
    if n_min >= min(n_max, steps):
        raise ArgumentError(
            f"n_min must be below n_max and steps, {quoted(n_max)} and {steps}, got {quoted(n_min)}: no step would edit"
        )
    if n_avg > MOST_NOISES:
        raise ArgumentError(f"n_avg must be at most {MOST_NOISES}, got {quoted(n_avg)}: each costs as much as a step")
    return min(int(n_max), steps), int(n_min), int(n_avg)
