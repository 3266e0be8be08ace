"""A component's folder as it is found: shards with and without an index, variants, float8 with scales."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from minflux.checkpoints.open import open_model
from minflux.errors import CheckpointError
from minflux.inference.load import load
from tests.commands.runner import assert_refused, run

STEM = "diffusion_pytorch_model"
WHOLE = f"transformer/{STEM}.safetensors"


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """A copy of the small model, to change."""
    return shutil.copytree(model, tmp_path / "model")


def draw(folder: Path, **files) -> np.ndarray:
    return np.asarray(load(folder, "numpy", **files)("a cat", seed=3, steps=2))


def split(folder: Path, count: int, variant: str = "") -> dict[str, str]:
    """Replace the transformer's file by shards; return the index's map of names to shards."""
    flat = safetensors.torch.load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    shards = {}
    for i in range(count):
        name = f"{STEM}{variant}-{i + 1:05}-of-{count:05}.safetensors"
        part = dict(list(flat.items())[i::count])
        safetensors.torch.save_file(part, folder / "transformer" / name)
        shards |= dict.fromkeys(part, name)
    return shards


def write_index(folder: Path, shards: dict[str, str], variant: str = "") -> Path:
    path = folder / f"transformer/{STEM}.safetensors.index{variant}.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return path


# -- shards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True], ids=["no index", "index"])
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_draw_what_one_file_draws(copy, model, indexed, variant):
    shards = split(copy, 3, variant)
    if indexed:
        write_index(copy, shards, variant)
    np.testing.assert_array_equal(draw(copy), draw(model))


@pytest.mark.parametrize("indexed", [False, True], ids=["no index", "index"])
def test_a_sharded_component_s_folder_alone_is_inspected_and_converted(copy, model, tmp_path, indexed):
    shards = split(copy, 2)
    if indexed:
        write_index(copy, shards)
    done = run("inspect", copy / "transformer")
    assert done.exit_code == 0, done.output
    assert "transformer: " in done.output
    done = run("convert", copy / "transformer", tmp_path / "out.safetensors", "--format", "bfl")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(draw(model, transformer=tmp_path / "out.safetensors"), draw(model))


@pytest.mark.parametrize("command", ["inspect", "generate", "convert"])
def test_a_missing_shard_is_told_by_every_command(copy, tmp_path, command):
    split(copy, 3)
    (copy / f"transformer/{STEM}-00002-of-00003.safetensors").unlink()
    folder = copy / "transformer"
    words = "expected 3 shards, and found no index; there are"
    arguments = {
        "inspect": [folder],
        "generate": ["a cat", "--model", folder],
        "convert": [folder, tmp_path / "out", "--format", "minflux"],
    }[command]
    assert_refused(run(command, *arguments), words)


@pytest.mark.parametrize("number", [1, 2])
def test_one_shard_named_alone_is_told(copy, number):
    split(copy, 2)
    with pytest.raises(CheckpointError, match=r"is one of 2 shards: name the index of them all, or their folder"):
        open_model(copy / f"transformer/{STEM}-0000{number}-of-00002.safetensors")


# -- variants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_only_variant_is_opened(copy, variant, dtype):
    flat = {name: x.to(dtype) for name, x in safetensors.torch.load_file(copy / WHOLE).items()}
    safetensors.torch.save_file(flat, copy / WHOLE)
    expected = draw(copy)
    (copy / WHOLE).rename(copy / f"transformer/{STEM}.{variant}.safetensors")
    np.testing.assert_array_equal(draw(copy), expected)


def test_of_several_variants_one_must_be_named(copy, model):
    for variant in ("fp16", "bf16"):
        shutil.copy(copy / WHOLE, copy / f"transformer/{STEM}.{variant}.safetensors")
    np.testing.assert_array_equal(draw(copy), draw(model))  # beside one without a variant
    (copy / WHOLE).unlink()
    words = rf"expected one variant, found {STEM}.bf16.safetensors, {STEM}.fp16.safetensors: keep one, or name .* --tr"
    with pytest.raises(CheckpointError, match=words):
        load(copy, "numpy")
    done = run("inspect", copy)
    assert done.exit_code == 1
    assert "expected one variant, found" in done.output
    named = copy / f"transformer/{STEM}.fp16.safetensors"
    np.testing.assert_array_equal(draw(copy, transformer=named), draw(model))


def test_of_several_sharded_variants_an_index_may_be_named(copy, model):
    shards = {}
    for variant in (".fp16", ".bf16"):
        shutil.copy(model / WHOLE, copy / WHOLE)
        shards[variant] = split(copy, 2, variant)
    index = write_index(copy, shards[".fp16"], ".fp16")
    np.testing.assert_array_equal(draw(copy, transformer=index), draw(model))


# -- float8 --------------------------------------------------------------------------------------------------


def scaled(flat: dict[str, torch.Tensor], scale: str, mark: bool, rows: bool) -> dict[str, torch.Tensor]:
    """Store every matrix as float8 with its scale, one or for each row, and ComfyUI's mark or none."""
    found = dict(flat)
    for name, x in flat.items():
        if x.ndim == 2:
            stem = name.removesuffix(".weight")
            factor = (x.abs().amax(1, keepdim=True) if rows else x.abs().max()) / 448
            found[name], found[f"{stem}.{scale}"] = (x / factor).to(torch.float8_e4m3fn), factor
            if mark:
                text = b'{"format": "float8_e4m3fn"}'
                found[f"{stem}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
                found[f"{stem}.input_scale"] = torch.tensor(1.0)
    return found


def widened(flat: dict[str, torch.Tensor], scale: str) -> dict[str, torch.Tensor]:
    """Return each float8 times its scale, in float32."""
    result = {}
    for name, x in flat.items():
        factor = flat.get(f"{name.removesuffix('.weight')}.{scale}")
        if not name.endswith((scale, "comfy_quant", "input_scale")):
            result[name] = x.float() if factor is None else x.float() * factor
    return result


@pytest.mark.parametrize(
    ("scale", "mark", "rows"),
    [("scale_weight", False, False), ("weight_scale", True, False), ("weight_scale", True, True)],
    ids=["scale", "comfy", "rows"],
)
@pytest.mark.parametrize("part", [WHOLE, "text_encoder_2/model.safetensors"])
def test_float8_in_a_folder_is_the_same_to_every_command(copy, tmp_path, part, scale, mark, rows):
    flat = scaled(safetensors.torch.load_file(copy / part), scale, mark, rows)
    safetensors.torch.save_file(flat, copy / part)
    drawn = draw(copy)
    done = run("inspect", copy)
    assert done.exit_code == 0, done.output
    assert "of them scaled" in done.output
    done = run("convert", copy, tmp_path / "wide", "--format", "diffusers", "--dtype", "f32")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(draw(tmp_path / "wide"), drawn)
    safetensors.torch.save_file(widened(flat, scale), copy / part)
    np.testing.assert_array_equal(draw(copy), drawn)


@pytest.mark.parametrize("command", ["inspect", "generate", "convert"])
def test_a_scale_that_fits_no_row_is_told_from_the_header(copy, tmp_path, command):
    flat = scaled(safetensors.torch.load_file(copy / WHOLE), "weight_scale", mark=True, rows=False)
    flat["proj_out.weight_scale"] = torch.ones(2, 3)
    safetensors.torch.save_file(flat, copy / WHOLE)
    arguments = {
        "inspect": [copy],
        "generate": ["a cat", "--model", copy, "--out", tmp_path / "a.png"],
        "convert": [copy, tmp_path / "out", "--format", "minflux"],
    }[command]
    done = run(command, *arguments)
    assert done.exit_code == (1 if command == "inspect" else 2)
    assert "proj_out.weight: expected a scale of floats, one or (16,) of them; found F32 (2, 3)" in done.output
    assert not (tmp_path / "out").exists()
