"""MLX on a Linux CPU without a fast BLAS: every product of a model is NumPy's, in every precision, without a warning.

The tests of `test_ops.py` that are imported here run once more, on that backend.
"""

import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import minflux
from minflux import backend
from minflux.backend import blas, get_backend
from minflux.train.loop import Plan, train
from minflux.train.optimizer import AdamW
from minflux.train.workers import Team
from tests.backend.test_ops import (  # noqa: F401
    test_attention,
    test_compiled,
    test_conv2d,
    test_downsample,
    test_gradients,
    test_group_norm,
    test_linear,
    test_quantized_matmul,
)  # fmt: skip
from tests.compare import Trial, relative_error

mx = pytest.importorskip("mlx.core")
linux_cpu = pytest.importorskip("minflux.backend.linux_cpu")


@pytest.fixture(autouse=True)
def nx(monkeypatch):
    """The backend of a machine without a fast BLAS; it serves MLX's arrays while the test runs."""
    nx = linux_cpu.NumPyProductsBackend()
    monkeypatch.setitem(backend._made, "mlx", nx)
    return nx


class Unrecorded(Trial):
    """A trial whose errors are checked, and not put on record among those of this machine's backends."""

    def close(self, component, *comparison):
        self.check(*comparison)


@pytest.fixture(params=["float32", "bfloat16"])
def trial(request, nx):
    return Unrecorded(nx, "mlx", request.param)


FLOATS = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
x, weight, bias = (mx.array(np.random.default_rng(0).standard_normal(s, np.float32)) for s in ((2, 7, 9), (5, 9), (5,)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_product_is_numpys_rounded_once(nx, dtype):
    rounded = [array.astype(FLOATS[dtype]) for array in (x, weight, bias)]
    wide = [np.array(array.astype(mx.float32)) for array in rounded]
    got, expected = nx.linear(*rounded), mx.array(get_backend("numpy").linear(*wide)).astype(FLOATS[dtype])
    assert got.dtype == expected.dtype
    assert mx.array_equal(got, expected)


def test_arguments_may_be_named(nx):
    assert mx.array_equal(nx.linear(x, bias=bias, weight=weight), nx.linear(x, weight, bias))


def test_arrays_of_several_dtypes_are_left_to_mlx(nx):
    """MLX has the rule for the result's dtype."""
    got = nx.linear(x.astype(mx.bfloat16), weight)
    assert got.dtype == mx.float32
    np.testing.assert_allclose(got, x.astype(mx.bfloat16).astype(mx.float32) @ weight.T, rtol=1e-5, atol=1e-5)


# -- a whole model ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_products_of_mlx(monkeypatch):
    """Any product that MLX itself is asked for raises an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("MLX was asked for a product")

    for name in ("matmul", "addmm", "quantized_matmul", "conv2d", "conv_general", "einsum", "tensordot", "inner"):
        monkeypatch.setattr(mx, name, refuse)
    monkeypatch.setattr(mx.array, "__matmul__", refuse)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", refuse)


def test_what_stands_in_for_mlx_products_is_used(no_products_of_mlx):
    for product in (lambda: x @ weight.T, lambda: mx.matmul(x, weight.T)):
        with pytest.raises(AssertionError, match="MLX was asked"):
            product()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_image_takes_no_product_of_mlx(no_products_of_mlx, dtype):
    """Text encoders, transformer and decoder; the image is NumPy's but for rounding."""
    image = minflux.load("tiny", "mlx", dtype)("a cat", seed=0, steps=2)
    difference = np.asarray(image, np.float32) - minflux.load("tiny", "numpy")("a cat", seed=0, steps=2)
    assert np.abs(difference).mean() < (0.01 if dtype == "float32" else 1)


def test_encoding_an_image_takes_no_product_of_mlx(no_products_of_mlx, nx):
    from minflux.model.vae import encode

    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    ours, numpys = (minflux.load("tiny", name).vae for name in ("mlx", "numpy"))
    got, expected = encode(*reversed(ours), nx.array(image)), encode(*reversed(numpys), image)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_quantised_matrix_takes_no_product_of_mlx(no_products_of_mlx, nx, dtype):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, (6, 8), np.uint32)
    rows, scales, biases = (rng.standard_normal(shape, np.float32) for shape in ((3, 64), (6, 1), (6, 1)))
    expected = get_backend("numpy").quantized_matmul(rows, words, scales, biases)
    got = nx.quantized_matmul(
        nx.array(rows).astype(FLOATS[dtype]),
        nx.array(words),
        nx.array(scales).astype(FLOATS[dtype]),
        nx.array(biases).astype(FLOATS[dtype]),
    )
    assert got.dtype == FLOATS[dtype]
    assert relative_error(nx.to_numpy(got), expected) < (1e-6 if dtype == "float32" else 1e-2)


def test_an_op_of_a_gradient_inside_a_compiled_function(nx):
    """Such a gradient has no numbers either, and MLX says so by another error."""
    image, kernel, bias = mx.random.normal((1, 4, 4, 5)), mx.random.normal((3, 3, 3, 5)), mx.zeros(3)

    def convolved_by_gradient(image, kernel):
        gradient = mx.grad(lambda kernel: (nx.conv2d(image, kernel, bias, padding=1) ** 2).sum())(kernel)
        return nx.conv2d(image, gradient, bias, padding=1)

    got, expected = nx.compile(convolved_by_gradient)(image, kernel), convolved_by_gradient(image, kernel)
    assert relative_error(nx.to_numpy(got), nx.to_numpy(expected)) < 1e-5


# -- which backend, and what is said ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "on_gpu", "loaded", "expected"),
    [
        ("linux", False, "libopenblas.so.0", "LinuxCPUBackend"),
        ("linux", False, None, "NumPyProductsBackend"),
        ("linux", True, None, "MLXBackend"),
        ("darwin", False, None, "MLXBackend"),
    ],
)
def test_the_backend_suits_the_device(monkeypatch, platform, on_gpu, loaded, expected):
    from minflux.backend import device

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(device.MLXBackend, "on_gpu", on_gpu)
    monkeypatch.setattr(blas, "loaded", loaded)
    assert type(device.mlx_backend()).__name__ == expected


