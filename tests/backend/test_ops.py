"""Every op of the backends against torch.nn.functional, primitives first: a block's test can hide a wrong
one.

An input of ones, for instance, hides an error in `exp` inside softmax.
"""

import math
import sys

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minflux import backend
from minflux.backend import available, backend_of, get_backend, processes, serving
from minflux.backend.base import SHARED
from minflux.errors import BackendError
from minflux.model.linear import linear

dims = st.integers(1, 9)
shapes = st.lists(dims, min_size=1, max_size=4).map(tuple)
scales = st.sampled_from([0.01, 1.0, 30.0])

# name -> (PyTorch's, a scale that keeps the result finite)
ELEMENTWISE = {
    "exp": (torch.exp, 10.0),
    "tanh": (torch.tanh, 3.0),
    "cos": (torch.cos, 3.0),
    "sin": (torch.sin, 3.0),
    "abs": (torch.abs, 3.0),
    "sigmoid": (torch.sigmoid, 10.0),
    "silu": (F.silu, 10.0),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), 3.0),
    "exact_gelu": (F.gelu, 3.0),
}


@pytest.mark.parametrize("op", ELEMENTWISE)
@given(shape=shapes)
def test_elementwise(trial, op, shape):
    reference, scale = ELEMENTWISE[op]
    x = trial.randn(*shape, scale=scale)
    trial.close(f"`{op}`", getattr(trial.nx, op)(trial.array(x)), reference(x))


@given(shapes, scales)
def test_sqrt_and_log(trial, shape, scale):
    x = trial.rounded(torch.rand(*shape) * scale + 0.01)
    trial.close("`sqrt`", trial.nx.sqrt(trial.array(x)), x.sqrt())
    trial.close("`log`", trial.nx.log(trial.array(x * 8)), (x * 8).log())


@pytest.mark.parametrize("op", ["sigmoid", "silu", "gelu", "exact_gelu", "tanh"])
def test_activations_far_out(nx, op):
    reference, _ = ELEMENTWISE[op]
    x = torch.tensor([-1e4, -100.0, -88.0, -20.0, -0.0, 0.0, 20.0, 88.0, 100.0, 1e4])
    got = nx.to_numpy(getattr(nx, op)(nx.array(x.numpy())))
    # MLX has no numbers below 2^-126: sigmoid(-88), which is one, becomes 0
    np.testing.assert_allclose(got, reference(x).numpy(), rtol=2e-6, atol=2.0**-120)


@given(shapes, st.sampled_from([0.1, 10.0, 1000.0]))
def test_softmax(trial, shape, scale):
    x = trial.randn(*shape, scale=scale)
    trial.close("`softmax`", trial.nx.softmax(trial.array(x)), x.softmax(dim=-1))


def test_softmax_of_huge_and_of_forbidden_logits(nx):
    x = torch.tensor([[1e4, 1e4 - 1, 0.0], [-1e30, -1e30, -1e30], [0.0, -math.inf, 1.0]])
    got = nx.to_numpy(nx.softmax(nx.array(x.numpy())))
    np.testing.assert_allclose(got, x.softmax(dim=-1).numpy(), rtol=1e-6)


@given(shapes.filter(lambda s: s[-1] > 2), st.booleans(), st.booleans(), st.sampled_from([1e-6, 1e-5]), scales)
def test_layer_norm(trial, shape, scaled, biased, eps, spread):
    x = trial.rounded((torch.randn(*shape) + 1) * spread)
    scale = trial.randn(shape[-1]) if scaled else None
    bias = trial.randn(shape[-1]) if biased else None
    ours = [None if w is None else trial.array(w) for w in (scale, bias)]
    expected = F.layer_norm(x, shape[-1:], scale, bias, eps)
    trial.close("`layer_norm`", trial.nx.layer_norm(trial.array(x), *ours, eps), expected)


@given(st.integers(1, 3), dims, dims, st.booleans())
def test_layer_norm_with_a_scale_for_each_picture(trial, batch, length, width, biased):
    x, scale, bias = (
        trial.randn(batch, length, width + 2),
        trial.randn(batch, 1, width + 2),
        trial.randn(1, 1, width + 2),
    )
    expected = F.layer_norm(x, (width + 2,)) * scale + (bias if biased else 0)
    got = trial.nx.layer_norm(trial.array(x), trial.array(scale), trial.array(bias) if biased else None, 1e-5)
    trial.close("`layer_norm`", got, expected)


