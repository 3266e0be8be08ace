"""Networks that predict noise: diffusers' DDPM and DDIM schedulers, step by step, by the house's own solvers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from minflux.errors import ArgumentError
from minflux.sampling.ddpm import NoiseSchedule, ddim, noise_as_velocity, radius
from minflux.sampling.solvers import SOLVERS, dpm_solver, euler
from tests import compare

COSINE, SCALED = NoiseSchedule(), NoiseSchedule("scaled_linear", timestep_spacing="leading")
BETAS = {"cosine": "squaredcos_cap_v2", "scaled_linear": "scaled_linear"}
SHAPE = (2, 4, 4, 3)

each_schedule = pytest.mark.parametrize("schedule", [COSINE, SCALED], ids=lambda schedule: schedule.shape)


def scheduler_of(kind, schedule: NoiseSchedule, **settings):
    """diffusers' scheduler of the same schedule.

    Its steps are taken in float64: in float32, of its 1 - ᾱ / ᾱ_next three digits are left where there is little noise.
    """
    theirs = kind(
        beta_schedule=BETAS[schedule.shape],
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        timestep_spacing=schedule.timestep_spacing,
        **settings,
    )
    for name in ("alphas_cumprod", "final_alpha_cumprod"):
        if hasattr(theirs, name):
            setattr(theirs, name, getattr(theirs, name).double())
    return theirs


def predicted(x, n):
    """A noise that depends on x and n, for NumPy, MLX and PyTorch."""
    return x / (1 + x * x) + n / 1000


def moved(nx, schedule, solver, x: torch.Tensor, t: float, t_next: float, clip=None):
    """Take one step with a solver from diffusers' x, and return diffusers' next x and what was aimed at."""
    z = nx.array((x * radius(t)).float().numpy())
    (step,) = solver(noise_as_velocity(predicted, schedule, clip), z, np.array([t, t_next]))
    return step.x / radius(t_next), step.denoised


# -- the schedule --------------------------------------------------------------------------------------------


@each_schedule
def test_levels_are_the_schedulers(schedule):
    theirs = scheduler_of(DDPMScheduler, schedule)
    np.testing.assert_allclose(schedule.betas, theirs.betas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(schedule.levels, theirs.alphas_cumprod.numpy(), rtol=1e-6)


@given(st.integers(1, 1000), st.sampled_from(["leading", "trailing"]))
@example(250, "trailing")
@example(7, "trailing")
def test_stops_are_the_schedulers(steps, spacing):
    schedule = NoiseSchedule("scaled_linear", timestep_spacing=spacing)
    for kind in (DDPMScheduler, DDIMScheduler):
        theirs = scheduler_of(kind, schedule)
        theirs.set_timesteps(steps)
        np.testing.assert_array_equal(schedule.stops(steps), theirs.timesteps.numpy())


@each_schedule
def test_times_are_the_flow_s(schedule):
    """√ᾱ = (1 - t) / r and √(1 - ᾱ) = t / r; each time leads back to its n."""
    for n in (0, 1, 500, 998, 999):
        t = float(schedule.times[n])
        assert ((1 - t) / radius(t)) ** 2 == pytest.approx(schedule.levels[n], rel=1e-9)
        assert schedule.step_at(t) == n
    between = (schedule.times[10] + schedule.times[11]) / 2
    assert schedule.step_at(between) == pytest.approx(10.5)
    assert (schedule.step_at(0.0), schedule.step_at(1.0)) == (0, 999)
    assert (np.diff(schedule.timesteps(20)) < 0).all()
    assert schedule.timesteps(20)[-1] == 0


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_nobody_trained(steps):
    with pytest.raises(ArgumentError, match="steps must be 1 to 1000"):
        COSINE.stops(steps)


@pytest.mark.parametrize("wrong", [{"shape": "linear"}, {"timestep_spacing": "linspace"}])
def test_schedules_that_there_are_not(wrong):
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be one of"):
        NoiseSchedule(**wrong)


# -- steps ---------------------------------------------------------------------------------------------------


def allowed(t: float, clip: float | None, entries: int) -> float:
    """Near noise x₀ = x - t v is t / (1 - t) times as large as x, and so is its rounding.

    Where it is clipped to a few units, an entry that happens to lie within them keeps that error beside `entries` small
    ones: a relative error of some 2⁻²² t / (1 - t) / √entries more.
    """
    return compare.COMPONENT + (2**-22 * t / (1 - t) / entries**0.5 if clip else 0)


@each_schedule
@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize(("steps", "eta"), [(4, 0.0), (20, 0.0), (20, 1.0), (50, 0.6), (250, 0.3)])
def test_every_step_of_ddim_is_diffusers(nx, schedule, steps, eta, clip):
    theirs = scheduler_of(DDIMScheduler, schedule, clip_sample=clip is not None, clip_sample_range=clip or 1.0)
    theirs.set_timesteps(steps)
    x, times = torch.randn(SHAPE, dtype=torch.float64), schedule.timesteps(steps)
    for i in sorted({0, 1, steps // 2, steps - 2, steps - 1}):
        n, fresh = int(theirs.timesteps[i]), torch.randn(SHAPE, dtype=torch.float64)
        how = {"eta": eta, "use_clipped_model_output": clip is not None, "variance_noise": fresh if eta else None}
        expected = theirs.step(predicted(x, n), n, x, **how)
        solver = ddim(eta, lambda step, fresh=fresh: nx.array(fresh.float().numpy()))
        got, denoised = moved(nx, schedule, solver, x, *map(float, times[i : i + 2]), clip)
        tolerance = allowed(float(times[i]), clip, x.numel())
        compare.assert_close(nx, got, expected.prev_sample, tolerance)
        compare.assert_close(nx, denoised, expected.pred_original_sample, tolerance)


@each_schedule
@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("n", [999, 998, 500, 3, 1, 0])
def test_ancestral_steps_are_diffusers_ddpm(nx, schedule, n, clip):
    """All 1000 steps, η = 1."""
    theirs = scheduler_of(DDPMScheduler, schedule, clip_sample=clip is not None, clip_sample_range=clip or 1.0)
    theirs.set_timesteps(1000)
    x, times = torch.randn(SHAPE, dtype=torch.float64), np.append(schedule.times[::-1], 0)
    expected = theirs.step(predicted(x, n), n, x, generator=torch.Generator().manual_seed(5)).prev_sample
    fresh = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    solver = ddim(1.0, lambda step: nx.array(fresh.float().numpy()))
    got, _ = moved(nx, schedule, solver, x, *map(float, times[999 - n : 1001 - n]), clip)
    compare.assert_close(nx, got, expected, allowed(float(times[999 - n]), clip, x.numel()))


@each_schedule
def test_euler_on_predicted_noise_is_ddim_without_new_noise(nx, schedule):
    """The whole way, in 20 steps, against diffusers' DDIM."""
    theirs = scheduler_of(DDIMScheduler, schedule, clip_sample=True, clip_sample_range=2.0)
    theirs.set_timesteps(20)
    times, x = schedule.timesteps(20), torch.randn(SHAPE, dtype=torch.float64)
    z = nx.array((x * radius(float(times[0]))).float().numpy())
    steps = euler(noise_as_velocity(predicted, schedule, 2.0), z, times)
    for step, n in zip(steps, theirs.timesteps, strict=True):
        x = theirs.step(predicted(x, int(n)), n, x, use_clipped_model_output=True).prev_sample
        compare.assert_close(nx, step.x / radius(step.t), x, compare.MODEL)
    assert (step.index, step.t) == (19, 0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_dpm_solver_on_predicted_noise_is_diffusers(nx):
    theirs = scheduler_of(DPMSolverMultistepScheduler, SCALED, final_sigmas_type="zero")
    theirs.set_timesteps(6)
    stops = theirs.timesteps.numpy()
    times, x = np.append(SCALED.times[stops], 0), torch.randn(SHAPE, dtype=torch.float64)
    z = nx.array((x * radius(float(times[0]))).float().numpy())
    steps = dpm_solver(noise_as_velocity(predicted, SCALED), z, times)
    for step, n in zip(steps, theirs.timesteps, strict=True):
        x = theirs.step(predicted(x, int(n)), n, x).prev_sample
        compare.assert_close(nx, step.x / radius(step.t), x, compare.MODEL)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_image_of_a_network_that_knows_it(nx, solver):
    """ε = (x - √ᾱ x₀) / √(1 - ᾱ) for one x₀: from any noise the way leads there."""
    image = nx.array(np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32))

    def known(x, n):
        level = np.interp(n, np.arange(1000), COSINE.levels)
        return (x - math.sqrt(level) * image) / math.sqrt(1 - level)

    *_, last = SOLVERS[solver](noise_as_velocity(known, COSINE), nx.array(np.ones(SHAPE, np.float32)), [0.9, 0.5, 0])
    compare.assert_close(nx, last.x, torch.from_numpy(nx.to_numpy(image)), 1e-3)


def test_new_noise_on_a_flow_s_velocity(nx):
    """Any velocity will do; on a straight path each step keeps to the path, with another noise."""
    image, start, fresh = (nx.array(np.full(SHAPE, value, np.float32)) for value in (1.0, 3.0, -2.0))
    steps = ddim(1.0, lambda i: fresh)(lambda x, t: (x - image) / t, start, np.array([1, 0.5, 0]))
    first, last = steps
    np.testing.assert_allclose(nx.to_numpy(first.x), 0.5 * 1 + 0.5 * -2, rtol=1e-6)
    np.testing.assert_allclose(nx.to_numpy(last.x), 1, rtol=1e-6)
