"""What a file holds, told from its names and shapes: every format, every variant, at full size and without weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import minflux
from minflux.backend import get_backend
from minflux.checkpoints import family
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components import flux as flux_files
from minflux.checkpoints.components import vae as vae_files
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.detect import find_components
from minflux.checkpoints.formats.safetensors import Stored, contents, read_safetensors, write_safetensors
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.stored import Mismatch, StoredComponent
from minflux.checkpoints.tree import flatten, leaves
from minflux.commands import main as cli
from minflux.commands.convert import convert
from minflux.commands.inspect import inspect
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import save_model
from minflux.model.clip import CLIP_L
from minflux.model.flux import DEV, SCHNELL
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE
from tests import tiny_model
from tools import synthetic_checkpoint as synthetic

PREFIXES = {
    "transformer": "model.diffusion_model.", "vae": "vae.", "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}  # fmt: skip
FULL = {"transformer": DEV, "vae": FLUX_VAE, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL}
NAMING = {"transformer": "bfl", "vae": "bfl", "text_encoder": "transformers", "text_encoder_2": "transformers"}


def ghosts(kind: str, naming: str, cfg, prefix: str = "") -> dict[str, Stored]:
    """A file's header, without the file."""
    component = COMPONENTS[kind]
    shapes = component.file_shapes(component.naming(naming), cfg)
    return {prefix + name: Stored(Path("ghost"), "BF16", shape, 0) for name, shape in shapes.items()}


def the_part(found: dict[str, Stored]) -> StoredComponent:
    (part,), unknown = find_components(Path("ghost"), found)
    assert unknown == []
    return part


# -- float8 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_is_read_exactly(tmp_path, nx, dtype):
    x = torch.arange(256, dtype=torch.uint8).view(dtype)
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors", nx)["x"]
    np.testing.assert_array_equal(nx.to_numpy(got), x.float().numpy())
    assert str(got.dtype).endswith("float32" if nx.name == "numpy" else "bfloat16")


@pytest.mark.parametrize("dtype", ["f8_e4m3", "f8_e5m2"])
def test_synthetic_float8_is_rounded_as_torch_rounds_it(dtype):
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    kinds = {"f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2}
    expected = torch.from_numpy(x).float().to(kinds[dtype]).view(torch.uint8).numpy().tobytes()
    assert synthetic.encoded(x.astype(np.float32), synthetic.TAGS[dtype]) == expected


# -- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("naming", ["bfl", "diffusers"])
@pytest.mark.parametrize("variant", synthetic.VARIANTS)
def test_a_transformer_s_sizes_are_read_off_its_shapes(variant, naming):
    cfg = synthetic.VARIANTS[variant]
    part = the_part(ghosts("transformer", naming, cfg))
    assert (part.name, part.naming.name) == ("transformer", naming)
    assert part.read_sizes() == cfg
    assert replace(part, config=cfg).mismatches == []


@pytest.mark.parametrize("kind", FULL)
def test_the_sizes_of_every_part(kind):
    for naming in {NAMING[kind], "diffusers" if kind == "vae" else NAMING[kind]}:
        part = the_part(ghosts(kind, naming, FULL[kind]))
        assert (part.name, part.naming.name, part.read_sizes()) == (kind, naming, FULL[kind])
        assert replace(part, config=FULL[kind]).mismatches == []


def test_a_file_of_all_parts_is_taken_apart():
    found = {}
    for kind, prefix in PREFIXES.items():
        found |= ghosts(kind, NAMING[kind], FULL[kind], prefix)
    stray = Stored(Path("ghost"), "F32", (), 0)
    found |= {"scaled_fp8": stray, "somewhere.else": stray}
    held, unknown = find_components(Path("ghost"), found)
    assert {part.name: part.read_sizes() for part in held} == FULL
    assert {part.name: part.prefix for part in held} == PREFIXES
    assert unknown == ["somewhere.else"]


def test_every_wrong_weight_is_listed():
    found = ghosts("transformer", "bfl", SCHNELL)
    del found["double_blocks.3.img_mlp.2.bias"]
    found["txt_in.bias"] = replace(found["txt_in.bias"], shape=(3071,))
    found["img_in.lora"] = found["img_in.bias"]
    part = the_part(found)
    part = replace(part, config=part.read_sizes())
    assert part.mismatches == [
        Mismatch("txt_in.bias", (3072,), (3071,)),
        Mismatch("double_blocks.3.img_mlp.2.bias", (3072,), None),
        Mismatch("img_in.lora", None, (3072,)),
    ]
    assert part.missing_keys == ["double_blocks.3.img_mlp.2.bias"]
    assert part.unexpected_keys == ["img_in.lora"]


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({"img_in.weight": (3072, 64)}, "single_blocks.0.norm.query_norm.scale: found no such weight"),
        (flux_shapes(SCHNELL) | {"txt_in.weight": (3072,)}, "txt_in.weight: expected at least 2 axes"),
        (flux_shapes(tiny_model.FLUX), "32 channels in heads of 16: can't tell RoPE's axes_dim"),
    ],
)
def test_sizes_that_cannot_be_told(shapes, complaint):
    part = the_part({name: Stored(Path("ghost"), "F32", shape, 0) for name, shape in shapes.items()})
    with pytest.raises(CheckpointError, match=complaint):
        part.read_sizes()


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (SCHNELL, "schnell"),
        (DEV, "dev (Krea-dev's"),
        (replace(DEV, in_channels=384), "Fill"),
        (replace(DEV, in_channels=128), "Canny or Depth"),
        (tiny_model.FLUX, "of its own size, without guidance"),
    ],
)
def test_variants_have_names(cfg, said):
    assert flux_files.variant(cfg).startswith(said)


