"""Files that other programs quantised: the numbers of each, and models of them, inspected, converted and drawn with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.foreign import join_quantised
from minflux.checkpoints.formats.entry import Coded
from minflux.checkpoints.formats.safetensors import contents, read_array, read_safetensors
from minflux.checkpoints.hashes import hash_model
from minflux.checkpoints.open import open_model
from minflux.inference.memory import MODES
from tests.checkpoints.quantisers import QUANTISERS, torchao_texts
from tests.checkpoints.test_single_files import PREFIXES, folder_for, stored
from tests.commands.runner import run

NX = get_backend("numpy")
EACH = pytest.mark.parametrize("kind", QUANTISERS)
SHAPES = [(5, 13), (48, 80), (3, 64), (7, 96)]
METHOD = "bitsandbytes"  # of those that don't say
NAME = "blocks.0.proj.weight"


def joined(path: Path) -> dict:
    return join_quantised(path, contents(path))


def quantised(arrays: dict[str, np.ndarray], kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Quantise the matrices of the blocks; returns a file's arrays, and the same model as plain float32."""
    narrow, wide = {}, {}
    for name, array in arrays.items():
        parts, expected = {name: torch.from_numpy(np.ascontiguousarray(array))}, array
        if array.ndim == 2 and ("block" in name):
            parts, expected = QUANTISERS[kind](name, array)
        narrow |= parts
        wide[name] = torch.from_numpy(np.ascontiguousarray(expected))
    return narrow, wide


def make_folders(model: Path, target: Path, kind: str, parts=("transformer", "text_encoder_2")) -> tuple[Path, Path]:
    """A copy of a model with components quantised in shards, as diffusers writes them, and one of the same numbers."""
    narrow, wide = (Path(shutil.copytree(model, target / name)) for name in ("narrow", "wide"))
    for part in parts:
        file = Path(part, f"{COMPONENTS[part].stem}.safetensors")
        codes, floats = quantised(read_safetensors(model / file, NX), kind)
        safetensors.torch.save_file(floats, wide / file)
        (narrow / file).unlink()
        write_shards(narrow / file, codes)
        config = narrow / part / "config.json"
        how = {
            "quant_method": next(word for word in ("quanto", "torchao", "bitsandbytes") if word in f"{kind} {METHOD}")
        }
        config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": how}))
    return narrow, wide


def write_shards(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    """Write arrays in two shards and an index; parts of one weight fall into both."""
    names = sorted(arrays)
    files = {name: f"{path.stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        inside = {name: arrays[name] for name in names if files[name] == file}
        safetensors.torch.save_file(inside, path.with_name(file), torchao_texts(arrays))
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


# -- numbers -------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_those_of_the_published_formula(tmp_path, nx, kind, shape):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    arrays, expected = QUANTISERS[kind](NAME, matrix)
    safetensors.torch.save_file(arrays, tmp_path / "x.safetensors", torchao_texts(arrays))
    found = joined(tmp_path / "x.safetensors")
    assert found.keys() - {"blocks.0.proj.input_scale", "blocks.0.proj.output_scale"} == {NAME}
    assert found[NAME].shape == shape
    np.testing.assert_array_equal(nx.to_numpy(read_array(found[NAME], nx, "float32")), expected, strict=True)
    assert np.abs(expected - matrix).max() < 0.5  # it is that matrix, about: not its transpose


# -- models --------------------------------------------------------------------------------------------------


@EACH
def test_a_folder_draws_what_its_numbers_draw(model, tmp_path, kind):
    narrow, wide = make_folders(model, tmp_path, kind)
    expected = np.asarray(minflux.load(wide)("a cat", steps=2))
    assert (np.asarray(minflux.load(model)("a cat", steps=2)) != expected).any()
    for mode in MODES:
        np.testing.assert_array_equal(np.asarray(minflux.load(narrow, memory=mode)("a cat", steps=2)), expected)


@EACH
def test_inspect_counts_the_numbers_of_the_matrices(model, tmp_path, kind):
    narrow, wide = make_folders(model, tmp_path, kind)
    result, plain = run("inspect", narrow), run("inspect", wide)
    assert result.exit_code == 0, result.output
    found = open_model(narrow).take("transformer")
    tags = {tensor.dtype for tensor in found.tensors.values() if isinstance(tensor, Coded)}
    assert len(tags) == 1
    assert f"{tags.pop()} (" in result.output
    numbers = [line.split(" numbers ")[0] for line in plain.output.splitlines() if " numbers " in line]
    assert [line.split(" numbers ")[0] for line in result.output.splitlines() if " numbers " in line] == numbers


@EACH
def test_convert_writes_the_numbers(model, tmp_path, kind):
    narrow, wide = make_folders(model, tmp_path, kind)
    for source, target in ((narrow, "a"), (wide, "b")):
        result = run("convert", source, tmp_path / f"{target}.safetensors", "--format", "bfl")
        assert result.exit_code == 0, result.output
    got, expected = (safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert torch.equal(got[name], array), name


@EACH
def test_a_single_file_as_comfyui_packs_it(model, tmp_path, kind):
    """All in one: the quantised transformer under ComfyUI's prefix, beside a T5 under its own."""
    parts = ("transformer", "text_encoder_2")
    folder = folder_for(model, tmp_path / "model", weights=("vae", "text_encoder"))
    files: tuple[dict, dict] = ({}, {})
    for part in parts:
        arrays = {name: array.numpy() for name, array in stored(model, part).items()}
        for flat, held in zip(files, quantised(arrays, kind), strict=True):
            flat |= {PREFIXES[part] + name: array for name, array in held.items()}
    got, expected = (save_and_draw(folder / f"{i}.safetensors", flat) for i, flat in enumerate(files))
    np.testing.assert_array_equal(got, expected)


def save_and_draw(path: Path, arrays: dict[str, torch.Tensor]) -> np.ndarray:
    safetensors.torch.save_file(arrays, path, torchao_texts(arrays))
    return np.asarray(minflux.load(path)("a cat", steps=2))


@EACH
def test_scales_count_in_the_model_s_hash(model, tmp_path, kind):
    narrow, _ = make_folders(model, tmp_path, kind)
    component = open_model(narrow).take("transformer")
    before = hash_model(narrow, {"transformer": component})
    part = next(tensor.parts["absmax"] for tensor in component.tensors.values() if isinstance(tensor, Coded))
    with part.path.open("r+b") as file:
        file.seek(part.start)
        first = file.read(1)[0]
        file.seek(part.start)
        file.write(bytes([first ^ 1]))
    assert hash_model(narrow, {"transformer": open_model(narrow).take("transformer")}) != before
