"""Noise, times and steps: PyTorch's generator and diffusers' scheduler, number by number."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import example, given
from hypothesis import strategies as st

from minflux.errors import ArgumentError
from minflux.sampling.guidance import guided
from minflux.sampling.noise import noise
from minflux.sampling.solvers import euler
from minflux.sampling.timesteps import Schedule
from tests import compare

seeds = st.integers(0, 2**64 - 1)
DEV = Schedule(shift=3.0, use_dynamic_shifting=True)
schedules = st.one_of(
    st.builds(Schedule, shift=st.floats(0.3, 6)),
    st.builds(
        Schedule,
        shift=st.floats(0.3, 6),
        use_dynamic_shifting=st.just(True),
        base_shift=st.floats(0.1, 1),
        max_shift=st.floats(1, 2),
        base_image_seq_len=st.integers(1, 500),
        max_image_seq_len=st.integers(1000, 5000),
    ),
)


def scheduler_at(schedule: Schedule, steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler, told its times as FluxPipeline does it."""
    scheduler = FlowMatchEulerDiscreteScheduler(**asdict(schedule))
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler


# -- noise ---------------------------------------------------------------------------------------------------


def torch_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()


def torch_bfloat16(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16)


def assert_bfloat16(got: np.ndarray, expected: torch.Tensor) -> int:
    """Equal, or neighbours among the bfloat16 numbers; returns how many are not equal."""
    assert (got.dtype, got.shape) == (np.float32, tuple(expected.shape))
    bits = got.view(np.uint32)
    assert not (bits & 0xFFFF).any()  # a bfloat16 is a float32's upper half
    ours, theirs = (bits >> 16).astype(int), expected.view(torch.uint16).numpy().astype(int)
    signed = [np.where(x < 0x8000, x, 0x8000 - x) for x in (ours, theirs)]  # both zeros are 0
    apart = np.abs(signed[0] - signed[1])
    assert apart.max(initial=0) <= 1
    return int((apart > 0).sum())


@given(seeds)
@example(0)
@example(2**32 - 1)
@example(2**32)
@example(2**64 - 1)
def test_noise_is_that_of_torch_for_every_small_count(seed):
    """PyTorch draws fewer than 16 numbers one way, 16 and more another, and ends a broken block a third."""
    for count in range(1, 41):
        np.testing.assert_allclose(noise(seed, (count,)), torch_noise(seed, (count,)), rtol=1e-6, atol=1e-6)


@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
def test_noise_is_that_of_torch_in_every_shape(seed, shape):
    got = noise(seed, shape)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, torch_noise(seed, shape), rtol=1e-6, atol=1e-6, strict=True)


def test_noise_of_a_large_picture():
    """Half a million numbers: among them are the rare ones far from 0."""
    got, expected = noise(7, (1, 16, 181, 179)), torch_noise(7, (1, 16, 181, 179))
    assert np.abs(expected).max() > 4.4
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@given(seeds)
@example(0)
@example(2**64 - 1)
def test_noise_in_bfloat16_is_that_of_torch_for_every_small_count(seed):
    """Broken blocks, which begin elsewhere than in float32, included."""
    for count in range(0, 81):
        assert_bfloat16(noise(seed, (count,), "bfloat16"), torch_bfloat16(seed, (count,)))


@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
def test_noise_in_bfloat16_is_that_of_torch_in_every_shape(seed, shape):
    assert_bfloat16(noise(seed, shape, "bfloat16"), torch_bfloat16(seed, shape))


def test_noise_in_bfloat16_of_a_large_picture():
    """Of 30 million numbers (30 seeds) 72 were not equal; among these half million, 10 would be a wonder."""
    shape = (1, 16, 181, 179)
    assert assert_bfloat16(noise(7, shape, "bfloat16"), torch_bfloat16(7, shape)) < 10


@pytest.mark.parametrize("dtype", ["float16", "bf16", None, np.float32])
def test_noise_of_another_dtype(dtype):
    with pytest.raises(ArgumentError, match="dtype must be 'float32' or 'bfloat16', got"):
        noise(0, (4,), dtype)


