"""A component's weights are read as they were written: from folders, shards, files of every naming."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.components import flux as flux_files
from minflux.checkpoints.components import vae as vae_files
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.safetensors import contents, read_safetensors, write_safetensors
from minflux.checkpoints.read import load_component, read_tree
from minflux.checkpoints.tree import flatten, leaves, tree
from minflux.errors import CheckpointError
from minflux.inference.load import save_model
from tests import tiny_model
from tests.checkpoints.oracles import KINDS, ORACLES, RECORDS, SMALL, SMALL_CONFIGS
from tests.checkpoints.test_detect import PREFIXES, the_part

# -- folders --------------------------------------------------------------------------------------------------


@KINDS
def test_folders_of_diffusers_and_transformers(nx, kind, tmp_path):
    """Theirs is read, ours is written, and theirs opens it with the same bits."""
    example = SMALL_CONFIGS[kind]
    module = ORACLES[kind](example)
    module.save_pretrained(tmp_path / "theirs" / kind)
    cfg, p = load_component(tmp_path / "theirs", kind, nx)
    assert cfg == example
    shapes = {name: tuple(w.shape) for name, w in leaves(p)}
    assert shapes == RECORDS[kind].shapes(cfg)

    save_component(tmp_path / "ours", kind, cfg, p)
    opened = type(module).from_pretrained(tmp_path / "ours" / kind)
    theirs, ours = module.state_dict(), opened.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_old_names_of_the_text_encoders(tmp_path):
    """CLIP without "text_model." in front and with its position numbers; T5's table under its second name."""
    nx = get_backend("numpy")
    for kind in ("text_encoder", "text_encoder_2"):
        cfg = SMALL_CONFIGS[kind]
        flat = {name: np.ones(shape, np.float32) for name, shape in RECORDS[kind].shapes(cfg).items()}
        save_component(tmp_path, kind, cfg, tree(flat))
        path = tmp_path / kind / "model.safetensors"
        if kind == "text_encoder":
            flat = {name.removeprefix("text_model."): w for name, w in flat.items()}
            flat["embeddings.position_ids"] = np.arange(77)
        else:
            flat["encoder.embed_tokens.weight"] = flat.pop("shared.weight")
        write_safetensors(path, flat)
        assert load_component(tmp_path, kind, nx)[0] == cfg


