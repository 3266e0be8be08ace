"""GGUF's simplest types in MLX's packing: the same numbers to the bit, multiplied by as they lie."""

import shutil

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

import minflux
from minflux.backend import available
from minflux.checkpoints.components.flux import to_diffusers
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.safetensors import read_array
from minflux.checkpoints.open import open_model
from minflux.checkpoints.read import load_component
from minflux.checkpoints.relaid import BITS, GROUP, relaid, three_arrays
from minflux.checkpoints.tree import flatten
from minflux.inference.memory import MODES
from tests.checkpoints.test_gguf import NX, write_gguf
from tests.compare import relative_error

QKV = "double_blocks.0.img_attn.qkv"
ON_MLX = [name for name in available() if name != "numpy"]


def in_blocks(kind: str, rows: int, groups: int, seed: int = 0) -> Stored:
    """A random matrix in blocks, its rows of very different sizes, held in memory."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-7, 3, (rows, 1))
    matrix = (sizes * rng.standard_normal((rows, 32 * groups))).astype(np.float32)
    raw = gguf.quants.quantize(matrix, Kind[kind])
    return Stored(None, kind, matrix.shape, 0, raw.reshape(-1))


def arrays(blocks: Stored, nx, dtype: str | None = "float32") -> list:
    """What stands for a matrix: packed numbers, scales and biases."""
    return [read_array(part, nx, dtype) for part in three_arrays("a.weight", blocks).values()]


def by_the_package(blocks: Stored) -> np.ndarray:
    rows = blocks.held.reshape(blocks.shape[0], -1)
    return gguf.quants.dequantize(rows, Kind[blocks.dtype])


# -- numbers -------------------------------------------------------------------------------------------------


@given(kind=st.sampled_from(sorted(BITS)), rows=st.integers(1, 5), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_it_is_the_same_matrix_to_the_bit(nx, kind, rows, groups, seed):
    blocks = in_blocks(kind, rows, groups, seed)
    got = nx.dequantized(*arrays(blocks, nx), GROUP)
    np.testing.assert_array_equal(nx.to_numpy(got), by_the_package(blocks), strict=True)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_float16_holds_every_scale(nx, kind, dtype):
    """As they are in the file, or asked for: widened afterwards, they are those of float32."""
    blocks = in_blocks(kind, rows=3, groups=2)
    for got, expected in zip(arrays(blocks, nx, dtype), arrays(blocks, nx), strict=True):
        np.testing.assert_array_equal(nx.to_numpy(got).astype(np.float32), nx.to_numpy(expected).astype(np.float32))


@pytest.mark.parametrize("kind", BITS)
def test_products_are_the_float_matrix_s(nx, kind):
    """By a kernel or widened; rows differ by 10¹⁰, and each is to be right."""
    blocks = in_blocks(kind, rows=7, groups=3)
    x = np.random.default_rng(1).standard_normal((2, 5, blocks.shape[1])).astype(np.float32)
    expected = x @ by_the_package(blocks).T
    got = nx.to_numpy(nx.quantized_matmul(nx.array(x), *arrays(blocks, nx)))
    for row in range(7):
        assert relative_error(got[..., row], expected[..., row]) < 3e-6


# -- models --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model, tmp_path):
    """A copy of the small model, with its transformer beside it as arrays."""
    return shutil.copytree(model, tmp_path / "model")


def final_latents(pipe) -> np.ndarray:
    return pipe.nx.to_numpy([*pipe.sample(pipe.encode("a cat"), seed=1, steps=2)][-1].x)


@pytest.mark.skipif(not ON_MLX, reason="what is re-laid is for MLX")
@pytest.mark.parametrize(("serving", "mode"), [("mlx-fused", "resident"), *(("mlx", mode) for mode in MODES)])
@pytest.mark.parametrize("kind", BITS)
def test_mlx_multiplies_by_it_as_it_lies(folder, serving, mode, kind):
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    write_gguf(folder / "flux.gguf", arrays, Kind[kind])
    expected = final_latents(minflux.load(folder / "flux.gguf", "numpy"))
    with minflux.backend.serving(serving):
        pipe = minflux.load(folder / "flux.gguf", "mlx", memory=mode)
        got = final_latents(pipe)
    assert relative_error(got, expected) < 1e-4
    linear1 = pipe.flux[1]["single_blocks"][0]["linear1"]
    assert set(linear1) == {"weight", "scales", "biases", "bias"}


def test_parts_of_a_joint_matrix_are_joined_as_they_lie(folder):
    """Under diffusers' names q, k and v are apart, and one of another number of bits keeps all of them in blocks."""
    ours = flatten(load_component(folder, "transformer", NX)[1])
    apart = to_diffusers(ours)
    write_gguf(folder / "ours.gguf", ours, Kind.Q4_0)
    write_gguf(folder / "apart.gguf", apart, Kind.Q4_0)
    mixed = {"to_k": Kind.Q8_0, "to_v": Kind.Q4_1}
    kinds = {name: next((kind for part, kind in mixed.items() if part in name), Kind.Q4_0) for name in apart}
    write_gguf(folder / "mixed.gguf", apart, kinds)
    paths = {name: folder / f"{name}.gguf" for name in ("ours", "apart", "mixed")}
    found = {name: relaid(open_model(path).take("transformer")) for name, path in paths.items()}
    assert f"{QKV}.scales" in found["ours"].sources
    assert len(found["apart"].sources[f"{QKV}.scales"]) == 3
    assert f"{QKV}.scales" not in found["mixed"].sources
    for name, path in paths.items():
        drawn = [final_latents(minflux.load(path, backend)) for backend in available()]
        assert relative_error(drawn[-1], drawn[0]) < 1e-4, name


@pytest.mark.skipif(not ON_MLX, reason="bfloat16 is MLX's")
def test_in_bfloat16_blocks_stay_blocks(folder):
    """Its rounding of q · d would be nearly as large as Q8_0's own error."""
    write_gguf(folder / "flux.gguf", flatten(load_component(folder, "transformer", NX)[1]), Kind.Q8_0)
    p = minflux.load(folder / "flux.gguf", "mlx", dtype="bfloat16").flux[1]
    assert set(p["single_blocks"][0]["linear1"]) == {"weight", "bias"}


def test_what_is_looked_up_or_lies_outside_the_blocks_stays_as_it_is(folder):
    write_gguf(folder / "flux.gguf", flatten(load_component(folder, "transformer", NX)[1]), Kind.Q8_0)
    stored = open_model(folder / "flux.gguf").take("transformer")
    laid = relaid(stored)
    assert laid.tensors["final_layer.linear.weight"] is stored.tensors["final_layer.linear.weight"]
    assert laid.numbers(f"{QKV}.weight") == stored.numbers(f"{QKV}.weight")
    packed = sum(laid.tensors[f"{QKV}.{part}"].size for part in ("weight", "scales", "biases"))
    assert packed == stored.numbers(f"{QKV}.weight") * 9 // 8