@given(shapes, st.sampled_from([1e-6, 1e-5]), scales)
def test_rms_norm(trial, shape, eps, spread):
    x, scale = trial.randn(*shape, scale=spread), trial.randn(shape[-1])
    expected = F.rms_norm(x, shape[-1:], scale, eps)
    trial.close("`rms_norm`", trial.nx.rms_norm(trial.array(x), trial.array(scale), eps), expected)


@given(st.integers(1, 3), st.integers(2, 7), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), scales)
def test_group_norm(trial, batch, height, width, groups, per_group, spread):
    channels = groups * per_group
    x = trial.randn(batch, channels, height, width + 1, scale=spread)
    scale, bias = trial.randn(channels), trial.randn(channels)
    got = trial.nx.group_norm(nhwc(trial, x), groups, trial.array(scale), trial.array(bias))
    trial.close("`group_norm`", got, F.group_norm(x, groups, scale, bias, 1e-6).permute(0, 2, 3, 1))


@given(shapes, dims, st.booleans())
def test_linear(trial, shape, outputs, biased):
    x, weight, bias = trial.randn(*shape), trial.randn(outputs, shape[-1]), trial.randn(outputs) if biased else None
    got = trial.nx.linear(trial.array(x), trial.array(weight), None if bias is None else trial.array(bias))
    trial.close("`linear`", got, F.linear(x, weight, bias))


@given(st.integers(1, 3), dims, dims, dims)
def test_rotate(trial, batch, heads, length, half):
    """Against PyTorch's complex numbers: each pair times e to the power of i times the angle."""
    x, angles = trial.randn(batch, heads, length, 2 * half), torch.randn(batch, 1, length, half)
    got = trial.nx.rotate(trial.array(x), *(trial.array(f(angles), "float32") for f in (torch.cos, torch.sin)))
    pairs = torch.view_as_complex(x.reshape(batch, heads, length, half, 2))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
    trial.close("`rotate`", got, turned.reshape(x.shape))


@given(st.integers(1, 3), dims, dims, dims, dims, st.sampled_from([None, 1.0, 0.3]), st.booleans(), scales)
def test_attention(trial, batch, heads, queries, keys, width, scale, biased, spread):
    q = trial.randn(batch, heads, queries, width, scale=spread)
    k, v = trial.randn(batch, heads, keys, width), trial.randn(batch, heads, keys, width)
    bias = trial.randn(1, heads, queries, keys) if biased else None
    got = trial.nx.attention(
        *map(trial.array, (q, k, v)), scale=scale, bias=None if bias is None else trial.array(bias)
    )
    trial.close("`attention`", got, F.scaled_dot_product_attention(q, k, v, bias, scale=scale))


@given(
    st.integers(1, 3), dims, dims, dims, dims, st.sampled_from([(1, 1, 0), (3, 1, 1), (3, 1, 0), (3, 2, 0), (3, 2, 1)])
)
def test_conv2d(trial, batch, height, width, inputs, outputs, how):
    size, stride, padding = how
    x = trial.randn(batch, inputs, height + 2, width + 2)
    weight, bias = trial.randn(outputs, inputs, size, size), trial.randn(outputs)
    got = trial.nx.conv2d(nhwc(trial, x), nhwc(trial, weight), trial.array(bias), stride, padding)
    trial.close("`conv2d`", got, F.conv2d(x, weight, bias, stride, padding).permute(0, 2, 3, 1))


@given(st.integers(1, 3), dims, dims, dims, dims)
def test_downsample(trial, batch, height, width, inputs, outputs):
    x = trial.randn(batch, inputs, height + 1, width + 1)
    weight, bias = trial.randn(outputs, inputs, 3, 3), trial.randn(outputs)
    got = trial.nx.downsample(nhwc(trial, x), nhwc(trial, weight), trial.array(bias))
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
    trial.close("`downsample`", got, expected.permute(0, 2, 3, 1))


@given(st.integers(1, 3), dims, dims, dims)
def test_upsample(trial, batch, height, width, channels):
    x = trial.randn(batch, channels, height, width)
    expected = F.interpolate(x, scale_factor=2, mode="nearest").permute(0, 2, 3, 1)
    trial.close("`upsample`", trial.nx.upsample(nhwc(trial, x)), expected, 0)


