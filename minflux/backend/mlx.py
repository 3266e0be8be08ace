"""MLX: the readable definitions, with a kernel in place of each that a kernel does better.

A fused kernel reads memory once where a definition reads it several times. These run on Metal, on CUDA and on the CPU
of a Mac; on a Linux CPU other things are slow, and `linux_cpu.py` replaces other ops.
"""

import sys

import numpy as np

from minflux.backend import blas
from minflux.backend.base import Backend, packed_bits
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
    """MLX, running the definitions of `base.py` as they stand: it tells a wrong primitive from a wrong kernel."""

    name, module = "mlx", "mlx.core"
    on_gpu = mx.default_device().type == mx.DeviceType.gpu

    def array(self, x, dtype=None):
        """Make an MLX array; float64 needs to be asked for."""
        return x if isinstance(x, mx.array) and dtype in (None, x.dtype) else mx.array(x, dtype=dtype)

    def from_bfloat16(self, bits):
        """Make a bfloat16 array of these very bits, for MLX has bfloat16."""
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
        """Return the function with its elementwise ops fused, or unchanged on a CPU without g++."""
        from minflux.backend.polynomial import can_compile

        return mx.compile(function) if self.on_gpu or can_compile() else function

    def cos_sin(self, positions, frequencies):
        """Return cos and sin of position · frequency: whole turns are taken off in float64, the rest is float32.

        The CPU does it, for GPUs have no float64. MLX's own cos has float32's accuracy even there (its issue 3047).
        """
        turns_a_step = mx.array(np.asarray(frequencies) / (2 * np.pi), dtype=mx.float64)
        with mx.stream(mx.cpu):
            turns = positions[..., None].astype(mx.float64) * turns_a_step
            angles = ((turns - mx.round(turns)) * (2 * np.pi)).astype(mx.float32)
            return mx.cos(angles), mx.sin(angles)


class MLXBackend(ReadableMLXBackend):
    """MLX with its fused kernels, for Metal and CUDA."""

    def linear(self, x, weight, bias=None):
        """Compute x Wᵀ + b in one kernel, which adds the bias before anything is rounded."""
        return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)

    def sigmoid(self, x):
        """Compute 1 / (1 + exp(-x)) in one kernel."""
        return mx.sigmoid(x)

    def layer_norm(self, x, scale=None, bias=None, eps=1e-6):
        """Normalise the last axis in one kernel, with statistics in float32.

        The kernel takes a scale and bias of one row (D,), as those of a batch of one are; others are applied after it.
        """
        if all(y is None or y.size == x.shape[-1] for y in (scale, bias)):
            scale, bias = (None if y is None else y.reshape(-1) for y in (scale, bias))
            return mx.fast.layer_norm(x, scale, bias, eps)
        y = mx.fast.layer_norm(x, None, None, eps) * (1 if scale is None else scale)
        return y if bias is None else y + bias

    def rms_norm(self, x, scale, eps=1e-6):
        """Divide by the root mean square of the last axis in one kernel, with statistics in float32."""
        return mx.fast.rms_norm(x, scale, eps)

    def attention(self, q, k, v, scale=None, bias=None):
        """Compute attention block by block in one kernel, so that the (L, M) logits never reach memory."""
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        bias = None if bias is None else bias.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias)

    def conv2d(self, x, weight, bias, stride=1, padding=0):
        """Convolve by MLX's own kernel, which reads each pixel once."""
        return mx.conv2d(x, weight, stride=stride, padding=padding) + bias

    def quantized_matmul(self, x, weight, scales, biases):
        """Multiply by a quantised matrix in one kernel, which reads a quarter or half of the bytes of bfloat16."""
        group = x.shape[-1] // scales.shape[1]
        bits = packed_bits(weight, scales, group)
        return mx.quantized_matmul(x, weight, scales, biases, transpose=True, group_size=group, bits=bits)
