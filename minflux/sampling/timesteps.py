"""The timesteps at which a solver stops, from t = 1, noise, to t = 0, the image."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from minflux.errors import ArgumentError

LARGEST_MU = 50  # of FLUX.1's schedule, 1.15 at 1024²


class Stops(Protocol):
    """Where a solver stops, whatever was trained: `Schedule` for a flow, `ddpm.NoiseSchedule` for predicted noise."""

    def timesteps(self, steps: int, tokens: int) -> np.ndarray:
        """Return t₀ > t₁ > … (steps + 1,), for an image of `tokens` tokens."""


@dataclass(frozen=True)
class Schedule:
    """How the steps are spread over t, under the names of diffusers' FlowMatchEulerDiscreteScheduler.

    FLUX.1-schnell's are even, the small model's have a fixed `shift`. FLUX.1-dev has `use_dynamic_shifting`: the more
    tokens an image has, the more of the steps are near the noise.
    """

    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    def timesteps(self, steps: int, tokens: int) -> np.ndarray:
        """Return t₀ = 1 > t₁ > … > 0, float32 (steps + 1,), for an image of `tokens` tokens."""
        t = np.linspace(1, 1 / steps, steps)
        if self.use_dynamic_shifting:
            e_mu = math.exp(self.mu_of(steps, tokens))
            t = e_mu / (e_mu + (1 / t - 1))
        else:
            t = shifted(t, self.shift)
        return np.append(t, 0).astype(np.float32)

    def mu_of(self, steps: int, tokens: int) -> float:
        """Return the shift's logarithm, for FLUX.1 by `mu`, whatever the number of steps."""
        return self.mu(tokens)

    def mu(self, tokens: int) -> float:
        """Interpolate the shift's logarithm: base_shift at 256 tokens, max_shift at 4096; see `checked_mu`."""
        rise = self.max_shift - self.base_shift
        slope = rise / (self.max_image_seq_len - self.base_image_seq_len)
        return checked_mu(self.base_shift + slope * (tokens - self.base_image_seq_len), tokens)


def checked_mu(mu: float, tokens: int) -> float:
    """Return a shift's logarithm; raises `ArgumentError` where it is so large that float32 has no timesteps for it."""
    if not abs(mu) <= LARGEST_MU:
        raise ArgumentError(f"the schedule's shift for {tokens} tokens is e^{mu:g}: change its settings or the size")
    return mu


def shifted(t: np.ndarray, shift: float) -> np.ndarray:
    """Move timesteps in (0, 1] towards the noise: t' = s·t / (1 + (s - 1)·t), which adds log s to the logit of each t.

    Source: Esser et al. 2024 (arXiv 2403.03206) §5.3.2.
    """
    return shift * t / (1 + (shift - 1) * t)