@given(st.integers(1, 3), dims, st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=8))
def test_cos_sin(trial, batch, length, frequencies):
    positions = torch.randint(0, 5000, (batch, length))
    angles = positions[..., None].double() * torch.tensor(frequencies, dtype=torch.float64)
    cos, sin = trial.nx.cos_sin(trial.array(positions), frequencies)
    trial.close("`cos_sin`", cos, angles.cos(), 1e-6, "float32")
    trial.close("`cos_sin`", sin, angles.sin(), 1e-6, "float32")


def nhwc(trial, x: torch.Tensor):
    return trial.array(x.permute(0, 2, 3, 1).contiguous())


@pytest.mark.parametrize(
    "op", ["linear", "conv2d", "downsample", "upsample", "group_norm", "attention", "layer_norm", "gelu", "silu"]
)
@given(size=st.sampled_from([4, 6, 8, 10]), width=st.sampled_from([2, 4, 6]))
def test_gradients(trial, op, size, width):
    """MLX's gradients are those of the readable definition, which PyTorch differentiates."""
    mx = pytest.importorskip("mlx.core")
    if trial.nx.name == "numpy" or trial.dtype == "bfloat16":
        pytest.skip("gradients are taken by MLX, in float32")
    run, shapes = DIFFERENTIATED[op]
    inputs = [torch.randn(*(size if n is None else width if n == "w" else n for n in s)) for s in shapes]
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in inputs]
        expected = torch.autograd.grad((TORCH_DEFINITIONS[op](*leaves) ** 3).sum(), leaves)
    got = mx.grad(lambda arrays: (run(trial.nx, *arrays) ** 3).sum())([trial.array(x) for x in inputs])
    for ours, theirs in zip(got, expected, strict=True):
        trial.close(f"gradient of `{op}`", ours, theirs)


@pytest.mark.parametrize("op", ["linear", "conv2d", "downsample", "group_norm", "attention", "gelu", "silu"])
def test_compiled(trial, op):
    """What `mx.compile` traces, without numbers, gives the results and gradients of the op that sees numbers."""
    mx = pytest.importorskip("mlx.core")
    if trial.nx.name == "numpy":
        pytest.skip("compiling is MLX's")
    run, shapes = DIFFERENTIATED[op]
    inputs = [trial.array(trial.randn(*(8 if n is None else 6 if n == "w" else n for n in s))) for s in shapes]

    def loss(arrays):
        return (run(trial.nx, *arrays) ** 3).sum()

    for function in (lambda arrays: run(trial.nx, *arrays), mx.grad(loss)):
        got, expected = trial.nx.compile(function)(inputs), function(inputs)
        for ours, theirs in zip(got, expected, strict=True):
            trial.close(f"compiled `{op}`", ours, torch.from_numpy(trial.nx.to_numpy(theirs)))


# None is the image's side, "w" the other; how to call the op; PyTorch's definition of the same
DIFFERENTIATED = {
    "linear": (lambda nx, x, w, b: nx.linear(x, w, b), [(2, "w", None), (5, None), (5,)]),
    "conv2d": (lambda nx, x, w, b: nx.conv2d(x, w, b, 1, 1), [(2, None, "w", 5), (3, 3, 3, 5), (3,)]),
    "downsample": (lambda nx, x, w, b: nx.downsample(x, w, b), [(2, None, "w", 5), (3, 3, 3, 5), (3,)]),
    "upsample": (lambda nx, x: nx.upsample(x), [(2, None, "w", 5)]),
    "group_norm": (lambda nx, x, w, b: nx.group_norm(x, 2, w, b), [(2, None, "w", 6), (6,), (6,)]),
    "attention": (lambda nx, q, k, v: nx.attention(q, k, v), [(2, 3, None, 4), (2, 3, "w", 4), (2, 3, "w", 4)]),
    "layer_norm": (lambda nx, x: nx.layer_norm(x), [(2, "w", None)]),
    "gelu": (lambda nx, x: nx.gelu(x), [(2, "w", None)]),
    "exact_gelu": (lambda nx, x: nx.exact_gelu(x), [(2, "w", None)]),
    "silu": (lambda nx, x: nx.silu(x), [(2, "w", None)]),
}


def channels_last(op):
    """Let an op of PyTorch's take and return pictures with their channels last."""
    return lambda x, *w: op(x.permute(0, 3, 1, 2), *(v.permute(0, 3, 1, 2) if v.ndim == 4 else v for v in w)).permute(
        0, 2, 3, 1
    )


