"""Networks that predict noise, as in DDPM, DDIM and Stable Diffusion, followed by the solvers that follow a velocity.

Such a network knows N steps n, 0 to N - 1. At n an image x₀ and noise ε are mixed to √ᾱ x₀ + √(1 - ᾱ) ε, where ᾱ(n)
falls from 1 to about 0. Divided by √ᾱ + √(1 - ᾱ), that is the flow's own straight path z = (1 - t) x₀ + t ε, at

    t = √(1 - ᾱ) / (√ᾱ + √(1 - ᾱ)),   and back:   √ᾱ = (1 - t) / r,   √(1 - ᾱ) = t / r,   r = √((1 - t)² + t²)

So a predicted noise is a velocity of z, ε - x₀ (`noise_as_velocity`), and the house's solvers serve:

- `euler` on it is DDIM with η = 0, step by step: both keep ε and x₀ for the step, and mix them anew at the next time.
- `dpm_solver` on it is DPM-Solver++(2M): λ = log((1 - t) / t) is the λ of its paper.
- `heun` and `midpoint` work too. Between its N steps the network is asked at a broken n, which sinusoids allow.

Where the view does not fit: DDPM's ancestral steps, and DDIM's with η > 0, draw new noise, so they follow no velocity.
They are a solver of their own (`ddim`) in the same loop, and run on any velocity, a flow's as well. At t = 1 there is
no x₀ in z, so a network that predicts noise can't say what x₀ is: sampling begins at n = N - 1, just below. There, with
the cosine schedule, an error of ε is 20,000 times as large in x₀, which is what `clip` is for.

Sources: Ho et al. 2020 (arXiv 2006.11239), Song et al. 2020 (arXiv 2010.02502), Nichol & Dhariwal 2021 (arXiv
2102.09672); diffusers `scheduling_ddpm.py`, `scheduling_ddim.py`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of
from minflux.errors import ArgumentError, quoted
from minflux.sampling.solvers import Solver, Step, Velocity, float32_velocity, walk

Noise = Callable[[Array, float], Array]  # ε(x, n) for latents x = √ᾱ x₀ + √(1 - ᾱ) ε, at any n in [0, N - 1]
MOST_BETA = 0.999
MOST_STEPS = 10_000  # of training
SHAPES = ("cosine", "scaled_linear")
SPACINGS = ("leading", "trailing")


@dataclass(frozen=True)
class NoiseSchedule:
    """How ᾱ falls over the steps n of training, and at which of them sampling stops; the names are diffusers'.

    shape: "cosine" (`squaredcos_cap_v2`) or Stable Diffusion's "scaled_linear", from `beta_start` to `beta_end`.
    timestep_spacing: "trailing" stops begin at the noisiest n, "leading" ones end at n = steps_offset, and so begin
    below the noisiest where they are few. set_alpha_to_one: after the last stop comes the image itself; else, as in
    Stable Diffusion, what the mixture is at n = 0. Raises `ArgumentError` for what can't be.
    """

    shape: str = "cosine"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    timestep_spacing: str = "trailing"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    def __post_init__(self):
        for name, found, known in (
            ("shape", self.shape, SHAPES),
            ("timestep_spacing", self.timestep_spacing, SPACINGS),
        ):
            if found not in known:
                raise ArgumentError(f"{name} must be one of {', '.join(known)}, got {quoted(found)}")
        if not 1 <= self.num_train_timesteps <= MOST_STEPS:
            raise ArgumentError(f"num_train_timesteps must be 1 to {MOST_STEPS}, got {self.num_train_timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ArgumentError(
                f"beta_start and beta_end must rise within 0 to 1, got {self.beta_start:g} and {self.beta_end:g}"
            )
        if not 0 <= self.steps_offset <= 1:
            raise ArgumentError(f"steps_offset must be 0 or 1, got {self.steps_offset}")

    @cached_property
    def betas(self) -> np.ndarray:
        """Return β(n), the share of noise that step n adds, float32 (N,)."""
        count = self.num_train_timesteps
        if self.shape == "cosine":
            level = [cosine_level(n / count) for n in range(count + 1)]
            return np.array([min(1 - level[n + 1] / level[n], MOST_BETA) for n in range(count)], np.float32)
        roots = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count).astype(np.float32)
        return roots * roots

    @cached_property
    def levels(self) -> np.ndarray:
        """Return ᾱ(n) = Π (1 - β), float64 (N,); as in diffusers, β and ᾱ are rounded to float32."""
        alphas = np.float32(1) - self.betas
        return np.cumprod(alphas.astype(np.float64)).astype(np.float32).astype(np.float64)

    @cached_property
    def times(self) -> np.ndarray:
        """Return the flow's time t of every n, float64 (N,), rising."""
        image, noise = np.sqrt(self.levels), np.sqrt(1 - self.levels)
        return noise / (image + noise)

    def step_at(self, t: float) -> float:
        """Return the n whose time is t, a broken one between two of them; the first or last n beyond these."""
        return float(np.interp(t, self.times, np.arange(self.num_train_timesteps)))

    def stops(self, steps: int) -> np.ndarray:
        """Return the n at which sampling asks the network, falling; raises `ArgumentError` for more than there are."""
        count = self.num_train_timesteps
        if not 1 <= steps <= count:
            raise ArgumentError(f"steps must be 1 to {count}, those that were trained on; got {steps}")
        if self.timestep_spacing == "leading":
            return np.minimum(np.arange(steps)[::-1] * (count // steps) + self.steps_offset, count - 1)
        return np.round(np.arange(count, 0, -count / steps)).astype(int)[:steps] - 1

    def timesteps(self, steps: int, tokens: int = 0) -> np.ndarray:
        """Return the flow's times of the stops, then the last: float64 (steps + 1,), for the solvers.

        In float32 nothing would be left of 1 - t at the noisy end. `tokens` is not used: noise knows no image's size.
        """
        return np.append(self.times[self.stops(steps)], 0 if self.set_alpha_to_one else self.times[0])


def cosine_level(u: float) -> float:
    """Return cos²((u + 0.008) / 1.008 · π/2), what the cosine schedule leaves of the image at u in [0, 1]."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


# -- noise as velocity -----------------------------------------------------------------------------------------


def radius(t: float) -> float:
    """Return r = √((1 - t)² + t²), by which x = √ᾱ x₀ + √(1 - ᾱ) ε becomes z = (1 - t) x₀ + t ε."""
    return math.hypot(1 - t, t)


def noise_as_velocity(noise: Noise, schedule: NoiseSchedule, clip: float | None = None) -> Velocity:
    """Return the velocity (z - x₀) / t of a network that predicts noise, x₀ = (z - t ε) / (1 - t).

    clip: x₀ is kept within ±clip. Then ε is no longer the network's but what leads from that x₀ to z (diffusers'
    `clip_sample`, in DDIM with `use_clipped_model_output`).
    """

    def v(z: Array, t: float) -> Array:
        nx = backend_of(z)
        epsilon = nx.as_float32(noise(z / radius(t), schedule.step_at(t)))
        denoised = (z - t * epsilon) / (1 - t)
        if clip is not None:
            denoised = nx.minimum(nx.maximum(denoised, -clip), clip)
        return (z - denoised) / t

    return v


# -- solvers that draw noise -----------------------------------------------------------------------------------


def ddim(eta: float, draw: Callable[[int], Array]) -> Solver:
    """Make DDIM's solver: in each step a share of the noise in x is exchanged for new noise, which is draw(step).

    With the predicted ε = x + (1 - t) v and x₀ = x - t v, and new noise ξ, a step goes to

        (1 - t_next) x₀ + t_next · (√(1 - ρ²) ε + ρ ξ),   ρ² = η² (1 - (s_next / s)²),   s = t / (1 - t)

    η = 0 is Euler's method; η = 1 over all N steps is DDPM's ancestral sampling, with its smaller variance
    ("fixed_small"). One evaluation a step. Source: Song et al. 2020 (arXiv 2010.02502), equations 12 and 16.
    """

    def solve(velocity: Velocity, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
        v = float32_velocity(velocity)
        index = iter(range(len(timesteps)))

        def move(x: Array, t: float, t_next: float) -> tuple[Array, Array]:
            here = v(x, t)
            denoised, epsilon = x - t * here, x + (1 - t) * here
            share = eta * math.sqrt(1 - noise_ratio(t, t_next) ** 2)
            fresh = draw(next(index))
            epsilon = math.sqrt(1 - share**2) * epsilon + share * fresh
            return (1 - t_next) * denoised + t_next * epsilon, denoised

        return walk(move, x, timesteps)

    return solve


def noise_ratio(t: float, t_next: float) -> float:
    """Return s_next / s for s = t / (1 - t), the noise beside the image at two times; 0 from t = 1."""
    return t_next * (1 - t) / ((1 - t_next) * t)
