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
from minflux.backend import available, get_backend
from minflux.checkpoints.components import T5, TRANSFORMER
from minflux.checkpoints.components.t5 import to_llama_cpp
from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.gguf import WRITABLE, to_blocks
from minflux.checkpoints.formats.safetensors import contents, read_array, read_safetensors, write_safetensors
from minflux.checkpoints.open import open_model
from minflux.checkpoints.read import load_component, read_tree
from minflux.checkpoints.tree import flatten
from minflux.errors import CheckpointError
from minflux.inference.memory import MODES
from tests.commands.runner import run
from tests.compare import relative_error

NX = get_backend("numpy")
FLUX_FILE = "transformer/diffusion_pytorch_model.safetensors"


def write_gguf(path, arrays: dict[str, np.ndarray], kinds=None, architecture: str = "flux") -> None:
    """Write arrays as people's converters do: matrices of a kind, one for all or by name, where their rows are whole
    blocks, others float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, array in arrays.items():
        kind = kinds[name] if isinstance(kinds, dict) else kinds
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


def widened_by_the_package(path: Path) -> dict[str, np.ndarray]:
    """Every number of a GGUF file, as the gguf package reads it."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist())))
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q5_1], ids=lambda kind: kind.name)
def test_a_quantised_file_draws_what_its_numbers_draw(folder, backend, mode, kind):
    """The oracle is a safetensors file of the numbers that the package widens."""
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    write_gguf(folder / "flux.gguf", arrays, kind)
    stored = open_model(folder / "flux.gguf").take("transformer")
    assert any(s.dtype == kind.name for s in stored.tensors.values())
    write_safetensors(folder / "flux.safetensors", widened_by_the_package(folder / "flux.gguf"))
    got, expected = (
        np.asarray(minflux.load(folder / f"flux.{ending}", backend, memory=mode)("a cat", steps=2))
        for ending in ("gguf", "safetensors")
    )
    np.testing.assert_array_equal(got, expected)
    plain = np.asarray(minflux.load(folder / "transformer", backend, memory=mode)("a cat", steps=2))
    assert (plain != got).any()


def test_blocks_stay_as_they_are_in_memory(folder):
    """A model that is held needs its file no more, and no matrix of it is wide."""
    write_gguf(folder / "flux.gguf", flatten(load_component(folder, "transformer", NX)[1]), Kind.Q5_1)
    pipe = minflux.load(folder / "flux.gguf", memory="resident")
    expected = pipe("a cat", steps=1)
    (folder / "flux.gguf").unlink()
    np.testing.assert_array_equal(pipe("a cat", steps=1), expected)
    linear1 = pipe.flux[1]["single_blocks"][0]["linear1"]
    (tensor,) = linear1.nodes["weight"].tensors.values()
    rows, columns = linear1["weight"].shape
    assert tensor.held.nbytes == tensor.size == rows * columns // 32 * BLOCKS["Q5_1"][1]


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
    with_lora = pipe.flux[1]["final_layer"]["linear"]["weight"]
    without = minflux.load(folder / "flux.gguf").flux[1]["final_layer"]["linear"]["weight"]
    np.testing.assert_allclose(with_lora, without + 1, atol=1e-6)
    result = run("convert", folder / "flux.gguf", "wide.safetensors", "--format", "bfl", "--part", "transformer")
    assert result.exit_code == 0, result.output
    wide, read = read_safetensors("wide.safetensors", NX), read_safetensors(folder / "flux.gguf", NX)
    assert wide.keys() == read.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(wide[name], array, err_msg=name)
    result = run("inspect", folder / "flux.gguf")
    assert "Q4_0" in result.output, result.output


# -- writing -------------------------------------------------------------------------------------------------


def test_the_writable_types_are_the_package_s():
    matrix = np.ones((2, 256), np.float32)
    writes = set()
    for kind in BLOCKS:
        with contextlib.suppress(NotImplementedError):
            to_blocks(matrix, kind)
            writes.add(kind)
    assert writes == set(WRITABLE)


