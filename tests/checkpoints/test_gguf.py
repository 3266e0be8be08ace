"""GGUF files: every type against the gguf package's own reference, and models in them, drawn with."""

import contextlib
import re
import shutil
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.components import T5, TRANSFORMER
from minflux.checkpoints.components.t5 import to_llama_cpp
from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.safetensors import contents, read_array, read_safetensors, write_safetensors
from minflux.checkpoints.open import open_model
from minflux.checkpoints.read import load_component, read_tree
from minflux.checkpoints.tree import flatten
from minflux.errors import CheckpointError
from tests.commands.runner import run

NX = get_backend("numpy")
FLUX_FILE = "transformer/diffusion_pytorch_model.safetensors"


def write_gguf(path, arrays: dict[str, np.ndarray], kind: Kind | None = None, architecture: str = "flux") -> None:
    """Write arrays as people's converters do: matrices of `kind` where their rows are whole blocks, others float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, array in arrays.items():
        fits = kind is not None and array.ndim == 2 and array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        data = gguf.quants.quantize(array, kind) if fits else array
        writer.add_tensor(name, data, raw_dtype=kind if fits else Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind: str, rows: int, blocks: int) -> np.ndarray:
    """Random bytes of blocks, (rows, bytes): any bytes are some numbers, but a scale must not be NaN."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    raw = rng.integers(0, 256, (rows * blocks, BLOCKS[kind][1]), np.uint8)
    raw[raw & 0x7C == 0x7C] &= 0x3F  # no byte can then be the upper one of an infinity or a NaN
    return raw.reshape(rows, -1)


# -- types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_type_is_what_the_package_reads(tmp_path, nx, kind):
    raw = random_blocks(kind, rows=3, blocks=2)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "flux")
    writer.add_tensor("a.weight", raw, raw_dtype=Kind[kind])
    writer.add_tensor("b.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = contents(tmp_path / "x.gguf")
    assert found["a.weight"].shape == (3, 2 * BLOCKS[kind][0])
    assert found["a.weight"].size == raw.size
    expected = gguf.quants.dequantize(raw, Kind[kind])
    got = nx.to_numpy(read_array(found["a.weight"], nx, "float32"))
    np.testing.assert_array_equal(got, expected, strict=True)
    np.testing.assert_array_equal(nx.to_numpy(read_array(found["b.weight"], nx)), [[0, 1, 2], [3, 4, 5]])


def test_the_table_of_blocks_is_the_package_s():
    assert {name: gguf.GGML_QUANT_SIZES[Kind[name]] for name in BLOCKS} == BLOCKS


# -- models --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model, tmp_path):
    """A copy of the small model."""
    return shutil.copytree(model, tmp_path / "model")


def test_floats_draw_what_the_folder_draws(folder, nx):
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    write_gguf(folder / "flux.gguf", arrays)
    expected = np.asarray(minflux.load(folder, nx.name)("a cat", steps=2))
    (folder / FLUX_FILE).unlink()
    for path in (folder / "flux.gguf", folder):
        np.testing.assert_array_equal(np.asarray(minflux.load(path, nx.name)("a cat", steps=2)), expected)


@pytest.mark.parametrize("mode", ["resident", "staged", "streamed"])
def test_a_quantised_file_draws_what_its_numbers_draw(folder, tmp_path, mode):
    """The oracle is a safetensors file of the numbers that the package widens."""
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    write_gguf(folder / "flux.gguf", arrays, Kind.Q8_0)
    stored = open_model(folder / "flux.gguf").take("transformer")
    assert any(s.dtype == "Q8_0" for s in stored.tensors.values())
    reader = gguf.GGUFReader(folder / "flux.gguf")
    wide = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist())))
        for t in reader.tensors
    }
    write_safetensors(folder / "flux.safetensors", wide)
    got, expected = (
        np.asarray(minflux.load(folder / f"flux.{ending}", memory=mode)("a cat", steps=2))
        for ending in ("gguf", "safetensors")
    )
    np.testing.assert_array_equal(got, expected)
    plain = np.asarray(minflux.load(folder / "transformer", memory=mode)("a cat", steps=2))
    assert (plain != got).any()


