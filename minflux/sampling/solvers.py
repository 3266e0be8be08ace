"""From noise to latents: solvers that follow a velocity.

The model gives the velocity v = noise - image at any point x_t = (1 - t) · image + t · noise of the straight path
between the two. Sampling starts at t = 1 and follows v backwards to t = 0. Source: Lipman et al. 2022 (arXiv
2210.02747), Liu et al. 2022 (arXiv 2209.03003); BFL `flux/sampling.py`.

Every solver goes x ← x + (t_next - t) · slope. Solvers differ in the slope alone: the velocity at t (`euler`), or one
that is closer to the mean velocity between t and t_next. A solver is of order n when halving its steps divides its
error by 2ⁿ.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of
from minflux.sampling.display import step_html

Velocity = Callable[[Array, float], Array]  # v(x, t), for any t in [0, 1]
Slope = Callable[[Array, float, float], Array]  # of x, t and t_next
Move = Callable[[Array, float, float], tuple[Array, Array]]  # of the same: the next x, and the clean latents aimed at


@dataclass(frozen=True)
class Step:
    """A step that is done: `x` is now at time `t`; `denoised` are the clean latents that the step was aiming at."""

    index: int
    t: float
    x: Array
    denoised: Array

    def _repr_html_(self) -> str | None:
        """Return the step for Jupyter: what its first image's latents look like (see `display`)."""
        return step_html(self.index, self.t, self.x, self.denoised)


def walk(move: Move, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
    """Yield each step of x, denoised ← move(x, t, t_next), from timesteps[0] to timesteps[-1]: the one loop."""
    nx = backend_of(x)
    for i, (t, t_next) in enumerate(pairwise(map(float, timesteps))):
        x, denoised = move(x, t, t_next)
        nx.eval(x, denoised)
        yield Step(i, t_next, x, denoised)


def follow(slope: Slope, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
    """Yield each step of x ← x + (t_next - t) · slope(x, t, t_next), from timesteps[0] to timesteps[-1].

    The clean latents aimed at are x - t · slope. x and the slope are float32.
    """

    def move(x: Array, t: float, t_next: float) -> tuple[Array, Array]:
        v = slope(x, t, t_next)
        return x + (t_next - t) * v, x - t * v

    return walk(move, x, timesteps)


def float32_velocity(velocity: Velocity) -> Velocity:
    """Return the velocity in float32, for sums over steps to be exact, whatever the model computes in."""
    return lambda x, t: backend_of(x).as_float32(velocity(x, t))


def euler(velocity: Velocity, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
    """Follow the velocity at the start of each step: order 1, one evaluation a step."""
    v = float32_velocity(velocity)
    return follow(lambda x, t, t_next: v(x, t), x, timesteps)


def heun(velocity: Velocity, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
    """Follow the mean of the velocities at the start and the end of each step: order 2, two evaluations a step.

    The last step, to t = 0, is Euler's, as in diffusers' FlowMatchHeunDiscreteScheduler. Source: Karras et al. 2022
    (arXiv 2206.00364), algorithm 1.
    """
    v = float32_velocity(velocity)

    def slope(x: Array, t: float, t_next: float) -> Array:
        start = v(x, t)
        if t_next == 0:
            return start
        end = v(x + (t_next - t) * start, t_next)
        return (start + end) / 2

    return follow(slope, x, timesteps)


def midpoint(velocity: Velocity, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
    """Follow the velocity at the middle of each step, where Euler's method leads: order 2, two evaluations a step."""
    v = float32_velocity(velocity)

    def slope(x: Array, t: float, t_next: float) -> Array:
        middle = (t + t_next) / 2
        x_middle = x + (middle - t) * v(x, t)
        return v(x_middle, middle)

    return follow(slope, x, timesteps)


def dpm_solver(velocity: Velocity, x: Array, timesteps: np.ndarray) -> Iterator[Step]:
    """Follow DPM-Solver++(2M): order 2 with one evaluation a step, for the step before is used as well.

    It takes the clean latents m(λ) = x - t · v for a straight line in λ = log((1 - t) / t) through the last two steps,
    m₁ and m₀. Then

        slope = v - 1/(2 t) · (λ_next - λ₀) / (λ₀ - λ₁) · (m₀ - m₁)

    Where λ is infinite, in the first two steps from t = 1 and in the last one to t = 0, the step is Euler's; near them
    the order is reached slowly. Source: Lu et al. 2022 (arXiv 2211.01095); diffusers' DPMSolverMultistepScheduler with
    `use_flow_sigmas`.
    """
    v = float32_velocity(velocity)
    before: list[tuple[float, Array]] = []  # t₁ and m₁

    def slope(x: Array, t: float, t_next: float) -> Array:
        here = v(x, t)
        denoised = x - t * here
        t_before, denoised_before = before[-1] if before else (1.0, denoised)
        before[:] = [(t, denoised)]
        if t_before == 1 or t_next == 0:
            return here
        next_step = log_odds(t_next) - log_odds(t)
        last_step = log_odds(t) - log_odds(t_before)
        return here - next_step / last_step / (2 * t) * (denoised - denoised_before)

    return follow(slope, x, timesteps)


def log_odds(t: float) -> float:
    """Return λ = log((1 - t) / t), half the logarithm of the signal-to-noise ratio at t."""
    return math.log((1 - t) / t)


Solver = Callable[[Velocity, Array, np.ndarray], Iterator[Step]]
SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "midpoint": midpoint, "dpm++": dpm_solver}


def visited_timesteps(solver: Solver, timesteps: np.ndarray) -> list[float]:
    """List every t at which a solver evaluates the velocity, each once, found by letting it solve a single number."""
    visited: dict[float, None] = {}

    def velocity(x: Array, t: float) -> Array:
        visited[t] = None
        return x

    for _ in solver(velocity, np.zeros(1, np.float32), timesteps):
        pass
    return list(visited)