def test_noise_depends_on_the_low_32_bits_of_the_seed_alone():
    """So it is in PyTorch: seeds 5 and 5 + 2^32 draw the same picture."""
    np.testing.assert_array_equal(noise(5, (20,)), noise(5 + 2**32, (20,)))
    np.testing.assert_array_equal(torch_noise(5, (20,)), torch_noise(5 + 2**32, (20,)))
    assert (noise(5, (20,)) != noise(6, (20,))).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_what_is_no_seed(seed):
    with pytest.raises(ArgumentError, match="seed must be a whole number"):
        noise(seed, (4,))


@pytest.mark.parametrize("shape", [(-1,), (1, -2), (2.0,), (True,), ("3",), (None,), 5, "12", None])
def test_shapes_that_are_none(shape):
    with pytest.raises(ArgumentError, match="shape must be a list or tuple of whole numbers of at least 0"):
        noise(1, shape)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), [3, 4], (np.int64(3), 5)])
def test_unusual_shapes(shape):
    np.testing.assert_allclose(noise(1, shape), torch_noise(1, tuple(map(int, shape))), atol=1e-6)


def test_threads_do_not_share_their_numbers():
    expected = [noise(seed, (500,)) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for got in zip(*pool.map(lambda seed: [noise(seed, (500,)) for _ in range(50)], range(8)), strict=True):
            np.testing.assert_array_equal(got, expected)


# -- times ---------------------------------------------------------------------------------------------------


@given(schedules, st.integers(1, 60), st.integers(1, 6000))
@example(Schedule(), 4, 4096)
@example(DEV, 28, 4096)
@example(DEV, 28, 256)
def test_times_are_the_schedulers(schedule, steps, tokens):
    got = schedule.times(steps, tokens)
    assert got.dtype == np.float32
    expected = scheduler_at(schedule, steps, tokens).sigmas.numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-6, strict=True)


def test_without_shift_the_steps_are_even():
    np.testing.assert_array_equal(Schedule().times(4, tokens=16), [1, 0.75, 0.5, 0.25, 0])


def test_a_larger_picture_spends_more_steps_near_the_noise():
    assert (DEV.times(10, tokens=4096)[1:-1] > DEV.times(10, tokens=256)[1:-1]).all()


# -- steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(shift=3.0), DEV], ids=["even", "shifted", "dynamic"])
def test_every_step_is_the_schedulers(nx, schedule):
    scheduler, x = scheduler_at(schedule, 5, tokens=4), torch.randn(2, 4, 4, 3)
    steps = euler(lambda x, t: nx.sin(3 * x) + t, nx.array(x.numpy()), schedule.times(5, tokens=4))
    for step, t, sigma in zip(steps, scheduler.timesteps, scheduler.sigmas, strict=False):
        v = torch.sin(3 * x) + sigma
        compare.assert_close(nx, step.predicted, x - sigma * v, compare.COMPONENT)
        x = scheduler.step(v, t, x, return_dict=False)[0]
        compare.assert_close(nx, step.x, x, compare.COMPONENT)
    assert (step.index, step.t) == (4, 0)


def test_on_a_straight_path_every_step_predicts_the_picture(nx):
    start, picture = torch.randn(2, 1, 4, 4, 3)
    velocity = nx.array((start - picture).numpy())
    steps = list(euler(lambda x, t: velocity, nx.array(start.numpy()), Schedule().times(7, tokens=4)))
    for step in steps:
        compare.assert_close(nx, step.predicted, picture, compare.COMPONENT)
        compare.assert_close(nx, step.x, (1 - step.t) * picture + step.t * start, compare.COMPONENT)


def test_x_stays_float32_when_the_model_computes_in_half(nx):
    half = nx.xp.float16
    steps = euler(lambda x, t: x.astype(half), nx.array(np.ones((1, 2, 2, 4), np.float32)), np.array([1, 0.5, 0]))
    assert [step.x.dtype for step in steps] == [nx.float32, nx.float32]


def test_guidance_goes_from_the_negative_past_the_positive(nx):
    v = nx.array(np.array([[1, 2], [0, 5]], np.float32))  # positive, then negative
    for scale, expected in ((1.0, [[1, 2]]), (0.0, [[0, 5]]), (3.0, [[3, -4]])):
        np.testing.assert_array_equal(nx.to_numpy(guided(v, scale)), expected)
