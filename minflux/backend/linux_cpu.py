"""MLX on a Linux CPU: NumPy computes what is slow there, from the same memory.

On such a machine MLX runs everything but matrix products on one core, and exp and tanh one number at a time. NumPy's
backend is faster at the costly ops (docs/log.md), and the two libraries can read each other's arrays where they lie.
Where NumPy can't help, inside `mx.compile` and in gradients, the definitions run on MLX, with the polynomials of
`polynomial.py` for exp and tanh.

Matrix products depend on the BLAS that `blas.py` found. With a fast one MLX multiplies as fast as NumPy does. Without
one it is up to a hundred times slower, so `NumPyProductsBackend` leaves products to NumPy as well.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from minflux.backend import convolution, get_backend, polynomial
from minflux.backend.base import Backend
from minflux.backend.mlx import MLXBackend
from minflux.backend.processes import is_loss

FLOAT32 = (mx.float32,)
FLOATS = (mx.float32, mx.bfloat16, mx.float16)


class NumPyCall:
    """One call of an op with MLX arrays: its result comes from NumPy, its gradient from the op's MLX definition."""

    def __init__(self, definition: Callable, backend: Backend, arguments: Sequence):
        self.definition, self.backend, self.arguments = definition, backend, arguments
        self.places = [i for i, x in enumerate(arguments) if isinstance(x, mx.array)]
        self.arrays = [arguments[i] for i in self.places]

    def is_possible(self, dtypes: Sequence[mx.Dtype]) -> bool:
        """Return whether the arrays are all of one dtype, one of `dtypes`, and hold numbers already."""
        dtype = self.arrays[0].dtype
        return dtype in dtypes and all(x.dtype == dtype for x in self.arrays) and can_evaluate(self.arrays)

    def arguments_with(self, arrays: Sequence) -> list:
        """Return the call's arguments with `arrays` in the places of its MLX arrays."""
        replaced = dict(zip(self.places, arrays, strict=True))
        return [replaced.get(i, x) for i, x in enumerate(self.arguments)]

    def on_mlx(self, *arrays: mx.array) -> mx.array:
        """Return the definition's result for these arrays."""
        return self.definition(self.backend, *self.arguments_with(arrays))

    def on_numpy(self, *arrays: mx.array) -> mx.array:
        """Return NumPy's result for these arrays, computed in float32 and rounded to their own dtype."""
        op = getattr(get_backend("numpy"), self.definition.__name__)
        return mx.array(op(*self.arguments_with([as_numpy(x) for x in arrays])), dtype=arrays[0].dtype)

    def gradient(self, primals, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        """Return the gradient by each array, as MLX differentiates the definition."""
        primals = [primals] if isinstance(primals, mx.array) else list(primals)
        return tuple(mx.vjp(self.on_mlx, primals, [cotangent])[1])

    def result(self) -> mx.array:
        """Return NumPy's result as an array that MLX can differentiate."""
        op: Any = mx.custom_function(self.on_numpy)
        op.vjp(self.gradient)
        return op(*self.arrays)


def by_numpy(definition: Callable) -> Callable:
    """Run this op on NumPy.

    Fall back to the MLX definition while compiling (no values yet), for gradients, and for arrays of other dtypes than
    the backend's `numpy_dtypes`.
    """
    signature = inspect.signature(definition)

    @functools.wraps(definition)
    def op(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        call = NumPyCall(definition, self, bound.args[1:])
        return call.result() if call.is_possible(self.numpy_dtypes) else call.on_mlx(*call.arrays)

    return op


def can_evaluate(arrays: list[mx.array]) -> bool:
    """Compute the arrays now and return True, or return False because `mx.compile` is tracing them.

    For an array that depends on a gradient inside the traced function, MLX raises a `RuntimeError`. So it does where an
    array is a sum over processes of which one is lost (see `processes.py`), and that error is passed on.
    """
    try:
        mx.eval(arrays)
    except (ValueError, RuntimeError) as error:
        if is_loss(error):
            raise
        return False
    return True


def as_numpy(x: mx.array) -> np.ndarray:
    """Return a NumPy array on the memory of a float32 array; other floats are widened to a new one first."""
    return np.array(x if x.dtype == mx.float32 else x.astype(mx.float32), copy=False)


class LinuxCPUBackend(MLXBackend):
    """MLX with a fast BLAS: NumPy computes activations, attention, group norm and convolutions of float32 arrays."""

    numpy_dtypes: Sequence[mx.Dtype] = FLOAT32

    exp = staticmethod(polynomial.exp)
    sigmoid = staticmethod(polynomial.sigmoid)
    tanh = staticmethod(polynomial.tanh)
    linear = Backend.linear
    group_norm = by_numpy(Backend.group_norm)
    attention = by_numpy(Backend.attention)
    quantized_matmul = Backend.quantized_matmul  # the kernel takes 30 times as long here (docs/log.md)

    @by_numpy
    def silu(self, x):
        """Compute x · sigmoid(x) as a polynomial, one kernel, and another for its gradient."""
        return polynomial.silu(x)

    @by_numpy
    def gelu(self, x):
        """Compute GELU's tanh form as a polynomial, one kernel, and another for its gradient."""
        return polynomial.gelu(x)

    @by_numpy
    def conv2d(self, x, weight, bias, stride=1, padding=0):
        """Compute a 3×3 convolution of few channels as products of whole tiles, any other by MLX's own kernel."""
        if stride == padding == 1 and convolution.suits(x, weight):
            return convolution.conv3x3(x, weight) + bias
        return MLXBackend.conv2d(self, x, weight, bias, stride, padding)

    def downsample(self, x, weight, bias):
        """Halve height and width by a 3×3 convolution on MLX, which is faster than NumPy at stride 2.

        Where channels are few, its gradient is that of a convolution in tiles.
        """
        if convolution.halves(x):
            return convolution.downsample3x3(x, weight) + bias
        return MLXBackend.conv2d(self, mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), weight, bias, stride=2)


class NumPyProductsBackend(LinuxCPUBackend):
    """MLX without a fast BLAS: NumPy, whose wheel brings one, multiplies as well, and for half floats too."""

    numpy_dtypes = FLOATS

    linear = by_numpy(Backend.linear)
    downsample = by_numpy(LinuxCPUBackend.downsample)
