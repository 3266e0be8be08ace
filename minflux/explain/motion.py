"""How far and how straight each step went: sizes of the velocity and of what it moves, and its direction."""

from collections.abc import Sequence

import numpy as np


def motion(x: Sequence[np.ndarray], clean: Sequence[np.ndarray], timesteps: Sequence[float]) -> dict[str, list[float]]:
    """Return for each step the sizes (root of the mean square) of v, x_t and x̂₀, and how straight v leads to the end.

    x: the latents at every timestep, one more than there are steps; clean: those that each step aimed at, x - t · v.
    straight: the cosine of the angle between v and the straight line from the image that came out to the noise.
    """
    steps = list(zip(x, clean, timesteps, strict=False))  # x and timesteps have an end beside
    velocities = [(here - aim) / t for here, aim, t in steps]
    line = x[0] - x[-1]
    return {
        "velocity": [size(v) for v in velocities],
        "noisy": [size(here) for here, _, _ in steps],
        "clean": [size(aim) for _, aim, _ in steps],
        "straight": [cosine(v, line) for v in velocities],
    }


def size(x: np.ndarray) -> float:
    """Return the root of the mean square of an array's numbers."""
    return float(np.sqrt(np.mean(x * x)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two arrays."""
    return float(np.sum(a * b) / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
