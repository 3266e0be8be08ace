"""MLX: the readable definitions, with a kernel in place of each that a kernel does better.

On a GPU the fused kernels read memory once where the definitions read it several times. On a Linux CPU the cost lies
elsewhere, in exp and tanh and in the cores that MLX leaves idle. There NumPy's backend computes the costly ops, and
where it can't, inside `mx.compile`, the definitions run with the polynomials of `polynomial.py`.
"""

import functools
import inspect
import sys

import numpy as np

from minflux.backend import blas, get_backend
from minflux.backend.base import GROUP, Backend, packed_bits
from minflux.errors import BackendError

INSTALL = {
    "darwin": "pip install mlx",
    "linux": "pip install 'mlx[cpu]' (or 'mlx[cuda12]', 'mlx[cuda13]' for an NVIDIA GPU)",
}

blas.load_fast_blas()  # must come before MLX is loaded
try:
    import mlx.core as mx
except ImportError as error:
    how = INSTALL.get(sys.platform, "MLX runs on macOS and Linux only; use the numpy backend here")
    raise BackendError(f"the mlx backend needs MLX, which could not be imported ({error}): {how}") from error


class ReadableMLXBackend(Backend):
    """Runs `base.py` on MLX arrays, nothing overridden: tells a wrong primitive from a wrong kernel."""

    name, module = "mlx", "mlx.core"
    on_gpu = mx.default_device().type == mx.DeviceType.gpu

    def array(self, x, dtype=None):
        """Make an MLX array; float64 needs to be asked for."""
        return x if isinstance(x, mx.array) and dtype in (None, x.dtype) else mx.array(x, dtype=dtype)

    def from_bfloat16(self, bits):
        """Take the bits as they are: MLX has bfloat16."""
        return mx.array(bits).view(mx.bfloat16)

    def to_numpy(self, x):
        """Copy `x` to NumPy; bfloat16 becomes float32, exactly."""
        return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)

    def eval(self, *arrays) -> None:
        """Compute the arrays now."""
        mx.eval(*arrays)

    def value_and_grad(self, loss):
        """Return a function of the same arguments that gives (loss, its gradient by the first argument)."""
        return mx.value_and_grad(loss)

    def compile(self, function):
        """Fuse the function's elementwise ops, if that can be done here (a CPU needs g++ for it)."""
        from minflux.backend.polynomial import can_compile

        return mx.compile(function) if can_compile() else function

    def cos_sin(self, positions, frequencies):
        """cos and sin as in `base.py`: whole turns are taken off in float64, and the rest goes to float32.

        On the CPU, for GPUs have no float64; and MLX's own cos has float32's accuracy even there (its issue 3047).
        """
        turns_a_step = mx.array(np.asarray(frequencies) / (2 * np.pi), dtype=mx.float64)
        with mx.stream(mx.cpu):
            turns = positions[..., None].astype(mx.float64) * turns_a_step
            angles = ((turns - mx.round(turns)) * (2 * np.pi)).astype(mx.float32)
            return mx.cos(angles), mx.sin(angles)


class MLXBackend(ReadableMLXBackend):
    """MLX with its fused kernels: what runs on Metal and CUDA."""

    def softmax(self, x):
        """One kernel, statistics in float32."""
        return mx.softmax(x, axis=-1, precise=True)

    def sigmoid(self, x):
        """One kernel."""
        return mx.sigmoid(x)

    def layer_norm(self, x, scale=None, bias=None, eps=1e-6):
        """One kernel, statistics in float32; a scale and bias of more than one row come after it."""
        if scale is None or scale.ndim == 1:
            return mx.fast.layer_norm(x, scale, bias, eps)
        y = mx.fast.layer_norm(x, None, None, eps) * scale
        return y if bias is None else y + bias

    def rms_norm(self, x, scale, eps=1e-6):
        """One kernel, statistics in float32."""
        return mx.fast.rms_norm(x, scale, eps)

    def attention(self, q, k, v, scale=None, bias=None):
        """Blocked attention in one kernel: the (L, M) logits never reach memory."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        bias = None if bias is None else bias.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias)

    def conv2d(self, x, weight, bias, stride=1, padding=0):
        """MLX's own convolution, which reads each pixel once."""
        return mx.conv2d(x, weight, stride=stride, padding=padding) + bias

    def quantized_matmul(self, x, weight, scales, biases):
        """One kernel, which reads a quarter or half of the bytes that bfloat16 takes."""
        bits = packed_bits(weight, scales)
        return mx.quantized_matmul(x, weight, scales, biases, transpose=True, group_size=GROUP, bits=bits)


