"""The ops that FLUX.1 is made of, in their readable form.

NumPy and MLX agree on the names of about thirty ops, which are handed through untouched. What one of them lacks is
defined here once, as its textbook formula, and both libraries can run every definition as it stands. Some definitions
are replaced by something faster: on NumPy by the same formulas in chunks, on all cores (`numpy.py`), on MLX by fused
kernels (`mlx.py`), and on a Linux CPU by NumPy (`linux_cpu.py`). The tests hold each replacement to the definition in
this file.

Statistics (means, variances, softmax sums) are taken in float32 whatever the input's dtype, and the result has the
input's dtype. `**` with an integer power is avoided: NumPy computes it by `pow`, fifty times slower than a product.
"""

import math
from importlib import import_module
from typing import Any

from minflux.arrays import Array, Float, Int, shaped
from minflux.backend import processes
from minflux.errors import BackendError

SHARED = (
    "abs", "arange", "argmax", "broadcast_to", "concatenate", "cos", "exp", "log", "max", "maximum", "mean", "minimum",
    "ones", "pad", "sin", "split", "sqrt", "stack", "sum", "tanh", "where", "zeros", "float32", "int32",
)  # fmt: skip

GELU_TANH = math.sqrt(2 / math.pi)
TAIL_P = 0.3275911 / math.sqrt(2)
TAIL = (0.5307027145, -0.7265760135, 0.7107068705, -0.142248368, 0.127414796)  # a₅ to a₁, halves of the source's
GROUP = 64  # numbers in a row of a quantised matrix that share a scale, in minflux's own files


def packed_bits(weight: Any, scales: Any, group: int = GROUP) -> int:
    """Return how many bits a number takes in a quantised matrix, from the widths of `weight` and `scales`."""
    return 32 * weight.shape[1] // max(1, group * scales.shape[1])