TORCH_DEFINITIONS = {
    "linear": F.linear,
    "conv2d": channels_last(lambda x, w, b: F.conv2d(x, w, b, padding=1)),
    "downsample": channels_last(lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, b, stride=2)),
    "upsample": channels_last(lambda x: F.interpolate(x, scale_factor=2, mode="nearest")),
    "group_norm": channels_last(lambda x, w, b: F.group_norm(x, 2, w, b, 1e-6)),
    "attention": F.scaled_dot_product_attention,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "exact_gelu": F.gelu,
    "silu": F.silu,
}


# the ops that NumPy and MLX have under one name: an example of each, run by the backend and by NumPy itself
SHARED_OPS = {
    "abs": lambda m, x: m.abs(x),
    "arange": lambda m, x: m.arange(5, dtype=m.float32),
    "argmax": lambda m, x: m.argmax(x, axis=1),
    "broadcast_to": lambda m, x: m.broadcast_to(x[:1], x.shape),
    "concatenate": lambda m, x: m.concatenate([x, x], axis=1),
    "cos": lambda m, x: m.cos(x),
    "exp": lambda m, x: m.exp(x),
    "log": lambda m, x: m.log(x * x),
    "max": lambda m, x: m.max(x, axis=-1, keepdims=True),
    "maximum": lambda m, x: m.maximum(x, -x),
    "mean": lambda m, x: m.mean(x, axis=0),
    "minimum": lambda m, x: m.minimum(x, -x),
    "ones": lambda m, x: m.ones((2, 3), dtype=m.float32),
    "pad": lambda m, x: m.pad(x, [(0, 1), (2, 0)]),
    "sin": lambda m, x: m.sin(x),
    "split": lambda m, x: m.concatenate(m.split(x, [1], axis=-1)[::-1], axis=-1),
    "sqrt": lambda m, x: m.sqrt(x * x),
    "stack": lambda m, x: m.stack([x, -x], axis=1),
    "sum": lambda m, x: m.sum(x, axis=(0, 1)),
    "tanh": lambda m, x: m.tanh(x),
    "where": lambda m, x: m.where(x > 0, x, -x),
    "zeros": lambda m, x: m.zeros((2, 3), dtype=m.float32),
}


@pytest.mark.parametrize("op", [op for op in SHARED if not op.startswith(("float", "int"))])
def test_shared_ops(nx, op):
    x = np.random.default_rng(0).standard_normal((4, 3), np.float32)
    got = nx.to_numpy(SHARED_OPS[op](nx, nx.array(x)))
    np.testing.assert_allclose(got, SHARED_OPS[op](np, x), rtol=2e-6, strict=op != "argmax")


# -- which backend -------------------------------------------------------------------------------------------


def test_backend_of_finds_the_library(nx):
    x = nx.array([[1.0, 2.0]])
    assert backend_of(x, None, x) is nx
    assert str(x.dtype).endswith("float32")


def test_backend_of_refuses_a_mix():
    pytest.importorskip("mlx.core")
    one, other = get_backend("numpy").array([1.0]), get_backend("mlx").array([1.0])
    with pytest.raises(TypeError, match="arrays of both numpy and mlx"):
        backend_of(one, other)
    with pytest.raises(TypeError, match="arrays of both mlx and numpy"):
        backend_of(other, None, one)


@pytest.mark.parametrize("thing", [torch.zeros(1), [1.0], 1.0, "x"])
def test_backend_of_refuses_what_is_no_array(thing):
    with pytest.raises(TypeError, match="expected a NumPy or MLX array"):
        backend_of(thing)


def test_backend_of_needs_an_array():
    with pytest.raises(TypeError, match="at least one array"):
        backend_of(None)


def test_unknown_backend():
    with pytest.raises(BackendError, match=r"^unknown backend 'cupy': choose 'auto', 'mlx' or 'numpy'$"):
        get_backend("cupy")


@pytest.mark.parametrize(
    ("platform", "advice"),
    [("darwin", "pip install mlx$"), ("linux", r"mlx\[cpu\].*mlx\[cuda12\]"), ("win32", "numpy backend")],
)
def test_missing_mlx_says_how_to_install_it(monkeypatch, platform, advice):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(backend, "_made", {})
    for module in ("minflux.backend.device", "minflux.backend.mlx"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "mlx.core", None)  # importing it now raises ImportError
    with pytest.raises(BackendError, match=advice):
        get_backend("mlx")
    assert available() == ["numpy"]


