"""Normal noise from a seed: PyTorch's own numbers, so that a seed means the same image everywhere."""

import math
import threading
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from minflux.backend import get_backend
from minflux.backend.bfloat16 import to_bfloat16
from minflux.errors import ArgumentError, quoted


def noise(seed: int, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Return standard normal numbers, those of torch.randn on the CPU from the same seed, to about 1e-6.

    A Mersenne Twister (MT19937) gives 32-bit integers, each of which becomes a uniform number in [0, 1). Box and
    Muller's formula makes two normals of two uniforms. PyTorch pairs the uniforms eight apart in blocks of 16. When the
    last block is broken, its 16 normals are made of fresh uniforms. Below 16 numbers it works in float64.

    dtype: "float32" or "bfloat16". In bfloat16 PyTorch draws no uniforms for a broken block on the first pass, so the
    last 16 numbers differ from float32's. They are returned as float32, which holds each bfloat16 exactly. One in
    400,000 is the bfloat16 next to PyTorch's, where an error of 1e-7 decides how to round.

    Raises `ArgumentError` for a seed outside 0 … 2^64 - 1, for what is no shape, and for another dtype. Source: PyTorch
    `aten/src/ATen/native/cpu/DistributionTemplates.h`.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ArgumentError(f"dtype must be 'float32' or 'bfloat16', got {quoted(dtype)}")
    count = math.prod(check_shape(shape))
    bits = _bits(check_seed(seed))
    if count < 16:
        normals = _few_normals(bits, count)
    else:
        normals = _many_normals(bits, count, first_pass=count if dtype == "float32" else _whole_blocks(count))
    return (_rounded(normals) if dtype == "bfloat16" else normals).reshape(shape)


def check_seed(seed: Any) -> int:
    """Return the seed, a whole number that PyTorch's generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise ArgumentError(f"seed must be a whole number from 0 to 2^64 - 1, got {quoted(seed)}")
    return int(seed)


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape, whole numbers of at least 0."""
    is_listed = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not is_listed or not all(map(_is_size, shape)):
        raise ArgumentError(f"shape must be a list or tuple of whole numbers of at least 0, got {quoted(shape)}")
    return tuple(shape)


def _is_size(n: Any) -> bool:
    """Return whether `n` is a whole number of at least 0."""
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 0


TWISTERS = threading.local()  # a Mersenne Twister for each thread: to make one takes 200 µs, to seed it 2


def _bits(seed: int) -> Callable[[int], np.ndarray]:
    """Seed this thread's Mersenne Twister as PyTorch does, with 32 bits; return its source of 32-bit integers."""
    if not hasattr(TWISTERS, "seeded"):
        TWISTERS.twister = np.random.MT19937(0)
        TWISTERS.seeded = np.random.RandomState(TWISTERS.twister)
    TWISTERS.seeded.seed(seed & 0xFFFFFFFF)
    return TWISTERS.twister.random_raw


def _whole_blocks(count: int) -> int:
    """Return how many of `count` numbers lie in whole blocks of 16."""
    return count - count % 16


def _many_normals(bits: Callable[[int], np.ndarray], count: int, first_pass: int) -> np.ndarray:
    """Make 16 normals or more of 24-bit uniforms, `first_pass` of which are drawn before those of a broken block."""
    normals = np.empty(count, np.float32)
    whole = _whole_blocks(count)
    uniforms = _uniform24(bits(first_pass))
    normals[:whole] = _box_muller_blocks(uniforms[:whole])
    if whole < count:
        normals[-16:] = _box_muller_blocks(_uniform24(bits(16)))
    return normals


def _uniform24(raw: np.ndarray) -> np.ndarray:
    """Make each integer's low 24 bits a float32 in [0, 1)."""
    low = (raw & 0xFFFFFF).astype(np.float32)
    return low * np.float32(2**-24)


def _box_muller_blocks(uniforms: np.ndarray) -> np.ndarray:
    """Make normals of uniforms that lie eight apart in blocks of 16."""
    u = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0]))
    angle = np.float32(2 * math.pi) * u[:, 1]
    return _box_muller(radius, angle)


def _box_muller(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return radius · cos(angle) and radius · sin(angle), a flat array, where radius is √(-2 ln(1 - u))."""
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    return np.stack([x, y], axis=1).ravel()


def _few_normals(bits: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Make up to 15 normals of 53-bit uniforms in float64."""
    pairs = (count + 1) // 2
    u = _uniform53(bits(4 * pairs)).reshape(pairs, 2)
    radius = np.sqrt(-2 * np.log1p(-u[:, 1]))
    angle = 2 * math.pi * u[:, 0]
    normals = _box_muller(radius, angle)
    return normals[:count].astype(np.float32)


def _uniform53(raw: np.ndarray) -> np.ndarray:
    """Make the low 53 bits of two integers each, the high one first, a float64 in [0, 1)."""
    high, low = raw.astype(np.uint64).reshape(-1, 2).T
    together = (high << np.uint64(32)) | low
    low_bits = together & np.uint64(2**53 - 1)
    return low_bits.astype(np.float64) * 2.0**-53


def _rounded(x: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, kept as float32."""
    return get_backend("numpy").from_bfloat16(to_bfloat16(x))
