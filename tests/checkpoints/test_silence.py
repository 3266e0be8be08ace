"""Nothing is passed over in silence: what would change the picture, or be lost, is said or refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.detect import find_components
from minflux.checkpoints.formats.safetensors import contents, read_safetensors, write_safetensors
from minflux.checkpoints.open import open_model
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.tree import flatten
from minflux.commands import main as cli
from minflux.commands.convert import convert
from minflux.commands.inspect import inspect
from minflux.errors import ArgumentError, CheckpointError
from minflux.model.flux import SCHNELL
from tests import tiny_model
from tools import synthetic_checkpoint as synthetic

NX = get_backend("numpy")
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
T5_Q = "encoder.block.0.layer.0.SelfAttention.q"


@pytest.fixture
def model(model, tmp_path):
    """A copy of the small model, to be broken."""
    return shutil.copytree(model, tmp_path / "model")


def changed(path: Path, change) -> None:
    """Change a file of weights, or one of JSON."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        flat = read_safetensors(path, NX)
        change(flat)
        write_safetensors(path, flat)


def refused(words: str):
    return pytest.raises(CheckpointError, match=re.escape(words))


# -- weights -------------------------------------------------------------------------------------------------


def test_a_weight_in_two_shards(tmp_path):
    for shard in "ab":
        write_safetensors(tmp_path / f"{shard}.safetensors", {"x": np.zeros(2, np.float32)})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with refused("b.safetensors: x: is in a.safetensors too"):
        contents(index)


def test_an_index_that_names_the_wrong_shard(tmp_path):
    for name in "xy":
        write_safetensors(tmp_path / f"{name}.safetensors", {name: np.zeros(2, np.float32)})
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "y.safetensors", "y": "x.safetensors"}}))
    with refused("x is in the index but not in the file"):
        contents(index)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_an_index_with_no_name_of_a_file(tmp_path, name):
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with refused("a shard must lie in the same folder"):
        contents(index)


def test_whole_numbers_are_no_weights(model, tmp_path):
    changed(model / TRANSFORMER, lambda flat: flat.update({"proj_out.bias": np.zeros(16, np.int32)}))
    words = "proj_out.bias: expected floats, found I32"
    assert words in inspect(model).text()
    with refused(words):
        convert(model, tmp_path / "out", "diffusers")


def test_a_folder_without_a_part_is_not_whole(model):
    shutil.rmtree(model / "vae")
    assert not inspect(model).ok
    assert "VAE: expected the folder vae, found none" in inspect(model).text()


def test_a_strange_weight_in_a_single_file_is_told(model, tmp_path):
    convert(model, model / "x.safetensors", "bfl")
    changed(model / "x.safetensors", lambda flat: flat.update({"vae.other": np.zeros(2, np.float32)}))
    with pytest.warns(UserWarning, match=r"left out 1 weights that belong to no part: vae.other"):
        minflux.load(model / "x.safetensors")
    with pytest.warns(UserWarning, match="vae.other"):
        convert(model / "x.safetensors", tmp_path / "y.safetensors", "bfl")


SMALL = replace(SCHNELL, hidden_size=128, num_heads=1, depth=1, depth_single_blocks=1)
SCALED = "double_blocks.0.img_attn.proj"  # 128 × 128


@pytest.mark.parametrize("scale", [np.full(128, 2, np.float32), np.full((128, 1), 2, np.float32)])
def test_a_scale_for_each_row(tmp_path, scale):
    scale = scale * np.arange(1, 129, dtype=np.float32).reshape(scale.shape)
    rows, plain = (load_scaled(tmp_path, s)["double_blocks"][0]["img_attn"]["proj"]["weight"] for s in (scale, None))
    np.testing.assert_array_equal(rows, plain * scale.reshape(128, 1))


@pytest.mark.parametrize("scale", [np.zeros(3, np.float32), np.ones((1, 128), np.float32), np.ones(1, np.int32)])
def test_a_scale_that_fits_nothing(tmp_path, scale):
    with refused(f"{SCALED}.weight: expected a scale of floats"):
        load_scaled(tmp_path, scale)