def converted(folder, part: str, *settings: str, model=None) -> tuple[Path, dict]:
    """A part of the model as `minflux convert` writes it to a GGUF file, and what the package reads there by name."""
    path = folder / f"{part}.gguf"
    result = run("convert", model or folder, path, "--format", "gguf", "--part", part, *settings)
    assert result.exit_code == 0, result.output
    return path, {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", [kind for kind in WRITABLE if BLOCKS[kind][0] == 32])
def test_a_written_transformer_is_read_by_the_package_and_again(folder, kind):
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    path, tensors = converted(folder, "transformer", "--quantize", kind.lower())
    assert tensors.keys() == arrays.keys()
    quantised = {name for name, tensor in tensors.items() if tensor.tensor_type.name == kind}
    large = {name: array.shape for name, array in arrays.items() if array.size > 1024}
    assert quantised == {name for name, shape in large.items() if TRANSFORMER.is_quantisable(name, shape, 32)}
    assert {tensors[name].tensor_type.name for name in tensors.keys() - quantised} == {"F32"}
    for name, tensor in tensors.items():
        expected = gguf.quants.quantize(arrays[name], tensor.tensor_type)
        np.testing.assert_array_equal(tensor.data, expected, err_msg=name)
    again = flatten(read_tree(open_model(path).take("transformer"), NX))
    for name, wide in widened_by_the_package(path).items():
        np.testing.assert_array_equal(again[name], wide, err_msg=name)
    minflux.load(path)("a cat", steps=1)


def test_what_other_programs_look_at(folder):
    path, _ = converted(folder, "transformer", "--quantize", "Q8_0")
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "flux"
    assert fields["general.quantization_version"].contents() == 2
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    assert not list(folder.glob(".*"))  # nothing is left of what was begun


def test_a_written_t5_has_llama_cpp_s_names(folder):
    tiny = minflux.zoo.FOLDER / "tiny"
    expected = flatten(load_component(tiny, "text_encoder_2", NX)[1])
    path, tensors = converted(folder, "text_encoder_2", "--quantize", "q8_0", model=tiny)
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == "t5encoder"
    assert {"token_embd.weight", "enc.blk.0.attn_rel_b.weight", "enc.output_norm.weight"} <= tensors.keys()
    assert tensors["enc.blk.1.ffn_down.weight"].tensor_type == Kind.Q8_0
    got = flatten(read_tree(open_model(path).take("text_encoder_2"), NX))
    assert got.keys() == expected.keys()
    assert max(relative_error(got[name], array) for name, array in expected.items()) < 0.01


@pytest.mark.parametrize(("dtype", "kind"), [("f16", Kind.F16), ("bf16", Kind.BF16), ("f32", Kind.F32)])
def test_floats_are_written_as_asked_and_vectors_as_float32(folder, dtype, kind):
    path, tensors = converted(folder, "transformer", "--dtype", dtype)
    assert {t.tensor_type for t in tensors.values() if len(t.shape) > 1 and t.n_elements > 1024} == {kind}
    assert {t.tensor_type for t in tensors.values() if len(t.shape) == 1 or t.n_elements <= 1024} == {Kind.F32}
    expected = flatten(load_component(folder, "transformer", NX)[1])
    for name, array in flatten(read_tree(open_model(path).take("transformer"), NX)).items():
        assert relative_error(array, expected[name]) <= {"f32": 0, "f16": 2**-11, "bf16": 2**-8}[dtype], name


@pytest.mark.parametrize("settings", [("--dtype", "f16"), ("--quantize", "q8_0")])
def test_what_does_not_fit_is_told_and_nothing_is_left(folder, settings):
    arrays = flatten(load_component(folder, "transformer", NX)[1])
    arrays["single_blocks.0.linear2.weight"][3, 5] = 1e8
    write_safetensors(folder / "x.safetensors", arrays)
    result = run("convert", folder / "x.safetensors", folder / "x.gguf", "--format", "gguf", *settings)
    assert result.exit_code != 0
    assert "single_blocks.0.linear2.weight: a number as large as 1e+08 doesn't fit into" in result.stderr
    assert not [*folder.glob("*.gguf"), *folder.glob(".*")]


def test_it_says_what_quantising_changed(folder):
    result = run("convert", folder, folder / "x.gguf", "--format", "gguf", "--quantize", "q4_0")
    assert re.search(r"transformer: \d+ matrices quantised, relative error \d\.\d\d%; the worst is ", result.output)


# -- LoRAs ---------------------------------------------------------------------------------------------------


def lora_file(path: Path) -> str:
    """Pairs on a part of a joint matrix, on a whole one, and on one outside the blocks; one has a bias."""
    rng = np.random.default_rng(5)
    shapes = {
        "transformer_blocks.0.attn.to_k": (32, 32),
        "single_transformer_blocks.1.proj_out": (32, 160),
        "x_embedder": (32, 16),
    }
    pairs = {}
    for name, (rows, columns) in shapes.items():
        pairs[f"transformer.{name}.lora_A.weight"] = rng.standard_normal((4, columns)).astype(np.float32)
        pairs[f"transformer.{name}.lora_B.weight"] = 0.3 * rng.standard_normal((rows, 4)).astype(np.float32)
    pairs["transformer.transformer_blocks.0.attn.to_k.lora_B.bias"] = rng.standard_normal(32).astype(np.float32)
    write_safetensors(path, pairs)
    return str(path)


def final_latents(pipe) -> np.ndarray:
    return pipe.nx.to_numpy([*pipe.sample(pipe.encode("a cat"), seed=1, steps=2)][-1].x)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("kind", [Kind.Q5_1, Kind.Q4_0], ids=lambda kind: kind.name)
def test_a_lora_on_blocks_is_the_lora_on_their_numbers(folder, tmp_path, backend, mode, kind):
    """Added to a matrix as it is widened, it is the same to the bit; beside one that MLX has packed, to float32."""
    lora = [f"{lora_file(tmp_path / 'a.safetensors')}:0.7", lora_file(tmp_path / "b.safetensors")]
    write_gguf(folder / "flux.gguf", flatten(load_component(folder, "transformer", NX)[1]), kind)
    write_safetensors(folder / "flux.safetensors", widened_by_the_package(folder / "flux.gguf"))
    got, expected = (
        final_latents(minflux.load(folder / f"flux.{ending}", backend, lora=lora, memory=mode))
        for ending in ("gguf", "safetensors")
    )
    assert relative_error(got, expected) <= (1e-4 if backend == "mlx" and kind == Kind.Q4_0 else 0)
    assert relative_error(final_latents(minflux.load(folder / "flux.gguf", backend)), expected) > 1e-2


@pytest.mark.parametrize("backend", available())
def test_a_change_that_is_no_pair_is_added_to_the_wide_matrix(folder, tmp_path, backend):
    """A full difference can't lie beside a packed matrix, so MLX keeps that one in blocks too."""
    rng = np.random.default_rng(6)
    difference = {"diffusion_model.single_blocks.1.linear2.diff": rng.standard_normal((32, 160)).astype(np.float32)}
    write_safetensors(tmp_path / "l.safetensors", difference)
    write_gguf(folder / "flux.gguf", flatten(load_component(folder, "transformer", NX)[1]), Kind.Q8_0)
    write_safetensors(folder / "flux.safetensors", widened_by_the_package(folder / "flux.gguf"))
    lora = str(tmp_path / "l.safetensors")
    pipe = minflux.load(folder / "flux.gguf", backend, lora=lora)
    assert set(pipe.flux[1]["single_blocks"][1]["linear2"]) == {"weight", "bias"}
    expected = final_latents(minflux.load(folder / "flux.safetensors", backend, lora=lora))
    assert relative_error(final_latents(pipe), expected) <= (1e-4 if backend == "mlx" else 0)
    assert relative_error(final_latents(minflux.load(folder / "flux.gguf", backend)), expected) > 1e-2


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
