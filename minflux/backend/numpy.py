"""NumPy: the definitions of `base.py`, the costly ones written anew for a processor's caches and cores.

A definition makes a new array of its input's size for every sign in its formula, each too large for a cache, on one
core. Here a core takes a chunk of rows that fits into its cache, works on it in place, and goes on to the next, while
the other cores do the same (`threads.py`). The formulas are those of `base.py`, and the tests compare the two.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from minflux.backend.base import GELU_TANH, Backend
from minflux.backend.threads import count, each

CHUNK = 1 << 16  # numbers of a chunk: 256 KB, so that with what is made of it, it stays in a core's own cache
SMALL = 1 << 19  # numbers that are worked on in one piece: waking the other cores takes longer
LOGITS = 1 << 18  # of a chunk of attention
PIXELS = 1 << 10  # of a chunk of a convolution


class ReadableNumPyBackend(Backend):
    """Runs `base.py` on NumPy arrays as it stands."""

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
        wide <<= 16  # in place: matrices are large
        return wide.view(np.float32)

    def to_numpy(self, x):
        """Return `x` itself."""
        return x


def in_float32(op):
    """Run `op` on float32 alone; other dtypes are left to the definition."""

    @functools.wraps(op)
    def either(self, x, *args, **kwargs):
        if x.dtype == np.float32:
            return op(self, x, *args, **kwargs)
        return getattr(ReadableNumPyBackend, op.__name__)(self, x, *args, **kwargs)

    return either


class NumPyBackend(ReadableNumPyBackend):
    """NumPy in chunks, on all cores."""

    # -- activations -------------------------------------------------------------------------------------------

    @in_float32
    def silu(self, x):
        """x / (1 + exp(-x)); where exp overflows, that is 0, as it should be."""

        def silu(x, y):
            np.exp(np.negative(x, out=y), out=y)
            y += 1
            np.divide(x, y, out=y)

        return elementwise(silu, x)

    @in_float32
    def gelu(self, x):
        """x / (1 + exp(-2u)) with u = √(2/π) · (x + 0.044715 x³): the same as x/2 · (1 + tanh u)."""

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
        """The definition, in place."""

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
        """The definition, in place."""

        def norm(x, y):
            np.divide(x, np.sqrt(mean_square(x) + eps), out=y)
            y *= scale

        return rowwise(norm, x)

    @in_float32
    def group_norm(self, x, groups, scale, bias, eps=1e-6):
        """Every channel's sums first; then (x - mean) · factor + bias, with one of each for every channel."""
        batch, channels = x.shape[0], x.shape[-1]
        pixels = x.reshape(batch, -1, channels)

        def over_group(sums):  # of channels (B, C) -> the mean of the channel's group (B, 1, C)
            means = sums.reshape(batch, groups, -1).mean(axis=-1) / pixels.shape[1]
            return np.repeat(means, channels // groups, axis=-1)[:, None].astype(np.float32)

        mean = over_group(summed(lambda x: x.sum(axis=1), pixels))
        variance = over_group(summed(lambda x: np.square(x - mean).sum(axis=1), pixels))
        factor = scale / np.sqrt(variance + eps)

        def norm(x, y):
            np.subtract(x, mean, out=y)
            y *= factor
            y += bias

        return rowwise(norm, pixels).reshape(x.shape)

    # -- attention ---------------------------------------------------------------------------------------------

    @in_float32
    def rotate(self, x, cos, sin):
        """A pair is a complex number, and turning it a product: (a + ib) · (cos + i sin)."""
        turns = cos + 1j * sin  # complex64

        def turn(x, y, turns):
            np.multiply(x.view(np.complex64), turns, out=y.view(np.complex64))

        return rowwise(turn, x, turns)

    @in_float32
    def attention(self, q, k, v, scale=None, bias=None):
        """Some queries of a head at a time: their logits stay in the cache, and all (L, M) are never there."""
        batch, heads, length, width = q.shape
        scale = 1 / math.sqrt(width) if scale is None else scale
        bias = None if bias is None else np.broadcast_to(bias, (batch, heads, length, k.shape[2]))
        out = np.empty((batch, length, heads, width), q.dtype).swapaxes(1, 2)  # so that `merge_heads` copies nothing
        rows = max(1, LOGITS // k.shape[2])
        blocks = math.ceil(length / rows)

        def attend(piece: int) -> None:
            of, block = divmod(piece, blocks)
            head = divmod(of, heads)
            some = (*head, slice(block * rows, (block + 1) * rows))
            logits = (q[some] * np.float32(scale)) @ k[head].T
            if bias is not None:
                logits += bias[some]
            logits -= logits.max(axis=-1, keepdims=True)
            np.exp(logits, out=logits)
            out[some] = logits @ v[head]
            out[some] /= logits.sum(axis=-1, keepdims=True)

        each(attend, batch * heads * blocks)
        return out

    # -- pictures ----------------------------------------------------------------------------------------------

    @in_float32
    def conv2d(self, x, weight, bias, stride=1, padding=0):
        """The definition's shifted products, with the picture as one long row of pixels.

        A shift by i rows and j columns is one by i · width + j pixels, so what is multiplied is never copied. What
        comes out at the ends of the rows, where windows reach around the edge, is left behind.
        """
        if stride != 1:
            return super().conv2d(x, weight, bias, stride, padding)
        x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        batch, height, width, channels = x.shape
        outputs, size = weight.shape[:2]
        pixels = x.reshape(-1, channels)
        shifts = [(i * width + j, weight[:, i, j].T) for i in range(size) for j in range(size)]
        y = np.empty((batch, height - size + 1, width - size + 1, outputs), np.float32)
        rows = max(1, min(PIXELS // width, y.shape[1] // count()))
        blocks = math.ceil(y.shape[1] / rows)

        def convolve(piece: int) -> None:
            picture, block = divmod(piece, blocks)
            part = y[picture, block * rows : (block + 1) * rows]
            first, length = (picture * height + block * rows) * width, len(part) * width - size + 1
            whole, product = (np.empty((n, outputs), np.float32) for n in (len(part) * width, length))
            whole[:length] = bias
            for shift, matrix in shifts:
                whole[:length] += np.matmul(pixels[first + shift : first + shift + length], matrix, out=product)
            part[:] = whole.reshape(len(part), width, outputs)[:, : width - size + 1]

        each(convolve, batch * blocks)
        return y


# -- chunks ----------------------------------------------------------------------------------------------------


def rowwise(task: Callable, x: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """Make an array y like x by task(x, y, *more) on chunks of them all, cut along the last axis but one."""
    if x.strides[-1] != x.itemsize or 0 in x.strides:  # a transposed or a broadcast array
        x = np.ascontiguousarray(x)
    arrays = [np.atleast_2d(a) for a in (x, np.empty_like(x), *more)]
    length = arrays[0].shape[-2]
    step = max(1, CHUNK * length // x.size if x.size > SMALL else length)

    def some(i: int) -> None:
        task(*(a[..., i * step : (i + 1) * step, :] for a in arrays))

    each(some, math.ceil(length / step))
    return arrays[1].reshape(x.shape)


def elementwise(task: Callable, x: np.ndarray) -> np.ndarray:
    """The same for a task that knows no rows; exp may overflow in it."""

    def quietly(x, y):
        with np.errstate(over="ignore"):  # a thread's own
            task(x, y)

    return rowwise(quietly, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def summed(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Add up f of chunks of x (B, N, C), cut along N; f gives (B, C), to the bit the same whatever else is in B."""
    step = max(1, CHUNK // x.shape[2])
    parts = [np.empty(0)] * math.ceil(x.shape[1] / step)

    def some(i: int) -> None:
        parts[i] = f(x[:, i * step : (i + 1) * step])

    each(some, len(parts))
    return np.stack(parts).sum(axis=0, dtype=np.float64)


def mean_square(x: np.ndarray) -> np.ndarray:
    """mean(x²) over the last axis, which stays."""
    return np.vecdot(x, x)[..., None] / x.shape[-1]
