"""From noise to latents, by straight steps along the velocity.

The model gives the velocity v = noise - image at any point x_t = (1 - t) · image + t · noise of the straight path
between the two. Sampling starts at t = 1 and follows v backwards to t = 0. Source: Lipman et al. 2022 (arXiv
2210.02747), Liu et al. 2022 (arXiv 2209.03003); BFL `flux/sampling.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of


@dataclass(frozen=True)
class Step:
    """One denoising step, done: x is now at time t; `predicted` is the clean latent that the model was aiming at."""

    index: int
    t: float
    x: Array
    predicted: Array


def euler(velocity: Callable[[Array, float], Array], x: Array, times: np.ndarray) -> Iterator[Step]:
    """Follow the velocity from times[0] to times[-1]: x ← x + (t_next - t) · v(x, t), yielding every step.

    x is float32 and stays so, whatever the model computes in. The clean latent predicted at t is x - t · v.
    """
    nx = backend_of(x)
    for i, (t, t_next) in enumerate(pairwise(times)):
        v = nx.as_float32(velocity(x, float(t)))
        predicted = x - float(t) * v
        x = x + (float(t_next) - float(t)) * v
        nx.eval(x, predicted)
        yield Step(i, float(t_next), x, predicted)