# -- weights -------------------------------------------------------------------------------------------------


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


# -- looking at files ----------------------------------------------------------------------------------------

SMALL = replace(SCHNELL, hidden_size=256, num_heads=2, context_in_dim=32, vec_in_dim=16, depth=1, depth_single_blocks=1)


@pytest.mark.parametrize("format_", synthetic.NAMINGS)
@pytest.mark.parametrize("dtype", synthetic.TAGS)
def test_synthetic_checkpoints_are_whole_and_sane(tmp_path, nx, format_, dtype):
    out = tmp_path / ("model" if format_ == "diffusers" else "model.safetensors")
    synthetic.make(out, SMALL, format_, dtype, shard=2_000_000)
    report = inspect(out)
    (stored,) = report.checkpoint.found
    assert report.ok, report.text()
    assert stored.config == SMALL
    assert {tensor.dtype for tensor in stored.tensors.values()} == {synthetic.TAGS[dtype]}
    p = read_tree(stored, nx, "float32")
    assert {name: x.shape for name, x in leaves(p)} == flux_shapes(SMALL)
    matrix = nx.to_numpy(p["single_blocks"][0]["linear2"]["weight"])
    assert matrix.std() == pytest.approx(1280**-0.5, rel=0.05)
    if format_ == "diffusers":
        assert len(list((out / "transformer").glob("*.safetensors"))) > 1


def run(*args: object):
    return CliRunner().invoke(cli.main, ["inspect", *map(str, args)])


@pytest.mark.weights
def test_the_shipped_model_is_whole():
    result = run("tiny")
    assert result.exit_code == 0, result.output
    for said in ("transformer: 5,146,432 numbers", "of its own size", "T5: ", "CLIP: ", "MB resident"):
        assert said in result.output


def test_inspect_says_what_is_wrong(tmp_path):
    path = tmp_path / "x.safetensors"
    synthetic.make(path, SMALL, dtype="f16")
    flat = safetensors.torch.load_file(path)
    del flat["img_in.bias"]
    safetensors.torch.save_file({**flat, "more": torch.zeros(2)}, path)
    result = run(path)
    assert result.exit_code == 1
    assert "img_in.bias: expected shape (256,), found no such weight" in result.output
    assert "more: expected no such weight, found (2,)" in result.output


@pytest.mark.parametrize(
    ("held", "complaint"), [({"a": torch.zeros(1)}, "holds no part of FLUX.1; its first names are a")]
)
def test_inspect_refuses_other_files(tmp_path, held, complaint):
    safetensors.torch.save_file(held, tmp_path / "x.safetensors")
    result = run(tmp_path / "x.safetensors")
    assert result.exit_code == 2
    assert complaint in result.output