def test_t5_under_llama_cpp_s_names(folder):
    _, p = load_component(folder, "text_encoder_2", NX)
    write_gguf(folder / "t5.gguf", to_llama_cpp(flatten(p)), architecture="t5encoder")
    names = contents(folder / "t5.gguf")
    assert {"token_embd.weight", "enc.blk.0.attn_rel_b.weight", "enc.blk.1.ffn_gate.weight"} <= names.keys()
    (folder / "text_encoder_2" / "model.safetensors").unlink()
    stored = open_model(folder).take("text_encoder_2")
    assert stored.naming.name == "llama.cpp"
    got = flatten(read_tree(stored, NX))
    assert got.keys() == flatten(p).keys()
    for name, array in flatten(p).items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_lora_convert_and_inspect(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    write_gguf(folder / "flux.gguf", arrays, Kind.Q4_0)
    d = arrays["final_layer.linear.weight"].shape[1]
    rows = arrays["final_layer.linear.weight"].shape[0]
    pair = {"lora_A.weight": np.ones((1, d), np.float32), "lora_B.weight": np.ones((rows, 1), np.float32)}
    write_safetensors(tmp_path / "l.safetensors", {f"final_layer.linear.{role}": x for role, x in pair.items()})
    pipe = minflux.load(folder / "flux.gguf", lora="l.safetensors")
    with_lora = flatten(pipe.flux[1])["final_layer.linear.weight"]
    without = flatten(minflux.load(folder / "flux.gguf").flux[1])["final_layer.linear.weight"]
    np.testing.assert_allclose(with_lora, without + 1, atol=1e-6)
    result = run("convert", folder / "flux.gguf", "wide.safetensors", "--format", "bfl", "--part", "transformer")
    assert result.exit_code == 0, result.output
    wide, read = read_safetensors("wide.safetensors", NX), read_safetensors(folder / "flux.gguf", NX)
    assert wide.keys() == read.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(wide[name], array, err_msg=name)
    result = run("inspect", folder / "flux.gguf")
    assert "Q4_0" in result.output, result.output


# -- damage --------------------------------------------------------------------------------------------------


def test_a_type_that_is_not_read_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "flux")
    writer.add_tensor("img_in.weight", np.zeros((1, 17), np.uint8), raw_dtype=Kind.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"img_in.weight: is of GGUF's type MXFP4, which minflux doesn't read"):
        contents(tmp_path / "x.gguf")


def test_a_file_cut_anywhere_is_told(tmp_path):
    write_gguf(tmp_path / "x.gguf", {"img_in.weight": np.ones((4, 32), np.float32)}, Kind.Q8_0)
    whole = (tmp_path / "x.gguf").read_bytes()
    for length in [4, 7, 23, 30, 60, 100, len(whole) - 40]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "cut.gguf"))):
            contents(tmp_path / "cut.gguf")


def test_a_header_that_counts_more_than_there_is(tmp_path):
    write_gguf(tmp_path / "x.gguf", {"img_in.weight": np.ones((4, 32), np.float32)})
    raw = bytearray((tmp_path / "x.gguf").read_bytes())
    raw[8:16] = (1 << 60).to_bytes(8, "little")
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"is cut short, or no GGUF file: .*it ends too early"):
        contents(tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", [0, 9])  # an array of numbers, and of arrays of arrays
def test_a_setting_that_counts_to_the_end_of_time(tmp_path, kind):
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)
    array = struct.pack("<IQ", kind, 1 << 60)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    (tmp_path / "x.gguf").write_bytes(head + key + array * 2000)
    with pytest.raises(CheckpointError, match="is cut short, or no GGUF file"):
        contents(tmp_path / "x.gguf")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_told_or_read(place, written):
    """Wherever a few bytes are overwritten: an error of ours, or arrays that lie inside the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.gguf")
        write_gguf(path, {"img_in.weight": np.ones((4, 32), np.float32), "b": np.ones(3, np.float32)}, Kind.Q8_0)
        raw = bytearray(path.read_bytes())
        place %= len(raw)
        raw[place : place + len(written)] = written
        path.write_bytes(raw)
        found = {}
        with contextlib.suppress(CheckpointError):
            found = contents(path)
        assert all(stored.start + stored.size <= len(raw) for stored in found.values())


def test_the_records_know_every_naming_of_t5():
    assert [naming.name for naming in T5.namings] == ["transformers", "llama.cpp", "mflux"]
    assert (T5.own_naming.name, TRANSFORMER.own_naming.name) == ("transformers", "bfl")
