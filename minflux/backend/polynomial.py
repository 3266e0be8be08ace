"""exp, sigmoid, tanh, SiLU and GELU made of multiplications and additions alone, for MLX on a Linux CPU.

There MLX's own exp and tanh run one number at a time (about 20 ns each on the machine of docs/log.md), ten to forty
times slower than NumPy's, and would dominate every softmax and GELU. Products, sums and bit shifts are vectorised, so
a polynomial is several times faster, the more so when `mx.compile` fuses it into one pass. Each is as accurate as
float32: the relative error is below 4e-7 over the whole range (`tests/backend/test_polynomial.py`), but for results
below 2^-125.5, about 1.7e-38, which become 0. SiLU and GELU are x times a sigmoid, one kernel each.

Gradients are written out, as exp' = exp, tanh' = 1 - tanh², sigmoid' = sigmoid · (1 - sigmoid) and so on:
differentiating a polynomial would be slower, and the bit shift has no derivative.
"""

import math
import shutil
from typing import Any

import mlx.core as mx

from minflux.backend.base import GELU_TANH

LOG2_E = math.log2(math.e)
LN2_HIGH = 0.693359375  # ln 2 in 9 bits, so that n · LN2_HIGH is exact
LN2_LOW = math.log(2) - LN2_HIGH
ROUND = 12582912.0  # 1.5 · 2^23: adding and subtracting it rounds a float32 to the nearest integer
EXP_OVERFLOW, EXP_UNDERFLOW = 88.722839, -87.336544  # beyond: inf, and 0
TANH_SATURATES = 7.90531

# e^r for |r| <= ln2 / 2, as 1 + r + r² · P(r); the coefficients are those of expf in Moshier's Cephes library
EXP_P = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# tanh(a) = a · P(a²) / Q(a²) for 0 <= a <= 7.9; the rational minimax that Eigen and XLA use for float32
TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def horner(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    """Return c₀ xⁿ + c₁ xⁿ⁻¹ + … + cₙ."""
    y = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        y = y * x + c
    return y


def bounded_exp(x):
    """Return exp(x) as 2ⁿ · eʳ with n = round(x / ln 2), for x inside (EXP_UNDERFLOW, EXP_OVERFLOW)."""
    n = (x * LOG2_E + ROUND) - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    e_r = horner(EXP_P, r) * (r * r) + r + 1
    two_to_n_minus_1 = ((n.astype(mx.int32) + 126) * 8388608).view(mx.float32)  # n into the exponent's bits
    return e_r * two_to_n_minus_1 * 2  # in two steps: 2^128 itself would be inf


def _exp(x):
    y = mx.where(x > EXP_OVERFLOW, mx.inf, bounded_exp(x))
    return mx.where(x < EXP_UNDERFLOW, 0.0, y)


def _sigmoid(x):
    e = bounded_exp(mx.maximum(-mx.abs(x), EXP_UNDERFLOW))
    return mx.where(x >= 0, 1.0, e) / (1 + e)


def _tanh(x):
    a = mx.minimum(mx.abs(x), TANH_SATURATES)
    y = a * horner(TANH_P, a * a) / horner(TANH_Q, a * a)
    y = mx.where(a == TANH_SATURATES, 1.0, y)  # to the last bit, or GELU(-1000) would not be 0
    return mx.where(x < 0, -y, y)


def can_compile() -> bool:
    """Return whether `mx.compile` works on this CPU, for it writes C++ and calls g++ at run time."""
    return shutil.which("g++") is not None


def differentiable(forward, derivative):
    """Make an op of float32 arrays from y = forward(x) and derivative(x, y); other dtypes pass through float32."""

    def backward(x, y, gradient):
        return gradient * derivative(x, y)

    if can_compile():
        forward, backward = mx.compile(forward), mx.compile(backward)

    op: Any = mx.custom_function(forward)

    @op.vjp
    def vjp(x, gradient, y):
        return backward(x, y, gradient)

    return lambda x: op(x) if x.dtype == mx.float32 else op(x.astype(mx.float32)).astype(x.dtype)


def _gate(x):
    """Return sigmoid(x), exactly 0 far below 0, so that its product with x vanishes there."""
    return mx.where(x < EXP_UNDERFLOW, 0.0, _sigmoid(x))


def _twice_u(x):
    return 2 * GELU_TANH * (x + 0.044715 * (x * x * x))


def _gelu_slope(x, y):
    s = _gate(_twice_u(x))
    return s + y * (1 - s) * (2 * GELU_TANH * (1 + 3 * 0.044715 * (x * x)))


def _silu_slope(x, y):
    s = _gate(x)
    return s + y * (1 - s)


exp = differentiable(_exp, lambda x, y: y)
sigmoid = differentiable(_sigmoid, lambda x, y: y * (1 - y))
tanh = differentiable(_tanh, lambda x, y: 1 - y * y)
silu = differentiable(lambda x: x * _gate(x), _silu_slope)
gelu = differentiable(lambda x: x * _gate(_twice_u(x)), _gelu_slope)  # (1 + tanh u) / 2 is sigmoid(2 u)