def test_inspect_finds_nothing(tmp_path):
    with pytest.raises(ArgumentError, match="neither a folder nor a file"):
        inspect(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no part"):
        inspect(tmp_path)


# -- other members of the family -----------------------------------------------------------------------------


REDUX = {
    "redux_up.weight": torch.zeros(96, 9), "redux_up.bias": torch.zeros(96),
    "redux_down.weight": torch.zeros(32, 96), "redux_down.bias": torch.zeros(32),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_redux_is_explained_and_refused(tmp_path, layout):
    model = tmp_path / "x.safetensors"
    if layout == "folder":
        model = tmp_path / "redux"
        (model / "image_embedder").mkdir(parents=True)
        (model / "model_index.json").write_text('{"_class_name": "FluxPriorReduxPipeline"}')
    file = model / "image_embedder" / "diffusion_pytorch_model.safetensors" if layout == "folder" else model
    safetensors.torch.save_file({name: x.bfloat16() for name, x in REDUX.items()}, file)
    result = run(model)
    assert result.exit_code == 0
    assert "FLUX.1 Redux, an adapter for image prompts; minflux can't generate with it" in result.output
    assert "4,064 numbers in 4 weights, BF16; features of 9 numbers to text tokens of 32, by 96" in result.output
    with pytest.raises(CheckpointError, match=r"FLUX.1 Redux, an adapter for image prompts"):
        minflux.load(model)
    with pytest.raises(CheckpointError, match=r"holds no part that can be converted: .*Redux"):
        convert(model, tmp_path / "out", "diffusers")


def test_a_damaged_redux(tmp_path):
    safetensors.torch.save_file({"redux_up.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "1 numbers in 1 weights, F32; damaged: (1,) and ()" in run(tmp_path / "x.safetensors").output


@pytest.mark.parametrize("name", family.PIPELINES)
def test_a_folder_s_index_tells_the_variant(dev_model, tmp_path, name):
    model = shutil.copytree(dev_model, tmp_path / "model")
    assert " it seems" not in run(model).output
    (model / "model_index.json").write_text(f'{{"_class_name": "{name}"}}')
    assert f"  model_index.json: a {name}, {family.PIPELINES[name]}\n" in run(model).output


def test_kontext_is_drawn_with_from_the_text_alone_and_that_is_said(model_copy):
    expected = minflux.load(model_copy)("a cat")
    (model_copy / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    with pytest.warns(UserWarning, match=r"Kontext, which takes a reference image .*; it generates from"):
        pipe = minflux.load(model_copy)
    assert pipe("a cat").tobytes() == expected.tobytes()


ONE_BLOCK_OF_DEV = replace(DEV, hidden_size=128, num_heads=1, depth=1, depth_single_blocks=1)
KREA = ": Krea-dev, it seems"


def test_krea_is_told_by_its_folder_s_name(dev_model, tmp_path):
    """dev, Krea-dev and Kontext have the same shapes: a name is all there is."""
    assert KREA in run(shutil.copytree(dev_model, tmp_path / "FLUX.1-Krea-dev")).output


def test_krea_is_told_by_the_cache_s_folders(dev_model, tmp_path):
    assert KREA in run(shutil.copytree(dev_model, tmp_path / "models--x--FLUX.1-Krea-dev/snapshots/1")).output


def test_krea_is_told_by_a_name_in_the_config(dev_model, tmp_path):
    model = shutil.copytree(dev_model, tmp_path / "model")
    config = model / "transformer" / "config.json"
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "somewhere/FLUX.1-Krea-dev",', 1))
    assert KREA in run(model).output


def test_krea_is_told_by_the_file_s_name(tmp_path):
    synthetic.make(tmp_path / "flux1-krea-dev.safetensors", ONE_BLOCK_OF_DEV)
    assert KREA in run(tmp_path / "flux1-krea-dev.safetensors").output


def test_krea_is_told_by_the_file_s_metadata(tmp_path):
    file = tmp_path / "flux.safetensors"
    synthetic.make(file, ONE_BLOCK_OF_DEV)
    write_safetensors(file, read_safetensors(file, get_backend("numpy")), {"modelspec.title": "FLUX.1 Krea"})
    assert KREA in run(file).output