TABLE, AGAIN = "shared.weight", "encoder.embed_tokens.weight"


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("again", [lambda x: x.copy(), lambda x: x + (x == x[-1, -1]), lambda x: x[1:]])
def test_a_table_under_two_names(model, mode, again):
    """A T5 file may hold its table twice, but not two tables."""
    path = model / "text_encoder_2" / "model.safetensors"
    expected = minflux.load(model).encode(["a cat"])
    changed(path, lambda flat: flat.update({AGAIN: again(flat[TABLE])}))
    flat = read_safetensors(path, NX)

    def encoded():
        return minflux.load(model, memory=mode).encode(["a cat"])

    if np.array_equal(flat[TABLE], flat[AGAIN]):
        np.testing.assert_array_equal(encoded().txt, expected.txt)
        return
    with refused(f"{path}: {TABLE} and {AGAIN} are two names of one weight but hold different values"):
        encoded()


def t5_of(tmp_path, scales: dict[str, float]):
    """A T5 of float8 in a single file, its token table under each name that has a scale."""
    flat = {name: torch.from_numpy(x) for name, x in flatten(tiny_model.pipeline().t5[1]).items()}
    table = flat.pop(TABLE).to(torch.float8_e4m3fn)
    for stem, scale in scales.items():
        flat[f"{stem}.weight"] = table.clone()
        if scale is not None:
            flat[f"{stem}.scale_weight"] = torch.tensor(scale)
    safetensors.torch.save_file(flat, tmp_path / "t5.safetensors")
    ((part,), strangers) = find_components(tmp_path, contents(tmp_path / "t5.safetensors"))
    assert strangers == []
    return table.float().numpy(), read_tree(part, NX)["shared"]["weight"]


@pytest.mark.parametrize("names", [["shared"], ["encoder.embed_tokens"], ["shared", "encoder.embed_tokens"]])
def test_a_scale_under_either_name_of_the_table(tmp_path, names):
    table, got = t5_of(tmp_path, dict.fromkeys(names, 0.5))
    np.testing.assert_array_equal(got, table / 2)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.25), (0.5, None), (None, 0.5)])
def test_two_scales_of_one_table(tmp_path, first, second):
    with refused(" shared." if first is None else " encoder.embed_tokens."):
        t5_of(tmp_path, {"shared": first, "encoder.embed_tokens": second})


def test_a_scale_of_no_weight(tmp_path):
    synthetic.make(tmp_path / "x.safetensors", SMALL, dtype="f32")
    changed(tmp_path / "x.safetensors", lambda flat: flat.update({"nothing.scale_weight": np.ones(1, np.float32)}))
    with refused("nothing.scale_weight: expected no such weight"):
        open_model(tmp_path / "x.safetensors").take("transformer")


def load_scaled(folder: Path, scale: np.ndarray | None):
    synthetic.make(folder / "x.safetensors", SMALL, dtype="f32")
    if scale is not None:
        changed(folder / "x.safetensors", lambda flat: flat.update({f"{SCALED}.scale_weight": scale}))
    return read_tree(open_model(folder / "x.safetensors").take("transformer"), NX)


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("use_karras_sigmas", True, "use_karras_sigmas: minflux supports False alone, found True"),
        ("shift_terminal", 0.1, "shift_terminal: minflux supports None alone, found 0.1"),
        ("_class_name", "DDIMScheduler", "found 'DDIMScheduler'"),
        ("shift", "a", "shift: expected a float, found 'a'"),
        ("shift", None, "shift: expected a float, found None"),
        ("shift", 0, "expected a shift above 0"),
        ("max_image_seq_len", 256, "max_image_seq_len above base_image_seq_len"),
    ],
)
def test_a_schedule_that_is_not_ours(model, name, value, words):
    changed(model / "scheduler" / "scheduler_config.json", lambda content: content.update({name: value}))
    with refused(words):
        minflux.load(model)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("minflux.json", {"text_length": "a"}, "text_length: expected a int, found 'a'"),
        ("model_index.json", {"_class_name": "PixArtAlphaPipeline"}, "expected a FluxPipeline"),
        ("transformer/config.json", {"axes_dims_rope": ["a", 1, 2]}, "axes_dims_rope: expected a value like (16"),
        ("vae/config.json", {"block_out_channels": [0, 1]}, "vae/config.json: "),
        ("transformer/config.json", {"num_layers": 10**9}, "expected at most 1000 for depth, found 1000000000"),
        ("vae/config.json", {"block_out_channels": ["a"]}, "vae/config.json: "),
    ],
)
def test_a_config_that_says_nothing(model, file, change, words):
    changed(model / file, lambda content: content.update(change))
    with refused(words):
        minflux.load(model)


# -- converting ----------------------------------------------------------------------------------------------


