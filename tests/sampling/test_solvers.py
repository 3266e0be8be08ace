"""Solvers: diffusers' step by step, and each as exact as its order says."""

import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler

from minflux.sampling.solvers import SOLVERS, dpm_solver, euler, heun, visited_timesteps
from minflux.sampling.timesteps import Schedule
from tests import compare
from tests.sampling.schedulers import DEV, scheduler_at

ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "dpm++": 2}
START = np.linspace(0.1, 0.9, 17, dtype=np.float32)


def bent(x, t):
    """A velocity whose path is known: dx/dt = (1 + sin 4t) · x · (1 - x), for NumPy, MLX and PyTorch."""
    return (1 + math.sin(4 * t)) * x * (1 - x)


def exact(start: np.ndarray, t: float, t_next: float) -> np.ndarray:
    """Follow `bent` exactly: x / (1 - x) grows by exp(∫ (1 + sin 4t) dt)."""
    growth = (t_next - math.cos(4 * t_next) / 4) - (t - math.cos(4 * t) / 4)
    odds = start.astype(np.float64) / (1 - start) * math.exp(growth)
    return odds / (1 + odds)


def error(nx, solver: str, steps: int, t: float, t_next: float) -> float:
    """Follow `bent` in even steps, and return the largest error at the end."""
    *_, last = SOLVERS[solver](bent, nx.array(START), np.linspace(t, t_next, steps + 1))
    return np.abs(nx.to_numpy(last.x) - exact(START, t, t_next)).max()


# -- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_halving_the_steps_divides_the_error_by_2_to_the_order(nx, solver):
    """Away from t = 0 and t = 1, where DPM-Solver's λ is infinite and its order is reached slowly."""
    coarse, fine = (error(nx, solver, steps, 0.9, 0.1) for steps in (64, 128))
    assert abs(math.log2(coarse / fine) - ORDERS[solver]) < 0.15


@pytest.mark.parametrize("solver", [name for name, order in ORDERS.items() if order > 1])
def test_a_higher_order_is_closer_than_euler_with_twice_its_steps(nx, solver):
    assert error(nx, solver, 16, 1, 0) < error(nx, "euler", 32, 1, 0) / 2


# -- diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(shift=3.0), DEV], ids=["even", "shifted", "dynamic"])
def test_every_step_is_the_schedulers(nx, schedule):
    scheduler, x = scheduler_at(schedule, 5, tokens=4), torch.randn(2, 4, 4, 3)
    steps = euler(lambda x, t: nx.sin(3 * x) + t, nx.array(x.numpy()), schedule.timesteps(5, tokens=4))
    for step, t, sigma in zip(steps, scheduler.timesteps, scheduler.sigmas, strict=False):
        v = torch.sin(3 * x) + sigma
        compare.assert_close(nx, step.denoised, x - sigma * v, compare.COMPONENT)
        x = scheduler.step(v, t, x, return_dict=False)[0]
        compare.assert_close(nx, step.x, x, compare.COMPONENT)
    assert (step.index, step.t) == (4, 0)


def test_on_a_straight_path_every_step_aims_at_the_image(nx):
    start, image = torch.randn(2, 1, 4, 4, 3)
    velocity = nx.array((start - image).numpy())
    steps = list(euler(lambda x, t: velocity, nx.array(start.numpy()), Schedule().timesteps(7, tokens=4)))
    for step in steps:
        compare.assert_close(nx, step.denoised, image, compare.COMPONENT)
        compare.assert_close(nx, step.x, (1 - step.t) * image + step.t * start, compare.COMPONENT)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_step_of_heun_is_diffusers(nx, shift):
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    x, timesteps = torch.rand(2, 4, 4, 3), np.append(np.unique(scheduler.sigmas)[:0:-1], 0)
    steps = list(heun(bent, nx.array(x.numpy()), timesteps))
    expected = []
    for t in scheduler.timesteps:
        x = scheduler.step(bent(x, t / 1000), t, x, return_dict=False)[0]
        if scheduler.state_in_first_order:
            expected.append(x)
    expected.append(x)  # the last step is Euler's
    for step, theirs in zip(steps, expected, strict=True):
        compare.assert_close(nx, step.x, theirs, compare.COMPONENT)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize(("shift", "count"), [(1.0, 2), (1.0, 6), (3.0, 20)])
def test_every_step_of_dpm_solver_is_diffusers(nx, shift, count):
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    scheduler = DPMSolverMultistepScheduler(**flow)
    scheduler.set_timesteps(count)
    x, sigmas = torch.rand(2, 4, 4, 3), scheduler.sigmas
    steps = dpm_solver(bent, nx.array(x.numpy()), sigmas.numpy())
    for step, t, sigma in zip(steps, scheduler.timesteps, sigmas[:-1], strict=True):
        x = scheduler.step(bent(x, sigma), t, x, return_dict=False)[0]
        compare.assert_close(nx, step.x, x, compare.COMPONENT)


# -- what they share -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_step_arrives_where_it_was_aiming(nx, solver):
    *_, last = SOLVERS[solver](bent, nx.array(np.ones((1, 2, 2, 3), np.float32)), Schedule().timesteps(4, 16))
    assert (last.index, last.t) == (3, 0)
    compare.assert_close(nx, last.denoised, torch.from_numpy(nx.to_numpy(last.x)), compare.COMPONENT)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("timesteps", [[1, 0.5, 0], [0.7, 0.2], [1, 0.3]])
def test_the_timesteps_may_begin_and_end_anywhere(solver, timesteps):
    steps = list(SOLVERS[solver](bent, np.ones((1, 2), np.float32), np.array(timesteps)))
    assert [step.t for step in steps] == timesteps[1:]
    assert np.isfinite(steps[-1].x).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_step_is_yielded_before_the_next_is_computed(solver):
    seen = []
    steps = SOLVERS[solver](lambda x, t: seen.append(t) or x, np.ones(2, np.float32), np.array([1, 0.6, 0.3, 0]))
    next(steps)
    assert min(seen) >= 0.6


def test_what_a_solver_visits():
    timesteps = np.array([1, 0.5, 0.25, 0])
    assert visited_timesteps(euler, timesteps) == [1, 0.5, 0.25]
    assert visited_timesteps(dpm_solver, timesteps) == [1, 0.5, 0.25]
    assert visited_timesteps(heun, timesteps) == [1, 0.5, 0.25]
    assert visited_timesteps(SOLVERS["midpoint"], timesteps) == [1, 0.75, 0.5, 0.375, 0.25, 0.125]


@pytest.mark.parametrize("solver", SOLVERS)
def test_x_stays_float32_when_the_model_computes_in_half(nx, solver):
    half, x = nx.xp.float16, nx.array(np.ones((1, 2, 2, 4), np.float32))
    steps = list(SOLVERS[solver](lambda x, t: x.astype(half), x, np.array([1, 0.6, 0.3, 0])))
    assert all(step.x.dtype == nx.float32 and step.denoised.dtype == nx.float32 for step in steps)
