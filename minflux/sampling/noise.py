"""Normal noise from a seed: PyTorch's own numbers, so that a seed means the same image everywhere."""

import math
import threading
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from minflux.backend import get_backend
from minflux.backend.bfloat16 import to_bfloat16
from minflux.errors import ArgumentError


def noise(seed: int, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Draw standard normal numbers: the same as torch.randn's of that dtype on the CPU from that seed, to about 1e-6.

    A Mersenne Twister (MT19937) gives 32-bit integers; Box and Muller's formula makes two normals of two uniforms.
    PyTorch pairs the uniforms eight apart in blocks of 16, draws the last 16 numbers afresh when they don't fill a
    block, and below 16 numbers works in float64 with 53-bit uniforms. "bfloat16" rounds them, and draws nothing for a
    broken block before it is drawn afresh. float32 of `shape`: NumPy has no bfloat16, and float32 holds each of them
    exactly; one in 400,000 is PyTorch's neighbour, where 1e-7 decides how to round. Raises `ArgumentError` for a seed
    outside 0 … 2^64 - 1, a shape that is none, and another dtype. Source: PyTorch
    `aten/src/ATen/native/cpu/DistributionTemplates.h`.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ArgumentError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    count = math.prod(check_shape(shape))
    bits = _bits(check_seed(seed))
    drawn = count if dtype == "float32" else count // 16 * 16
    normals = _few_normals(bits, count) if count < 16 else _many_normals(bits, count, drawn)
    return (normals if dtype == "float32" else _rounded(normals)).reshape(shape)


def check_seed(seed: Any) -> int:
    """Return the seed, a whole number that PyTorch's generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise ArgumentError(f"seed must be a whole number from 0 to 2^64 - 1, got {seed!r}")
    return int(seed)


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape, whole numbers of at least 0."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (None,)
    if not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 0 for n in sizes):
        raise ArgumentError(f"shape must be a list or tuple of whole numbers of at least 0, got {shape!r}")
    return sizes


TWISTERS = threading.local()  # a Mersenne Twister for each thread: to make one takes 200 µs, to seed it 2


def _bits(seed: int) -> Callable[[int], np.ndarray]:
    """Seed this thread's Mersenne Twister as PyTorch does, with 32 bits; return its source of 32-bit integers."""
    if not hasattr(TWISTERS, "seeded"):
        TWISTERS.twister = np.random.MT19937(0)
        TWISTERS.seeded = np.random.RandomState(TWISTERS.twister)
    TWISTERS.seeded.seed(seed & 0xFFFFFFFF)
    return TWISTERS.twister.random_raw


def _many_normals(bits: Callable[[int], np.ndarray], count: int, drawn: int) -> np.ndarray:
    """Make `count` >= 16 normals of 24-bit uniforms, of which `drawn` come before the last 16 are drawn afresh."""
    normals = np.empty(count, np.float32)
    whole = count // 16 * 16
    normals[:whole] = _box_muller_blocks(_uniform24(bits(drawn))[:whole])
    if whole < count:
        normals[-16:] = _box_muller_blocks(_uniform24(bits(16)))
    return normals


def _uniform24(raw: np.ndarray) -> np.ndarray:
    """Keep the low 24 bits as a float32 in [0, 1)."""
    return (raw & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller_blocks(uniforms: np.ndarray) -> np.ndarray:
    """√(-2 ln(1 - u)) times cos and sin of 2π u', where u and u' lie eight apart in blocks of 16."""
    u = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0]))
    angle = np.float32(2 * math.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


def _few_normals(bits: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Make up to 15 normals of 53-bit uniforms, each of two integers, the high one first."""
    raw = bits(4 * ((count + 1) // 2)).astype(np.uint64).reshape(-1, 2, 2)
    u = (((raw[..., 0] << np.uint64(32)) | raw[..., 1]) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, 1])), 2 * math.pi * u[:, 0]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count].astype(np.float32)


def _rounded(x: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, kept as float32."""
    return get_backend("numpy").from_bfloat16(to_bfloat16(x))
