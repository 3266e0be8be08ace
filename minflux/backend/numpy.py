"""NumPy: the definitions of `base.py`, the costly ones written anew for a processor's caches and cores.

A definition makes a new array of its input's size for every sign in its formula, each too large for a cache, on one
core. Here a core takes a chunk of rows that fits into its cache, works on it in place, and goes on to the next, while
the other cores do the same (`threads.py`). The formulas are those of `base.py`, and the tests compare the two.
"""

import functools
import math
from collections.abc import Callable
from itertools import product

import numpy as np

from minflux.backend.base import GELU_TANH, Backend
from minflux.backend.threads import parallel_for, thread_count

CHUNK = 1 << 16  # numbers in a chunk: 256 KB, so that a chunk and its result stay in a core's own cache
SMALL = 1 << 19  # an array of up to so many numbers is one chunk: waking the other cores takes longer
LOGITS = 1 << 18  # numbers in a chunk of attention's logits
PIXELS = 1 << 10  # pixels in a chunk of a convolution


class ReadableNumPyBackend(Backend):
    """NumPy, running the definitions of `base.py` as they stand."""

    name = module = "numpy"

    def array(self, x, dtype=None):
        """Make a NumPy array; Python floats and MLX's bfloat16 become float32."""
        if type(x).__module__.startswith("mlx"):
            from minflux.backend import get_backend

            x = get_backend("mlx").to_numpy(x)
        if dtype is None and not isinstance(x, np.ndarray):
            x = np.asarray(x)
            dtype = np.float32 if x.dtype == np.float64 else x.dtype
        return np.asarray(x, dtype=dtype)

    def from_bfloat16(self, bits):
        """Widen to float32, exactly: a bfloat16 is a float32's upper half."""
        wide = bits.astype(np.uint32)
        wide <<= 16  # in place, for matrices are large
        return wide.view(np.float32)

    def to_numpy(self, x):
        """Return `x` itself."""
        return x


def in_float32(op):
    """Run this op on float32 arrays, and its definition in `base.py` on arrays of other dtypes."""

    @functools.wraps(op)
    def either(self, x, *args, **kwargs):
        if x.dtype == np.float32:
            return op(self, x, *args, **kwargs)
        return getattr(ReadableNumPyBackend, op.__name__)(self, x, *args, **kwargs)

    return either


