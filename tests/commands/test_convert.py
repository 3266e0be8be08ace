"""Every format into every other and back, name by name and bit by bit; and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components.base import block_of
from minflux.checkpoints.formats.dtypes import to_bytes
from minflux.checkpoints.formats.safetensors import contents, read_safetensors, write_entries, write_safetensors
from minflux.checkpoints.open import INDEX, open_component
from minflux.checkpoints.tree import flatten
from minflux.commands import main as cli
from minflux.commands.convert import Conversion, convert
from minflux.commands.inspect import inspect
from minflux.errors import ArgumentError, CheckpointError
from tests import tiny_model
from tests.checkpoints.test_lora import PAIR
from tools import synthetic_checkpoint as synthetic

BESIDE = ("scheduler", "tokenizer", "tokenizer_2", "minflux.json", INDEX)
WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every weight of a file as it is stored: dtype, shape and bytes."""
    data = path.read_bytes()
    sizes = {"F32": 4, "F16": 2, "BF16": 2}
    return {
        name: (s.dtype, s.shape, data[s.start : s.start + sizes[s.dtype] * int(np.prod(s.shape))])
        for name, s in contents(path).items()
    }


# -- round trips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("part", WEIGHTS)
def test_to_bfl_and_back_loses_nothing(model, tmp_path, part, dtype):
    convert(model, tmp_path / "start", "diffusers", dtype=dtype)
    convert(tmp_path / "start", tmp_path / "bfl.safetensors", "bfl", part)
    # what no weight shows of these unusual sizes is told by the config beside the file
    (tmp_path / part).mkdir()
    shutil.copy(model / part / "config.json", tmp_path / part)
    assert raw(tmp_path / "bfl.safetensors").keys() != raw(tmp_path / "start" / WEIGHTS[part]).keys()
    convert(tmp_path / "bfl.safetensors", tmp_path / "back", "diffusers")
    assert raw(tmp_path / "back" / WEIGHTS[part]) == raw(tmp_path / "start" / WEIGHTS[part])


def test_a_whole_model_is_copied_with_all_that_it_needs(model, tmp_path):
    written = convert(model, tmp_path / "copy", "diffusers")
    assert len(written) == 4
    assert minflux.load(tmp_path / "copy")("a cat").tobytes() == minflux.load(model)("a cat").tobytes()
    assert FluxPipeline.from_pretrained(tmp_path / "copy").transformer.config.num_layers == tiny_model.FLUX.depth


@pytest.mark.weights
def test_a_model_named_as_one_that_ships_is_copied_whole_too(tmp_path):
    convert("tiny", tmp_path / "copy", "diffusers", dtype="bfloat16")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*COMPONENTS, *BESIDE}


def test_diffusers_opens_what_came_from_a_single_file(tmp_path):
    cfg = synthetic.replace(synthetic.SCHNELL, hidden_size=128, num_heads=1, depth=1, depth_single_blocks=1)
    synthetic.make(tmp_path / "flux.safetensors", cfg, "comfy", "bf16")
    convert(tmp_path / "flux.safetensors", tmp_path / "model", "diffusers", dtype="float32")
    theirs = dict(FluxTransformer2DModel.from_pretrained(tmp_path / "model" / "transformer").named_parameters())
    stored = read_safetensors(tmp_path / "flux.safetensors", get_backend("numpy"))
    q, k, v = np.split(stored["model.diffusion_model.double_blocks.0.txt_attn.qkv.weight"], 3)
    for name, expected in {"add_q_proj": q, "add_k_proj": k, "add_v_proj": v}.items():
        got = theirs[f"transformer_blocks.0.attn.{name}.weight"].detach().numpy()
        np.testing.assert_array_equal(got, expected)


def test_diffusers_opens_an_autoencoder_that_was_bfl_s(model, tmp_path):
    convert(model, tmp_path / "ae.safetensors", "bfl", part="vae")
    (tmp_path / "vae").mkdir()
    shutil.copy(model / "vae" / "config.json", tmp_path / "vae")
    convert(tmp_path / "ae.safetensors", tmp_path / "model", "diffusers")
    ours, theirs = (
        AutoencoderKL.from_pretrained(folder / "vae").state_dict() for folder in (model, tmp_path / "model")
    )
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


