"""exp, sigmoid and tanh made of polynomials: how exact they are, from one end of float32 to the other.

Results below 2^-125.5 become 0, as numbers below 2^-126 do on GPUs anyway; all others are held to 4e-7.
"""

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
polynomial = pytest.importorskip("minflux.backend.polynomial")

TINY = 2.0**-125.5
ACCURATE = 4e-7
REFERENCES = {
    "exp": np.exp,
    "sigmoid": lambda x: np.where(x >= 0, 1, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x))),
    "tanh": np.tanh,
}
SLOPES = {
    "exp": lambda x, y: y,
    "sigmoid": lambda x, y: np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2,
    "tanh": lambda x, y: 1 / np.cosh(x) ** 2,
}


def numbers(smallest: float, largest: float) -> np.ndarray:
    """Normal float32 numbers of both signs, as dense near 0 as far from it, and evenly spread ones."""
    magnitudes = np.concatenate([np.geomspace(smallest, largest, 200_001), np.linspace(0, largest, 200_001)])
    return np.concatenate([-magnitudes, magnitudes]).astype(np.float32)


@pytest.mark.parametrize("name", REFERENCES)
def test_relative_error_over_the_whole_range(name):
    x = np.concatenate([numbers(1e-30, 100.0), numbers(1e-30, 1e30)])
    with np.errstate(over="ignore", under="ignore"):
        expected = REFERENCES[name](x.astype(np.float64))
        rounded = expected.astype(np.float32)
    got = np.array(getattr(polynomial, name)(mx.array(x)), dtype=np.float64)
    held = (np.abs(expected) >= TINY) & np.isfinite(rounded)
    error = np.abs(got[held] / expected[held] - 1)
    assert error.max() <= ACCURATE
    np.testing.assert_array_equal(got[np.isinf(rounded)], np.inf)
    assert np.abs(got[np.abs(expected) < TINY]).max(initial=0) <= 2 * TINY


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("exp", [-np.inf, -200, 0, 89, np.inf], [0, 0, 1, np.inf, np.inf]),
        ("sigmoid", [-np.inf, -200, 0, 200, np.inf], [0, 0, 0.5, 1, 1]),
        ("tanh", [-np.inf, -20, 0, 20, np.inf], [-1, -1, 0, 1, 1]),
    ],
)
def test_extremes(name, at, expected):
    got = np.array(getattr(polynomial, name)(mx.array(at, dtype=mx.float32)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2 * TINY)


@pytest.mark.parametrize("name", REFERENCES)
def test_nan_stays_nan(name):
    assert np.isnan(getattr(polynomial, name)(mx.array([np.nan]))).all()


@pytest.mark.parametrize("name", SLOPES)
def test_gradients(name):
    x = np.linspace(-15, 15, 10_001).astype(np.float32)
    got = np.array(mx.grad(lambda v: getattr(polynomial, name)(v).sum())(mx.array(x)))
    expected = SLOPES[name](x.astype(np.float64), REFERENCES[name](x.astype(np.float64)))
    # where tanh is near 1, the slope 1 - tanh² has twice tanh's error, whatever its own size
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=0 if name == "exp" else 2 * ACCURATE)


@pytest.mark.parametrize("name", REFERENCES)
def test_other_dtypes_pass_through_float32(name):
    x = mx.array([-1.5, 0.25, 2.0])
    op = getattr(polynomial, name)
    for dtype in (mx.bfloat16, mx.float16):
        got = op(x.astype(dtype))
        assert got.dtype == dtype
        assert mx.array_equal(got, op(x).astype(dtype))


def test_without_a_compiler_the_same_numbers(monkeypatch):
    """mx.compile on a CPU needs g++ at run time; without it the ops run one by one."""
    monkeypatch.setattr(polynomial, "can_compile", lambda: False)
    plain = polynomial.differentiable(polynomial._tanh, lambda x, y: 1 - y * y)
    x = mx.linspace(-9, 9, 1001)
    np.testing.assert_allclose(np.array(plain(x)), np.array(polynomial.tanh(x)), rtol=2e-7)


# -- SiLU and GELU: x times a sigmoid ------------------------------------------------------------------------------

TWICE_U = {  # and its slope
    "silu": (lambda x: x, lambda x: 1),
    "gelu": (
        lambda x: np.sqrt(8 / np.pi) * (x + 0.044715 * x**3),
        lambda x: np.sqrt(8 / np.pi) * (1 + 3 * 0.044715 * x**2),
    ),
}
activations = pytest.mark.parametrize("name", TWICE_U)


def gate_and_activation(name, x):
    gate = REFERENCES["sigmoid"](TWICE_U[name][0](x))
    return gate, x * gate


@activations
def test_values_of_activations(name):
    x = numbers(1e-30, 1e6)
    _, expected = gate_and_activation(name, x.astype(np.float64))
    got = np.array(getattr(polynomial, name)(mx.array(x)), dtype=np.float64)
    assert (np.abs(got - expected) <= ACCURATE * np.abs(x) + TINY).all()
    assert (got[x < -100] == 0).all()


@activations
def test_gradients_of_activations(name):
    x = np.concatenate([np.linspace(-15, 15, 10_001), [-1e4, 1e4]]).astype(np.float32)
    got = np.array(mx.grad(lambda v: getattr(polynomial, name)(v).sum())(mx.array(x)))
    gate, y = gate_and_activation(name, x.astype(np.float64))
    expected = gate + y * (1 - gate) * TWICE_U[name][1](x.astype(np.float64))
    # where the sigmoid s is near 1, 1 - s has the error of s, and GELU multiplies it by up to 15
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=3e-6)