def saved_transformer(tmp_path, dtype=None):
    """A small transformer's folder; returns its weights' file and names in the file."""
    flat = {name: np.ones(shape, np.float32) for name, shape in flux_shapes(SMALL).items()}
    save_component(tmp_path, "transformer", SMALL, tree(flat), dtype)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    return path, safetensors.numpy.load_file(path) if dtype is None else None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda flat: flat.pop("proj_out.bias"), r"proj_out.bias: expected shape \(4,\), found no such weight"),
        (
            lambda flat: flat.update({"x_embedder.weight": np.ones((12, 5), np.float32)}),
            r"x_embedder.weight: expected shape \(12, 4\), found \(12, 5\)",
        ),
        (lambda flat: flat.update({"extra": np.ones(3, np.float32)}), r"extra: expected no such weight, found \(3,\)"),
        (
            lambda flat: flat.update({"proj_out.bias": np.array([0, np.nan, 0, 0], np.float32)}),
            "proj_out.bias: expected finite numbers, found NaN",
        ),
        (
            lambda flat: flat.update({"proj_out.bias": np.array([0, np.inf, 0, 0], np.float32)}),
            "proj_out.bias: expected finite numbers",
        ),
    ],
)
def test_weights_that_are_not_the_config_s(tmp_path, nx, change, complaint):
    path, flat = saved_transformer(tmp_path)
    change(flat)
    write_safetensors(path, flat)
    with pytest.raises(CheckpointError, match=f"diffusion_pytorch_model.safetensors: {complaint}") as error:
        load_component(tmp_path, "transformer", nx)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path, nx):
    with pytest.raises(CheckpointError, match=r"config.json: no such file"):
        load_component(tmp_path, "vae", nx)
    path, _ = saved_transformer(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors: no such file"):
        load_component(tmp_path, "transformer", nx)


def test_shards(tmp_path, nx):
    path, flat = saved_transformer(tmp_path)
    path.unlink()
    names = sorted(flat)
    index = {"weight_map": {}}
    for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        write_safetensors(path.with_name(shard), {name: flat[name] for name in part})
        index["weight_map"] |= dict.fromkeys(part, shard)
    path.with_name(path.name + ".index.json").write_text(json.dumps(index))
    cfg, p = load_component(tmp_path, "transformer", nx)
    assert cfg == SMALL
    assert len(flatten(p)) == len(flux_shapes(SMALL))


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({"weight_map": {"lost": "a.safetensors"}}, "a.safetensors: lost is in the index but not in the file"),
        ({"weight_map": {"lost": "../a.safetensors"}}, "a shard must lie in the same folder"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_is_wrong(tmp_path, nx, index, complaint):
    write_safetensors(tmp_path / "a.safetensors", {"there": np.ones(1, np.float32)})
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=complaint):
        read_safetensors(tmp_path / "x.safetensors.index.json", nx)


# -- files ----------------------------------------------------------------------------------------------------


def assert_same_tree(nx, got, expected):
    assert {name: x.shape for name, x in leaves(got)} == {name: x.shape for name, x in leaves(expected)}
    for name, x in leaves(got):
        np.testing.assert_array_equal(nx.to_numpy(x), flatten(expected)[name], err_msg=name)


@pytest.mark.parametrize("naming", ["bfl", "diffusers"])
@pytest.mark.parametrize("kind", ["transformer", "vae"])
def test_weights_are_the_same_under_every_naming(tmp_path, nx, kind, naming):
    shapes = flux_shapes(tiny_model.FLUX) if kind == "transformer" else vae_shapes(tiny_model.VAE)
    expected = tiny_model.random_tree(shapes, np.random.default_rng(0))
    flat = flatten(expected)
    bfl = flat if kind == "transformer" else vae_files.channels_second(flat)
    to_diffusers = flux_files.to_diffusers if kind == "transformer" else vae_files.bfl_to_diffusers
    prefix = PREFIXES[kind] if naming == "bfl" else ""
    stored = {prefix + name: x for name, x in (bfl if naming == "bfl" else to_diffusers(bfl)).items()}
    write_safetensors(tmp_path / "x.safetensors", stored)
    part = the_part(contents(tmp_path / "x.safetensors"))
    assert_same_tree(nx, read_tree(part, nx), expected)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_float8_weights_are_multiplied_by_their_scales(tmp_path, nx, scale):
    expected = tiny_model.random_tree(flux_shapes(tiny_model.FLUX), np.random.default_rng(0))
    stored = {name: torch.from_numpy(x) for name, x in flatten(expected).items()}
    small = (stored["img_in.weight"] / 0.5).to(torch.float8_e4m3fn)
    stored |= {"img_in.weight": small, f"img_in.{scale}": torch.tensor(0.5), "scaled_fp8": torch.zeros(0)}
    safetensors.torch.save_file(stored, tmp_path / "x.safetensors")
    part = the_part(contents(tmp_path / "x.safetensors"))
    got = read_tree(part, nx, "float32")
    np.testing.assert_array_equal(nx.to_numpy(got["img_in"]["weight"]), 0.5 * small.float().numpy())
    np.testing.assert_array_equal(nx.to_numpy(got["txt_in"]["weight"]), expected["txt_in"]["weight"])


def test_a_transformer_that_takes_more_than_latents_is_refused(tmp_path):
    folder = tmp_path / "model"
    save_model(tiny_model.pipeline(), folder)
    for name, source in tiny_model.TOKENIZERS.items():
        shutil.copytree(source, folder / name)
    fill = replace(tiny_model.FLUX, in_channels=96)
    weights = tiny_model.random_tree(flux_shapes(fill), np.random.default_rng(0))
    write_safetensors(folder / "fill.safetensors", flatten(weights))
    with pytest.raises(CheckpointError, match=r"expected a transformer of 16 channels.*found 96"):
        minflux.load(folder / "fill.safetensors")
