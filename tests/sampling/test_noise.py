"""Noise: PyTorch's own numbers, from a seed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from minflux.errors import ArgumentError
from minflux.sampling.noise import noise

seeds = st.integers(0, 2**64 - 1)


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