def test_old_weights_are_not_left_beside_new_ones(model, tmp_path):
    convert(model, tmp_path / "out", "diffusers")
    with pytest.raises(ArgumentError, match=re.escape("holds other weights, ")):
        convert(model, tmp_path / "out", "minflux")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_number_that_does_not_fit(model, tmp_path, dtype):
    changed(model / TRANSFORMER, lambda flat: flat["proj_out.bias"].__setitem__(0, 3.4e38))
    with refused("proj_out.bias: a number as large as 3.4e+38 doesn't fit into"):
        convert(model, tmp_path / "out", "diffusers", "transformer", dtype=dtype)


def test_floats_keep_their_dtype_on_the_way_back(tmp_path):
    convert("tiny", tmp_path / "half", "diffusers", dtype="bfloat16")
    convert(tmp_path / "half", tmp_path / "packed", "minflux", bits=8)
    convert(tmp_path / "packed", tmp_path / "back", "diffusers")
    assert {stored.dtype for stored in contents(tmp_path / "back" / TRANSFORMER).values()} == {"BF16"}


def test_what_a_folder_from_a_single_file_lacks_is_told(model, tmp_path):
    source, target = str(model / "x.safetensors"), str(tmp_path / "out")
    convert(model, source, "bfl")
    (tmp_path / "transformer").mkdir()
    done = CliRunner().invoke(cli.main, ["convert", source, target, "--format", "diffusers"])
    assert done.exit_code == 0, done.output
    assert "lacks vae, text_encoder, text_encoder_2, scheduler, tokenizer, tokenizer_2" in done.stdout


def test_a_name_that_ships_means_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert inspect("tiny").checkpoint.path == minflux.zoo.FOLDER / "tiny"


def test_what_a_killed_run_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f".x.safetensors.{ended.pid}").write_bytes(b"half")
    (tmp_path / f".x.safetensors.{os.getppid()}").write_bytes(b"of a run that goes on")
    write_safetensors(tmp_path / "x.safetensors", {"x": np.zeros(2, np.float32)})
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", f".x.safetensors.{os.getppid()}"}


# -- pickles and others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.ckpt", "p.pt", "p.bin"])
def test_a_pickle_is_named_as_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04}.")
    with refused("is a Python pickle, which can run code when opened"):
        minflux.load(tmp_path / name)


def test_a_folder_of_pickles(model):
    (model / TRANSFORMER).rename((model / TRANSFORMER).with_suffix(".bin"))
    with refused("found diffusion_pytorch_model.bin alone, a pickle"):
        minflux.load(model)


def test_channels_that_no_flux_takes(tmp_path):
    synthetic.make(tmp_path / "x.safetensors", replace(SMALL, in_channels=192))
    with refused("or one of FLUX.1 Fill, Canny or Depth; found 192 channels in and 64 out"):
        minflux.load(tmp_path / "x.safetensors")


# -- LoRAs ---------------------------------------------------------------------------------------------------


def pair(name: str, rank: int = 2, dtype=np.float32, **more: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {"lora_A.weight": np.ones((rank, 24), dtype), "lora_B.weight": np.ones((24, rank), dtype), **more}
    return {f"{name}.{role}": array for role, array in arrays.items()}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (pair("text_encoder_2." + T5_Q, dtype=np.int8), "expected floats, found I8"),
        (pair("text_encoder_2." + T5_Q, rank=0), "rank of at least 1"),
        (pair("text_encoder_2.encoder.block.0.layer.0.SelfAttention.o", **{"lora_mid.weight": np.ones(1)}), "lora_mid"),
    ],
)
def test_a_lora_that_can_not_be_added(model, tmp_path, arrays, words):
    write_safetensors(tmp_path / "l.safetensors", arrays)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        minflux.load(model, lora=[str(tmp_path / "l.safetensors")])


@pytest.mark.parametrize(("module", "size", "words"), [("x_embedder", 31, "a bias (32,)"), ("", 0, "no bias")])
def test_a_bias_that_fits_nothing(model, tmp_path, module, size, words):
    if module:
        arrays = {"lora_A.weight": np.ones((2, 16)), "lora_B.weight": np.ones((32, 2)), "lora_B.bias": np.ones(size)}
        name = f"transformer.{module}"
    else:
        arrays = {"lora_A.weight": np.ones((2, 24)), "lora_B.weight": np.ones((16, 2)), "lora_B.bias": np.ones(16)}
        name = f"text_encoder_2.{T5_Q}"
    write_safetensors(tmp_path / "l.safetensors", {f"{name}.{k}": x.astype(np.float32) for k, x in arrays.items()})
    with refused(f"expected {words}, found"):
        minflux.load(model, lora=[str(tmp_path / "l.safetensors")])