# -- dtypes --------------------------------------------------------------------------------------------------


def converted_codes(model: Path, folder: Path, special: str, code: str) -> dict[str, str]:
    """The dtypes of BFL's file of a transformer in bfloat16, but for the weights with `special` in their names."""
    flat = read_safetensors(model / WEIGHTS["transformer"], get_backend("numpy"))
    entries = {name: (code if special in name else "BF16", w.shape) for name, w in flat.items()}
    shutil.copytree(model, folder / "mixed")
    write_entries(folder / "mixed" / WEIGHTS["transformer"], entries, lambda n: to_bytes(flat[n], entries[n][0]))
    convert(folder / "mixed", folder / "bfl.safetensors", "bfl")
    return {name: stored.dtype for name, stored in contents(folder / "bfl.safetensors").items()}


def test_weights_of_two_dtypes_keep_their_own(model, tmp_path):
    codes = converted_codes(model, tmp_path, "norm_q", "F32")
    assert codes["double_blocks.0.img_attn.norm.query_norm.scale"] == "F32"
    assert codes["double_blocks.0.img_attn.qkv.weight"] == "BF16"


def test_parts_of_two_dtypes_meet_in_float32(model, tmp_path):
    codes = converted_codes(model, tmp_path, "to_q", "F16")
    assert codes["double_blocks.0.img_attn.qkv.weight"] == "F32"
    assert codes["double_blocks.0.txt_attn.qkv.weight"] == "BF16"


@pytest.mark.parametrize("kind", ["f8_e4m3", "f8_e5m2"])
def test_float8_becomes_bfloat16_exactly(tmp_path, kind):
    cfg = synthetic.replace(synthetic.SCHNELL, hidden_size=128, num_heads=1, depth=1, depth_single_blocks=0)
    synthetic.make(tmp_path / "flux.safetensors", cfg, "bfl", kind)
    convert(tmp_path / "flux.safetensors", tmp_path / "wide.safetensors", "bfl")
    narrow, wide = (read_safetensors(tmp_path / f"{n}.safetensors", get_backend("numpy")) for n in ("flux", "wide"))
    assert {stored.dtype for stored in contents(tmp_path / "wide.safetensors").values()} == {"BF16"}
    for name, w in narrow.items():
        np.testing.assert_array_equal(wide[name], w)