@pytest.mark.parametrize(("on_gpu", "expected"), [(False, "numpy"), (True, "mlx")])
def test_auto_is_numpy_unless_mlx_has_a_gpu(monkeypatch, on_gpu, expected):
    pytest.importorskip("mlx.core")
    monkeypatch.setattr(type(get_backend("mlx")), "on_gpu", on_gpu)
    assert get_backend("auto") is get_backend(expected)


def test_auto_is_numpy_where_mlx_is_not_installed(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert get_backend("auto") is get_backend("numpy")


def test_available():
    assert available()[-1] == "numpy"


def test_serving_ends_with_its_block():
    pytest.importorskip("mlx.core")
    x = get_backend("mlx").array([1.0])
    with serving("mlx-readable") as readable:
        assert backend_of(x) is readable
    assert backend_of(x) is get_backend("mlx")


def test_at_most_ten_overrides():
    mlx = pytest.importorskip("minflux.backend.mlx")
    ops = {name for name in vars(backend.Backend) if not name.startswith("_")}
    overridden = ops & (vars(mlx.MLXBackend).keys() | vars(mlx.ReadableMLXBackend).keys())
    assert len(overridden - {"array", "eval", "from_bfloat16", "name", "module", "to_numpy"}) <= 10


# -- several processes ---------------------------------------------------------------------------------------


def test_what_processes_say_to_each_other(nx, monkeypatch):
    """By a stand-in for the others, who give twice and ten times as much."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    monkeypatch.setattr(processes, "sum_of_all", lambda y: y + 2 * y + 10 * y)
    monkeypatch.setattr(processes, "rows_of_all", lambda y: nx.concatenate([y, 2 * y, 10 * y], axis=0))
    summed, gathered = nx.all_sum(nx.array(x)), nx.all_gather(nx.array(x))
    assert backend_of(summed, gathered).name == nx.name
    np.testing.assert_array_equal(nx.to_numpy(summed), 13 * x, strict=True)
    np.testing.assert_array_equal(nx.to_numpy(gathered), np.concatenate([x, 2 * x, 10 * x], axis=-1), strict=True)


# -- quantised matrices ----------------------------------------------------------------------------------------


@given(dims, st.integers(1, 3), st.sampled_from([4, 8]), dims)
def test_quantized_matmul(trial, rows, groups, bits, length):
    """Against the matrix that the format stands for, put together number by number."""
    q = torch.randint(0, 2**bits, (rows, 64 * groups))
    scales, biases, x = trial.randn(rows, groups), trial.randn(rows, groups), trial.randn(2, length, 64 * groups)
    each = 32 // bits  # of a uint32
    words = [[sum(int(n) << bits * i for i, n in enumerate(w)) for w in row.reshape(-1, each)] for row in q]
    weight = trial.nx.array(np.array(words, np.uint32))
    arrays = weight, trial.array(scales), trial.array(biases)
    matrix = q * scales.repeat_interleave(64, dim=1) + biases.repeat_interleave(64, dim=1)
    trial.close("`dequantized`", trial.nx.dequantized(*arrays), matrix)
    trial.close("`quantized_matmul`", trial.nx.quantized_matmul(trial.array(x), *arrays), x @ matrix.T)


# -- arrays --------------------------------------------------------------------------------------------------


def test_arrays_there_and_back(nx):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(nx.to_numpy(nx.array(x)), x)
    assert str(nx.array([0.1]).dtype).endswith("float32")
    assert str(nx.array([1, 2], dtype=nx.int32).dtype).endswith("int32")
    nx.eval(nx.array(x), {"a": nx.array(x)})


def test_numpy_takes_mlx_arrays():
    pytest.importorskip("mlx.core")
    mlx, numpy = get_backend("mlx"), get_backend("numpy")
    x = mlx.array([0.1, 3.0]).astype(mlx.xp.bfloat16)
    got = numpy.array(x)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, torch.tensor([0.1, 3.0]).bfloat16().float().numpy())


def test_as_float32(trial):
    x = trial.randn(3)
    trial.check(trial.nx.as_float32(trial.array(x)), x, 0, "float32")


def test_from_bfloat16(nx):
    x = torch.randn(7).bfloat16()
    got = nx.to_numpy(nx.from_bfloat16(x.view(torch.int16).numpy().view(np.uint16)))
    np.testing.assert_array_equal(got, x.float().numpy())


def test_wrong_shapes_are_caught(nx):
    with pytest.raises(jaxtyping.TypeCheckError):
        linear(nx.zeros((2, 3)), nx.zeros((5, 4)))