WITHOUT_BLAS = """
import sys
from minflux.backend import blas
blas.candidates = lambda: []
from minflux.commands.main import main
sys.argv[0] = "minflux"
main()
"""


def test_without_a_blas_generate_says_nothing_of_it(tmp_path):
    """In a process of its own, as only there MLX is not loaded yet."""
    args = ["generate", "a cat", "--backend", "mlx", "--steps", "1", "--out", str(tmp_path / "cat.png")]
    command = [sys.executable, "-W", "error", "-c", WITHOUT_BLAS, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cat.png").exists()
    assert "BLAS" not in done.stderr
    assert "warning" not in done.stderr


@pytest.mark.parametrize(
    ("rank", "loaded", "on_gpu", "told"),
    [(0, None, False, 1), (1, None, False, 0), (0, "libopenblas.so.0", False, 0), (0, None, True, 0)],
)
def test_training_without_a_blas_says_once_what_to_install(monkeypatch, capsys, tmp_path, rank, loaded, on_gpu, told):
    """MLX takes gradients alone; of several processes that train together the first says it."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(blas, "loaded", loaded)
    monkeypatch.setattr(linux_cpu.NumPyProductsBackend, "on_gpu", on_gpu)
    nothing_to_do = Plan(tmp_path, steps=0), AdamW(), {"w": x}, lambda rng: (), lambda p: p["w"].sum()
    with nullcontext() if rank == 0 else pytest.raises(SystemExit), Team(rank) as team:  # another one ends with it
        train(get_backend("mlx"), team, *nothing_to_do)
    line = f"no fast BLAS found, so a step takes many times longer: {blas.INSTALL}\n"
    assert capsys.readouterr().err.count(line) == told