# -- LoRAs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["bfl", "diffusers"])
def test_a_lora_is_added_for_good(model, tmp_path, format_):
    write_safetensors(tmp_path / "l.safetensors", PAIR)
    name = "l.safetensors:0.3"
    target = tmp_path / ("out.safetensors" if format_ == "bfl" else "out")
    convert(model, target, format_, lora=[str(tmp_path / name)])
    expected = flatten(minflux.load(model, lora=[str(tmp_path / name)]).flux[1])["img_in.weight"]
    file, weight = (
        (target, "img_in.weight") if format_ == "bfl" else (target / WEIGHTS["transformer"], "x_embedder.weight")
    )
    np.testing.assert_array_equal(read_safetensors(file, get_backend("numpy"))[weight], expected)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("x", {"format_": "bfl"}, "target: BFL's format is one .safetensors file"),
        ("x.safetensors", {"format_": "diffusers"}, "target: the format 'diffusers' is a folder"),
        ("no/x", {"format_": "diffusers"}, "does not exist; make it first"),
        ("x", {"format_": "onnx"}, "format must be one of bfl, diffusers, minflux, gguf, got 'onnx'"),
        ("x.safetensors", {"format_": "gguf"}, "target: GGUF's format is one .gguf file"),
        ("x.gguf", {"format_": "minflux"}, "target: the format 'minflux' is a folder"),
        ("x.gguf", {"format_": "gguf", "part": "vae"}, "format: no VAE is kept as gguf; use bfl"),
        ("x.gguf", {"format_": "gguf", "bits": 4}, "quantize: GGUF has types, no bits: one of q8_0, q5_1"),
        ("x.gguf", {"format_": "gguf", "gguf_type": "q4_k"}, "can't write 'q4_k'; it can write q8_0, q5_1, q5_0, q4_1"),
        ("x", {"format_": "minflux", "gguf_type": "q8_0"}, "'q8_0' needs --format gguf; --format minflux takes 4 or 8"),
        ("x", {"format_": "diffusers", "dtype": "int8"}, "dtype: expected one of float32, float16, bfloat16"),
    ],
)
def test_a_target_that_does_not_fit(model, tmp_path, target, settings, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        convert(model, tmp_path / target, **settings)
    assert not list(tmp_path.iterdir())


def test_the_source_is_never_written_over(model):
    with pytest.raises(ArgumentError, match="is the source itself"):
        convert(model, model, "diffusers")


def test_a_part_that_is_not_there(model, tmp_path):
    convert(model, tmp_path / "flux.safetensors", "bfl")
    (tmp_path / "transformer").mkdir()
    shutil.copy(model / "transformer" / "config.json", tmp_path / "transformer")
    with pytest.raises(CheckpointError, match="holds no vae, only transformer"):
        convert(tmp_path / "flux.safetensors", tmp_path / "ae.safetensors", "bfl", part="vae")


def test_a_missing_weight_stops_it(model, tmp_path):
    shutil.copytree(model, tmp_path / "broken")
    path = tmp_path / "broken" / WEIGHTS["transformer"]
    flat = read_safetensors(path, get_backend("numpy"))
    del flat["proj_out.bias"]
    write_safetensors(path, flat)
    with pytest.raises(CheckpointError, match=r"proj_out.bias: expected shape \(16,\), found no such"):
        convert(tmp_path / "broken", tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trouble", ["nan", "full"])
def test_what_goes_wrong_on_the_way_leaves_no_file(model, tmp_path, monkeypatch, trouble):
    shutil.copytree(model, tmp_path / "broken")
    path = tmp_path / "broken" / WEIGHTS["transformer"]
    if trouble == "nan":
        flat = read_safetensors(path, get_backend("numpy"))
        flat["proj_out.bias"][3] = np.nan
        write_safetensors(path, flat)
        words = "proj_out.bias: expected finite numbers"
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        words = "needs .* bytes, and only 1,000 are free"
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "broken", tmp_path / "out.safetensors", "bfl")
    assert not [p for p in tmp_path.iterdir() if p.name != "broken"]


def test_what_was_written_before_a_failure_is_told(model, tmp_path):
    """The transformer comes last; a number in it that no float16 holds is found when the others are there."""
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS["transformer"]
    flat = read_safetensors(path, get_backend("numpy"))
    flat["x_embedder.weight"][3, 1] = 1e6
    write_safetensors(path, flat)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "model", tmp_path / "out", "diffusers", dtype="float16")
    told, left = str(caught.value).split("; ", 1)
    assert "x_embedder.weight: a number as large as 1e+06 doesn't fit into F16" in told
    written = sorted(map(str, (tmp_path / "out").rglob("*.safetensors")))
    assert len(written) == 3
    assert sorted(left.split(" were written before")[0].split(", ")) == written


def test_a_disk_that_fails_while_writing(tmp_path):
    def bytes_of(name):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"x\.safetensors: can't be written: no space left on device"):
        write_entries(tmp_path / "x.safetensors", {"a": ("F32", (2,))}, bytes_of)
    assert not list(tmp_path.iterdir())


# -- memory and the command ----------------------------------------------------------------------------------


def test_every_block_is_read_by_itself(model):
    stored = open_component(model, "transformer")
    blocks = Conversion(stored, stored.component.own_naming).blocks
    assert len(blocks["double_blocks.0"]) == 32
    assert blocks["img_in"] == ["x_embedder.bias", "x_embedder.weight"]
    assert all(
        len({block_of(stored.our_names[name]) for name in names}) == 1 for names in blocks.values() if len(names) > 2
    )
    whole = open_component(model, "vae")
    assert Conversion(whole, whole.component.own_naming).blocks == {"": list(whole.tensors)}


def test_the_command_converts_and_says_what_it_wrote(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["convert", str(model), "out", "--format", "diffusers", "--dtype", "f16", "--part", "text_encoder"]
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "out/text_encoder/model.safetensors"
    assert json.loads(Path("out/text_encoder/config.json").read_text())["hidden_size"] == 16
    (found,) = inspect("out").checkpoint.found
    assert {stored.dtype for stored in found.tensors.values()} == {"F16"}