class NumPyBackend(ReadableNumPyBackend):
    """NumPy, in chunks that fit into a core's cache, on all cores."""

    # -- activations -------------------------------------------------------------------------------------------

    @in_float32
    def silu(self, x):
        """Compute x / (1 + exp(-x)); where exp overflows, the result is 0, as it should be."""

        def silu(x, y):
            np.exp(np.negative(x, out=y), out=y)
            y += 1
            np.divide(x, y, out=y)

        return elementwise(silu, x)

    @in_float32
    def gelu(self, x):
        """Compute x / (1 + exp(-2u)) with u = √(2/π) · (x + 0.044715 x³), which equals x/2 · (1 + tanh u)."""

        def gelu(x, y):
            np.multiply(x, x, out=y)
            y *= -2 * GELU_TANH * 0.044715
            y -= 2 * GELU_TANH
            y *= x
            np.exp(y, out=y)
            y += 1
            np.divide(x, y, out=y)

        return elementwise(gelu, x)

    # -- norms -------------------------------------------------------------------------------------------------

    @in_float32
    def layer_norm(self, x, scale=None, bias=None, eps=1e-6):
        """Compute (x - mean) / √(var + eps) · scale + bias over the last axis, a chunk of rows at a time."""

        def norm(x, y):
            np.subtract(x, x.mean(axis=-1, keepdims=True), out=y)
            y /= np.sqrt(mean_square(y) + eps)
            if scale is not None:
                y *= scale
            if bias is not None:
                y += bias

        return rowwise(norm, x)

    @in_float32
    def rms_norm(self, x, scale, eps=1e-6):
        """Compute x / √(mean(x²) + eps) · scale over the last axis, a chunk of rows at a time."""

        def norm(x, y):
            np.divide(x, np.sqrt(mean_square(x) + eps), out=y)
            y *= scale

        return rowwise(norm, x)

    @in_float32
    def group_norm(self, x, groups, scale, bias, eps=1e-6):
        """Compute (x - mean) · factor + bias with one mean and one factor for every channel, from its group's sums."""
        batch, channels = x.shape[0], x.shape[-1]
        pixels = x.reshape(batch, -1, channels)

        def group_mean(sums):  # of each channel (B, C) -> the mean over the channel's group (B, 1, C)
            means = sums.reshape(batch, groups, -1).mean(axis=-1) / pixels.shape[1]
            return np.repeat(means, channels // groups, axis=-1)[:, None].astype(np.float32)

        mean = group_mean(sum_over_chunks(lambda x: x.sum(axis=1), pixels))
        variance = group_mean(sum_over_chunks(lambda x: np.square(x - mean).sum(axis=1), pixels))
        factor = scale / np.sqrt(variance + eps)

        def norm(x, y):
            np.subtract(x, mean, out=y)
            y *= factor
            y += bias

        return rowwise(norm, pixels).reshape(x.shape)

    # -- attention ---------------------------------------------------------------------------------------------

    @in_float32
    def rotate(self, x, cos, sin):
        """Turn each pair (a, b) by its angle as one complex product, (a + ib) · (cos + i sin)."""
        turns = cos + 1j * sin  # complex64

        def turn(x, y, turns):
            np.multiply(x.view(np.complex64), turns, out=y.view(np.complex64))

        return rowwise(turn, x, turns)

    @in_float32
    def attention(self, q, k, v, scale=None, bias=None):
        """Process a chunk of queries of one head at a time, so that the full (L, M) logits are never allocated."""
        batch, heads, length, width = q.shape
        scale = np.float32(1 / math.sqrt(width) if scale is None else scale)
        if bias is not None:
            bias = np.broadcast_to(bias, (batch, heads, length, k.shape[2]))
        out = np.empty((batch, length, heads, width), q.dtype).swapaxes(1, 2)  # so that `merge_heads` copies nothing
        rows = max(1, LOGITS // k.shape[2])

        def attend(piece: tuple[int, int, int]) -> None:
            image, head, first = piece
            chunk = image, head, slice(first, first + rows)
            logits = (q[chunk] * scale) @ k[image, head].T
            if bias is not None:
                logits += bias[chunk]
            logits -= logits.max(axis=-1, keepdims=True)
            np.exp(logits, out=logits)
            out[chunk] = logits @ v[image, head]
            out[chunk] /= logits.sum(axis=-1, keepdims=True)

        parallel_for(attend, product(range(batch), range(heads), range(0, length, rows)))
        return out

    # -- images ------------------------------------------------------------------------------------------------

    @in_float32
    def conv2d(self, x, weight, bias, stride=1, padding=0):
        """Add up the definition's shifted products, on an image that is one long row of pixels.

        A shift by i rows and j columns is then a shift by i · width + j pixels, so no window is copied before it is
        multiplied. At the ends of the rows the windows reach around the edge, and what comes of those is dropped.
        """
        if stride != 1:
            return super().conv2d(x, weight, bias, stride, padding)
        x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        batch, height, width, channels = x.shape
        outputs, size = weight.shape[:2]
        pixels = x.reshape(-1, channels)
        shifts = [(i * width + j, weight[:, i, j].T) for i in range(size) for j in range(size)]
        y = np.empty((batch, height - size + 1, width - size + 1, outputs), np.float32)
        rows = max(1, min(PIXELS // width, y.shape[1] // thread_count()))

        def convolve(piece: tuple[int, int]) -> None:
            image, top = piece
            part = y[image, top : top + rows]
            sums = np.empty((len(part), width, outputs), np.float32)
            windows = sums.reshape(-1, outputs)[: len(part) * width - size + 1]  # the last would reach out of the image
            add_shifted_products(windows, pixels[(image * height + top) * width :], shifts, bias)
            part[:] = sums[:, : width - size + 1]

        parallel_for(convolve, product(range(batch), range(0, y.shape[1], rows)))
        return y


def add_shifted_products(y: np.ndarray, x: np.ndarray, shifts: list[tuple[int, np.ndarray]], bias: np.ndarray) -> None:
    """Set y[p] = bias + Σ x[p + shift] · matrix over all (shift, matrix), for the pixels p of y (P, O)."""
    y[:] = bias
    term = np.empty_like(y)
    for shift, matrix in shifts:
        y += np.matmul(x[shift : shift + len(y)], matrix, out=term)


# -- chunks ----------------------------------------------------------------------------------------------------


def rowwise(task: Callable, x: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """Return y, shaped like x, filled by task(x, y, *more) on chunks of all arrays, cut along the last axis but one."""
    if x.strides[-1] != x.itemsize or 0 in x.strides:  # a transposed or a broadcast array
        x = np.ascontiguousarray(x)
    arrays = [np.atleast_2d(a) for a in (x, np.empty_like(x), *more)]
    length = arrays[0].shape[-2]
    rows = max(1, CHUNK * length // x.size if x.size > SMALL else length)

    def fill(first: int) -> None:
        task(*(a[..., first : first + rows, :] for a in arrays))

    parallel_for(fill, range(0, length, rows))
    return arrays[1].reshape(x.shape)


def elementwise(task: Callable, x: np.ndarray) -> np.ndarray:
    """Return y, shaped like x, filled by task(x, y) on chunks of any shape; exp may overflow in the task."""

    def quietly(x, y):
        with np.errstate(over="ignore"):  # holds for one thread
            task(x, y)

    return rowwise(quietly, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def sum_over_chunks(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return Σ f(chunk) over chunks of x (B, N, C), cut along N; f returns (B, C).

    An image's sums are the same to the bit whatever else is in the batch.
    """
    step = max(1, CHUNK // x.shape[2])
    sums = [np.empty(0)] * math.ceil(x.shape[1] / step)

    def add_up(i: int) -> None:
        sums[i] = f(x[:, i * step : (i + 1) * step])

    parallel_for(add_up, range(len(sums)))
    return np.stack(sums).sum(axis=0, dtype=np.float64)


def mean_square(x: np.ndarray) -> np.ndarray:
    """Return mean(x²) over the last axis, which stays with length 1."""
    return np.vecdot(x, x)[..., None] / x.shape[-1]
