"""Other members of FLUX.1's family are told apart, and what can't be generated with is refused."""

import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import minflux
from minflux.backend import get_backend
from minflux.checkpoints import family
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.commands.convert import convert
from minflux.errors import CheckpointError
from minflux.model.flux import DEV
from tests import tiny_redux
from tests.commands.runner import run
from tools import synthetic_checkpoint as synthetic

REDUX = {
    "redux_up.weight": torch.zeros(96, 9), "redux_up.bias": torch.zeros(96),
    "redux_down.weight": torch.zeros(32, 96), "redux_down.bias": torch.zeros(32),
}  # fmt: skip


def test_redux_is_explained_and_is_no_model(tmp_path):
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file({name: x.bfloat16() for name, x in REDUX.items()}, file)
    result = run("inspect", file)
    assert result.exit_code == 0
    assert "FLUX.1 Redux, an adapter for image prompts: give it beside a model, by --redux" in result.output
    assert "Redux: 4,064 numbers in 4 weights, BF16; features of 9 numbers to text tokens of 32" in result.output
    with pytest.raises(CheckpointError, match=r"FLUX.1 Redux, an adapter for image prompts"):
        minflux.load(file)
    with pytest.raises(CheckpointError, match=r"holds no part that can be converted: .*Redux"):
        convert(file, tmp_path / "out", "diffusers")


def test_a_folder_of_redux(tmp_path):
    folder = tiny_redux.make(tmp_path / "redux")
    result = run("inspect", folder)
    assert result.exit_code == 0
    assert "SigLIP: 3,412 numbers in 37 weights, F32; width 12, 2 layers, 9 patches of 17 × 17 pixels" in result.output
    (folder / "image_encoder" / "model.safetensors").unlink()
    result = run("inspect", folder)
    assert result.exit_code == 1
    assert "image_encoder" in result.output


def test_a_damaged_redux(tmp_path):
    safetensors.torch.save_file({"redux_up.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    result = run("inspect", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert "redux_up.weight: expected at least 2 axes, found shape (1,)" in result.output


@pytest.mark.parametrize("name", family.PIPELINES)
def test_a_folder_s_index_tells_the_variant(dev_model, tmp_path, name):
    model = shutil.copytree(dev_model, tmp_path / "model")
    assert " it seems" not in run("inspect", model).output
    (model / "model_index.json").write_text(f'{{"_class_name": "{name}"}}')
    assert f"  model_index.json: a {name}, {family.PIPELINES[name]}\n" in run("inspect", model).output


def test_kontext_has_settings_of_its_own(dev_model, tmp_path):
    model = shutil.copytree(dev_model, tmp_path / "model")
    (model / "minflux.json").unlink()
    assert minflux.load(model).defaults.guidance == 3.5
    (model / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    assert minflux.load(model).defaults.guidance == 2.5


ONE_BLOCK_OF_DEV = replace(DEV, hidden_size=128, num_heads=1, depth=1, depth_single_blocks=1)
KREA = ": Krea-dev, it seems"


def test_krea_is_told_by_its_folder_s_name(dev_model, tmp_path):
    """dev, Krea-dev and Kontext have the same shapes: a name is all there is."""
    assert KREA in run("inspect", shutil.copytree(dev_model, tmp_path / "FLUX.1-Krea-dev")).output


def test_krea_is_told_by_the_cache_s_folders(dev_model, tmp_path):
    assert (
        KREA in run("inspect", shutil.copytree(dev_model, tmp_path / "models--x--FLUX.1-Krea-dev/snapshots/1")).output
    )


def test_krea_is_told_by_a_name_in_the_config(dev_model, tmp_path):
    model = shutil.copytree(dev_model, tmp_path / "model")
    config = model / "transformer" / "config.json"
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "somewhere/FLUX.1-Krea-dev",', 1))
    assert KREA in run("inspect", model).output


def test_krea_is_told_by_the_file_s_name(tmp_path):
    synthetic.make(tmp_path / "flux1-krea-dev.safetensors", ONE_BLOCK_OF_DEV)
    assert KREA in run("inspect", tmp_path / "flux1-krea-dev.safetensors").output


def test_krea_is_told_by_the_file_s_metadata(tmp_path):
    file = tmp_path / "flux.safetensors"
    synthetic.make(file, ONE_BLOCK_OF_DEV)
    write_safetensors(file, read_safetensors(file, get_backend("numpy")), {"modelspec.title": "FLUX.1 Krea"})
    assert KREA in run("inspect", file).output