def by_numpy(definition):
    """Let `NumPyBackend` compute the op, with MLX's `definition` for what NumPy can't see.

    Both libraries can read the same memory, so NumPy takes the arrays where they lie, and only the result is copied.
    While `mx.compile` traces a function there are no numbers yet: MLX refuses to evaluate, and the definition is traced
    in NumPy's place. Gradients are the definition's too.
    """
    name, signature = definition.__name__, inspect.signature(definition)

    @functools.wraps(definition)
    def op(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = bound.args[1:]
        places = [i for i, x in enumerate(given) if isinstance(x, mx.array)]
        arrays = [given[i] for i in places]

        def put(values):  # in the arrays' places
            found = dict(zip(places, values, strict=True))
            return [found.get(i, x) for i, x in enumerate(given)]

        def define(*arrays):
            return definition(self, *put(arrays))

        if any(x.dtype != mx.float32 for x in arrays) or not evaluated(arrays):
            return define(*arrays)

        @mx.custom_function
        def compute(*arrays):
            return mx.array(getattr(get_backend("numpy"), name)(*put([np.array(x, copy=False) for x in arrays])))

        @compute.vjp
        def _(primals, gradient, output):
            primals = [primals] if isinstance(primals, mx.array) else list(primals)
            return tuple(mx.vjp(define, primals, [gradient])[1])

        return compute(*arrays)

    return op


def evaluated(arrays) -> bool:
    """Compute the arrays now, or tell that they can't be, for `mx.compile` is tracing them."""
    try:
        mx.eval(arrays)
    except (ValueError, RuntimeError):  # the second for what depends on a gradient taken inside the traced function
        return False
    return True


class LinuxCPUBackend(MLXBackend):
    """MLX on a Linux CPU: NumPy's ops where there are numbers, and definitions with polynomials for `mx.compile`.

    MLX runs all but products on one core here, and its exp and tanh number by number; `numpy.py` is the faster one.
    """

    softmax = Backend.softmax
    group_norm = by_numpy(Backend.group_norm)
    attention = by_numpy(Backend.attention)
    quantized_matmul = Backend.quantized_matmul  # the kernel takes 30 times as long here (docs/log.md)

    def __init__(self):
        super().__init__()
        from minflux.backend import polynomial

        for op in ("exp", "sigmoid", "tanh"):
            setattr(self, op, getattr(polynomial, op))

    @by_numpy
    def silu(self, x):
        """One kernel, and one for its gradient."""
        from minflux.backend import polynomial

        return polynomial.silu(x)

    @by_numpy
    def gelu(self, x):
        """The same."""
        from minflux.backend import polynomial

        return polynomial.gelu(x)

    @by_numpy
    def conv2d(self, x, weight, bias, stride=1, padding=0):
        """3×3 convolutions of few channels as products of whole tiles; others are MLX's."""
        from minflux.backend.convolution import conv3x3, suits

        if stride == padding == 1 and suits(x, weight):
            return conv3x3(x, weight) + bias
        return super().conv2d(x, weight, bias, stride, padding)

    def downsample(self, x, weight, bias):
        """The same with stride 2, where its gradient is what gains; others are MLX's, and never NumPy's."""
        from minflux.backend.convolution import downsample3x3, halves

        if halves(x):
            return downsample3x3(x, weight) + bias
        return MLXBackend.conv2d(self, mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), weight, bias, stride=2)


def mlx_backend() -> Backend:
    """Make the MLX backend that suits the default device."""
    return MLXBackend() if MLXBackend.on_gpu or sys.platform != "linux" else LinuxCPUBackend()