class Backend:
    """One array library, with every op that the model needs."""

    name: str
    module: str
    xp: Any
    on_gpu = False

    def __init__(self):
        self.xp = import_module(self.module)
        for op in SHARED:
            if not hasattr(type(self), op):
                setattr(self, op, getattr(self.xp, op))

    def __getattr__(self, op: str) -> Any:
        raise AttributeError(f"the {self.name} backend has no op {op!r}: add it to SHARED, or define it in base.py")

    # -- arrays ------------------------------------------------------------------------------------------------

    def array(self, x, dtype=None) -> Array:
        """Make an array of this backend from a NumPy array, a number or nested lists."""
        raise NotImplementedError

    def from_bfloat16(self, bits) -> Array:
        """Make an array from bfloat16 numbers given as a NumPy array of their bits (uint16)."""
        raise NotImplementedError

    def to_numpy(self, x: Array):
        """Return `x` as a NumPy array (bfloat16, which NumPy lacks, becomes float32)."""
        raise NotImplementedError

    def eval(self, *arrays) -> None:
        """Compute the arrays (or trees of arrays) now, where they are not computed already; NumPy's always are."""

    def value_and_grad(self, loss):
        """Return a function that gives `loss` and its gradient; raises `BackendError` where there are no gradients."""
        raise BackendError(f"the {self.name} backend has no gradients: train with the mlx backend")

    def as_float32(self, x: Array) -> Array:
        """Return `x` in float32, or `x` itself if it is float32 already."""
        return x if x.dtype == self.float32 else x.astype(self.float32)

    # -- products ----------------------------------------------------------------------------------------------

    @shaped
    def linear(self, x: Float[Array, "*S I"], weight: Float[Array, "O I"], bias=None) -> Float[Array, "*S O"]:
        """Return x Wᵀ + b; the weight W is (out, in), as PyTorch stores it, and the bias b is (O,) or absent."""
        y = x @ weight.T
        if bias is not None:
            y += bias  # nobody else holds y: NumPy adds in place
        return y

    # -- several processes -------------------------------------------------------------------------------------

    @shaped
    def all_sum(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """Return the sum Σ xᵣ of what each process r gives here; all of them have to (see `processes.py`)."""
        return self.array(processes.sum_of_all(x))

    @shaped
    def all_gather(self, x: Float[Array, "*S C"]) -> Float[Array, "*S O"]:
        """Return x₀ ‖ x₁ ‖ …, the last axis of what each process gives here, in the order of their ranks."""
        last_first = x.swapaxes(0, -1)
        return self.array(processes.rows_of_all(last_first)).swapaxes(0, -1)

    # -- activations -------------------------------------------------------------------------------------------

    @shaped
    def sigmoid(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """Return 1 / (1 + exp(-x)), written so that exp never overflows."""
        e = self.exp(-self.abs(x))
        return self.where(x >= 0, self.ones(1, dtype=x.dtype), e) / (1 + e)

    @shaped
    def silu(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """Return x · sigmoid(x) (Elfwing et al. 2017, arXiv 1702.03118)."""
        return x * self.sigmoid(x)

    @shaped
    def gelu(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """Return x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), the tanh form of GELU (arXiv 1606.08415)."""
        return 0.5 * x * (1 + self.tanh(GELU_TANH * (x + 0.044715 * (x * x * x))))

    @shaped
    def exact_gelu(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """Return x · Φ(x), Φ being the normal distribution function: the GELU of U-Nets (arXiv 1606.08415).

        Φ(-|x|) = exp(-x²/2) · (a₁ u + … + a₅ u⁵) with u = 1 / (1 + p |x|), within 1e-7 of the true one. Computed in
        float32. Source: Abramowitz & Stegun 1964, formula 7.1.26.
        """
        x32 = self.as_float32(x)
        u = 1 / (1 + TAIL_P * self.abs(x32))
        tail = u * 0
        for coefficient in TAIL:
            tail = (tail + coefficient) * u
        tail = tail * self.exp(-0.5 * x32 * x32)
        return (x32 * self.where(x32 < 0, tail, 1 - tail)).astype(x.dtype)

    @shaped
    def softmax(self, x: Float[Array, "*S"]) -> Float[Array, "*S"]:
        """Return exp(x) / Σ exp(x) over the last axis; the maximum is subtracted first, so nothing overflows."""
        x32 = self.as_float32(x)
        e = self.exp(x32 - self.max(x32, axis=-1, keepdims=True))
        return (e / self.sum(e, axis=-1, keepdims=True)).astype(x.dtype)

    # -- norms -------------------------------------------------------------------------------------------------

    @shaped
    def layer_norm(self, x: Float[Array, "*S D"], scale=None, bias=None, eps: float = 1e-6) -> Float[Array, "*S D"]:
        """Return (x - mean) / √(var + eps) · scale + bias, with mean and variance over the last axis.

        scale and bias are (D,), or have another shape that broadcasts to x's, or are absent.
        """
        x32 = self.as_float32(x)
        x32 = x32 - self.mean(x32, axis=-1, keepdims=True)
        y = x32 / self.sqrt(self.mean(x32 * x32, axis=-1, keepdims=True) + eps)
        y = y if scale is None else y * scale
        return (y if bias is None else y + bias).astype(x.dtype)

    @shaped
    def rms_norm(self, x: Float[Array, "*S D"], scale: Float[Array, "D"], eps: float = 1e-6) -> Float[Array, "*S D"]:
        """Return x / √(mean(x²) + eps) · scale over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467)."""
        x32 = self.as_float32(x)
        y = x32 / self.sqrt(self.mean(x32 * x32, axis=-1, keepdims=True) + eps)
        return (y * scale).astype(x.dtype)

    @shaped
    def group_norm(
        self,
        x: Float[Array, "B H W C"],
        groups: int,
        scale: Float[Array, "C"],
        bias: Float[Array, "C"],
        eps: float = 1e-6,
    ) -> Float[Array, "B H W C"]:
        """Normalise each group of C/groups channels over all pixels (Wu & He 2018, arXiv 1803.08494)."""
        batch, height, width, channels = x.shape
        x32 = self.as_float32(x).reshape(batch, height * width, groups, channels // groups)
        x32 = x32 - self.mean(x32, axis=(1, 3), keepdims=True)
        y = x32 / self.sqrt(self.mean(x32 * x32, axis=(1, 3), keepdims=True) + eps)
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)

    # -- attention ---------------------------------------------------------------------------------------------

    @shaped
    def attention(
        self, q: Float[Array, "B H L D"], k: Float[Array, "B H M D"], v: Float[Array, "B H M D"], scale=None, bias=None
    ) -> Float[Array, "B H L D"]:
        """Return softmax(scale · q kᵀ + bias) v for every head; scale is 1/√D unless given (arXiv 1706.03762).

        `bias` broadcasts to (B, H, L, M) and is added to the logits: T5's relative positions, CLIP's causal mask.
        """
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        logits = (q * scale) @ k.swapaxes(-1, -2)
        return self.softmax(logits if bias is None else logits + bias) @ v

    @shaped
    def rotate(
        self, x: Float[Array, "*S L D"], cos: Float[Array, "*T L F"], sin: Float[Array, "*T L F"]
    ) -> Float[Array, "*S L D"]:
        """Turn each pair (a, b) of neighbours in x by an angle: (a, b) cos + (-b, a) sin; D = 2 F.

        (-b, a) is the pair turned by a quarter. Written so, it is one kernel where elementwise ops are fused.
        """
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        quarter = pairs[..., ::-1] * self.array([-1, 1], dtype=x.dtype)
        y = self.as_float32(pairs) * cos[..., None] + self.as_float32(quarter) * sin[..., None]
        return y.astype(x.dtype).reshape(x.shape)

    # -- quantised matrices ------------------------------------------------------------------------------------

    @shaped
    def dequantized(
        self, weight: Int[Array, "O P"], scales: Float[Array, "O G"], biases: Float[Array, "O G"], group: int = GROUP
    ) -> Float[Array, "O I"]:
        """Return scale · q + bias, for the whole numbers q that are packed into uint32, the first in the lowest bits.

        `group` numbers in a row share a scale and a bias, so I = group · G, and each q has 32 · P / I bits. Computed in
        the scales' dtype.
        """
        rows, groups = scales.shape
        bits = packed_bits(weight, scales, group)
        shifts = self.array(list(range(0, 32, bits)), dtype=weight.dtype)
        q = (weight[:, :, None] >> shifts) & (2**bits - 1)
        q = q.reshape(rows, groups, group).astype(scales.dtype)
        return (q * scales[..., None] + biases[..., None]).reshape(rows, -1)

    @shaped
    def quantized_matmul(
        self,
        x: Float[Array, "*S I"],
        weight: Int[Array, "O P"],
        scales: Float[Array, "O G"],
        biases: Float[Array, "O G"],
    ) -> Float[Array, "*S O"]:
        """Return x Wᵀ for a quantised matrix W, which is widened to floats for this product."""
        group = x.shape[-1] // scales.shape[1]
        return self.linear(x, self.dequantized(weight, scales, biases, group))

    # -- images (NHWC) -----------------------------------------------------------------------------------------

    @shaped
    def conv2d(
        self,
        x: Float[Array, "B H W C"],
        weight: Float[Array, "O K K C"],
        bias: Float[Array, "O"],
        stride: int = 1,
        padding: int = 0,
    ) -> Float[Array, "B H2 W2 O"]:
        """Convolve by K·K shifted matrix products: y[h, w] = Σᵢⱼ x[s·h + i, s·w + j] · weight[:, i, j] + bias."""
        x = self.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        size = weight.shape[1]
        rows, cols = ((n - size) // stride + 1 for n in x.shape[1:3])
        y = self.as_float32(bias)
        for i in range(size):
            for j in range(size):
                window = x[:, i : i + stride * rows : stride, j : j + stride * cols : stride]
                y = y + window @ weight[:, i, j].T
        return y.astype(x.dtype)

    @shaped
    def downsample(
        self, x: Float[Array, "B H W C"], weight: Float[Array, "O 3 3 C"], bias: Float[Array, "O"]
    ) -> Float[Array, "B H2 W2 O"]:
        """Halve height and width by a 3×3 convolution of stride 2, padded at the bottom and right only."""
        return self.conv2d(self.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), weight, bias, stride=2)

    @shaped
    def upsample(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
        """Double height and width by repeating each pixel (nearest neighbour)."""
        b, height, width, c = x.shape
        twice = self.broadcast_to(x[:, :, None, :, None], (b, height, 2, width, 2, c))
        return twice.reshape(b, 2 * height, 2 * width, c)

    # -- angles ------------------------------------------------------------------------------------------------

    @shaped
    def cos_sin(
        self, positions: Int[Array, "*S"], frequencies: list
    ) -> tuple[Float[Array, "*S F"], Float[Array, "*S F"]]:
        """Return cos and sin of position · frequency, computed in float64 and rounded to float32.

        positions (*S) and F frequencies in radians a step give two arrays (*S, F). float32 would already lose the
        fourth digit of the angle at position 4096.
        """
        angles = positions[..., None].astype(self.xp.float64) * self.array(frequencies, dtype=self.xp.float64)
        return self.cos(angles).astype(self.float32), self.sin(angles).astype(self.float32)
