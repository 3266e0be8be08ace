"""Checkpoints: names there and back, configs that both libraries open, files to the bit, bad files."""

import contextlib
import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel
from transformers import T5Config as TheirT5Config

from minflux.backend import get_backend
from minflux.backend.bfloat16 import to_bfloat16
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components import clip as clip_files
from minflux.checkpoints.components import flux as flux_files
from minflux.checkpoints.components import t5 as t5_files
from minflux.checkpoints.components import vae as vae_files
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import to_diffusers as flux_to_diffusers
from minflux.checkpoints.components.vae import bfl_to_diffusers as vae_to_diffusers
from minflux.checkpoints.components.vae import channels_last as to_channels_last
from minflux.checkpoints.components.vae import channels_second as to_torch_layout
from minflux.checkpoints.components.vae import diffusers_to_bfl as vae_to_bfl
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten, leaves, tree
from minflux.errors import ArgumentError, CheckpointError
from minflux.model.clip import CLIP_L, CLIPConfig
from minflux.model.flux import DEV, SCHNELL, FluxConfig
from minflux.model.t5 import T5_XXL, T5Config
from minflux.model.vae import FLUX_VAE, VAEConfig
from tests.strategies import clip_configs, flux_configs, t5_configs, vae_configs

ORACLES = {
    "transformer": lambda cfg: FluxTransformer2DModel.from_config(flux_files.write_config(cfg)),
    "vae": lambda cfg: AutoencoderKL.from_config(vae_files.write_config(cfg)),
    "text_encoder": lambda cfg: CLIPTextModel(CLIPTextConfig(**clip_files.write_config(cfg))),
    "text_encoder_2": lambda cfg: T5EncoderModel(TheirT5Config(**t5_files.write_config(cfg))),
}
CONFIGS = {
    "transformer": flux_configs(),
    "vae": vae_configs(),
    "text_encoder": clip_configs(),
    "text_encoder_2": t5_configs(),
}
SMALL = FluxConfig(4, 4, 3, 5, 12, 4.0, 2, 1, 1, (2, 2, 2), guidance_embed=True)
SMALL_CONFIGS = {
    "transformer": SMALL,
    "vae": VAEConfig(ch=4, ch_mult=(1, 2), z_channels=2, norm_groups=2),
    "text_encoder": CLIPConfig(9, 4, 6, 2, 2, eos_token_id=8),
    "text_encoder_2": T5Config(9, 4, 3, 6, 2, 2),
}
KINDS = pytest.mark.parametrize("kind", ORACLES)


def numpy_weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A module's weights, drawn anew so that no two are equal."""
    return {name: np.random.standard_normal(w.shape).astype(np.float32) for name, w in module.state_dict().items()}


def assert_same(got: dict, expected: dict) -> None:
    """The same names, shapes, dtypes and bits."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert np.asarray(got[name]).dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(got[name]), array, err_msg=name, strict=True)


# -- names ---------------------------------------------------------------------------------------------------


@given(flux_configs())
def test_flux_names_there_and_back(cfg):
    theirs = numpy_weights(ORACLES["transformer"](cfg))
    ours = flux_to_bfl(theirs)
    assert {name: w.shape for name, w in ours.items()} == flux_shapes(cfg)
    assert_same(flux_to_diffusers(ours), theirs)


@given(vae_configs())
def test_vae_names_there_and_back(cfg):
    theirs = numpy_weights(ORACLES["vae"](cfg))
    bfl = vae_to_bfl(theirs)
    assert_same(vae_to_diffusers(bfl), theirs)
    ours = to_channels_last(bfl)
    assert {name: w.shape for name, w in ours.items()} == vae_shapes(cfg)
    assert all(w.flags.c_contiguous for w in ours.values())
    assert_same(to_torch_layout(ours), bfl)


def test_bfl_names_of_flux_dev():
    """A few of the names in BFL's own flux1-dev.safetensors and ae.safetensors."""
    flux, vae = flux_shapes(DEV), vae_shapes(FLUX_VAE)
    assert len(flux) == 780
    assert len(vae) == 244
    assert flux["double_blocks.18.txt_attn.norm.key_norm.scale"] == (128,)
    assert flux["double_blocks.0.img_mod.lin.weight"] == (18432, 3072)
    assert flux["single_blocks.37.linear1.weight"] == (21504, 3072)
    assert flux["single_blocks.37.linear2.weight"] == (3072, 15360)
    assert flux["guidance_in.in_layer.weight"] == (3072, 256)
    assert flux["final_layer.adaLN_modulation.1.bias"] == (6144,)
    assert vae["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128)
    assert vae["decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256)
    assert vae["decoder.conv_in.weight"] == (512, 3, 3, 16)
    assert vae["decoder.up.3.upsample.conv.bias"] == (512,)


def test_the_final_layer_swaps_shift_and_scale():
    ours = flux_to_bfl({"norm_out.linear.bias": np.arange(6)})
    np.testing.assert_array_equal(ours["final_layer.adaLN_modulation.1.bias"], [3, 4, 5, 0, 1, 2])


# -- configs -------------------------------------------------------------------------------------------------


@KINDS
@given(data=st.data())
def test_configs_there_and_back(kind, data):
    cfg, spec = data.draw(CONFIGS[kind]), COMPONENTS[kind]
    assert spec.read_config(json.loads(json.dumps(spec.write_config(cfg)))) == cfg


def test_the_published_configs():
    """What black-forest-labs/FLUX.1-dev says: no axes, no out_channels, CLIP's legacy end-of-text id."""
    dev = {
        "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": True,
        "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
        "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
    }  # fmt: skip
    assert flux_files.read_config(dev) == DEV
    assert flux_files.read_config(dev | {"guidance_embeds": False}) == SCHNELL
    assert flux_files.read_config(dev | {"in_channels": 384, "out_channels": 64}).out_channels == 64
    clip = {"hidden_act": "quick_gelu", "eos_token_id": 2, "vocab_size": 49408, "projection_dim": 768}
    assert clip_files.read_config(clip) == CLIP_L
    assert t5_files.read_config({"d_model": 4096, "feed_forward_proj": "gated-gelu"}) == T5_XXL
    vae = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "shift_factor": 0.1159}
    assert vae_files.read_config(vae | {"scaling_factor": 0.3611}) == FLUX_VAE
    assert vae_files.read_config({"block_out_channels": [128], "shift_factor": None}).shift_factor == 0


@pytest.mark.parametrize(
    ("kind", "wrong", "complaint"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "_class_name: .*SD3"),
        ("transformer", {"axes_dims_rope": [2, 2, 4]}, "axes_dims_rope: expected a sum of 6, found"),
        ("transformer", {"num_layers": "two"}, "num_layers: expected a value like 19, found 'two'"),
        ("transformer", {"num_attention_heads": 0}, "num_attention_heads: .*found 0"),
        ("vae", {"use_quant_conv": True}, "use_quant_conv: .*found True"),
        ("vae", {"block_out_channels": [128, 200]}, "block_out_channels: .*found .128, 200"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act: .*'quick_gelu', found 'gelu'"),
        ("text_encoder_2", {"feed_forward_proj": "relu"}, "feed_forward_proj: .*found 'relu'"),
    ],
)
def test_configs_we_can_not_run(tmp_path, kind, wrong, complaint):
    path = tmp_path / kind / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(COMPONENTS[kind].write_config(SMALL_CONFIGS[kind]) | wrong))
    with pytest.raises(CheckpointError, match=f"config.json: {complaint}"):
        load_component(tmp_path, kind, get_backend("numpy"))


# -- folders -------------------------------------------------------------------------------------------------


@KINDS
def test_folders_of_diffusers_and_transformers(nx, kind, tmp_path):
    """Theirs is read, ours is written, and theirs opens it with the same bits."""
    example = SMALL_CONFIGS[kind]
    module = ORACLES[kind](example)
    module.save_pretrained(tmp_path / "theirs" / kind)
    cfg, p = load_component(tmp_path / "theirs", kind, nx)
    assert cfg == example
    shapes = {name: tuple(w.shape) for name, w in leaves(p)}
    assert shapes == COMPONENTS[kind].shapes(cfg)

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
        flat = {name: np.ones(shape, np.float32) for name, shape in COMPONENTS[kind].shapes(cfg).items()}
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
    listing = path.with_name(path.name + ".index.json")
    listing.write_text(json.dumps(index))
    cfg, p = load_component(tmp_path, "transformer", nx)
    assert cfg == SMALL
    assert len(flatten(p)) == len(flux_shapes(SMALL))

    for wrong, complaint in (
        ({"weight_map": {"lost": "a.safetensors"}}, "a.safetensors: lost is in the index but not in the file"),
        ({"weight_map": {"lost": "../a.safetensors"}}, "a shard must lie in the same folder"),
        ({}, "no weight_map"),
    ):
        listing.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=complaint):
            read_safetensors(listing, nx)


# -- files ---------------------------------------------------------------------------------------------------

EVERY_BFLOAT16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def same_bits(got: np.ndarray, expected: torch.Tensor) -> None:
    """Equal to the last bit, NaN for NaN."""
    np.testing.assert_array_equal(got, expected.float().numpy())
    assert (np.signbit(got) == np.signbit(expected.float().numpy())).all()


def test_all_65536_bfloat16_numbers_are_read_exactly(tmp_path, nx):
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file({"x": EVERY_BFLOAT16}, path)
    x = read_safetensors(path, nx)["x"]
    assert str(x.dtype).endswith("float32" if nx.name == "numpy" else "bfloat16")
    same_bits(nx.to_numpy(x), EVERY_BFLOAT16)
    same_bits(nx.to_numpy(read_safetensors(path, nx, "float32")["x"]), EVERY_BFLOAT16)


def test_all_65536_bfloat16_numbers_are_written_exactly(tmp_path, nx):
    path = tmp_path / "all.safetensors"
    x = nx.array(EVERY_BFLOAT16.float().numpy())
    write_safetensors(path, {"x": x}, dtype="bfloat16")
    same_bits(safetensors.torch.load_file(path)["x"].float().numpy(), EVERY_BFLOAT16)


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=50))
def test_rounding_to_bfloat16_is_pytorch_s(numbers):
    x = torch.tensor(numbers, dtype=torch.float32)
    halves = (x.view(torch.int32) & -65536 | 0x8000).view(torch.float32)  # ties: to even
    for values in (x, halves):
        bits = torch.from_numpy(to_bfloat16(values.numpy()).view(np.int16)).view(torch.bfloat16)
        expected = values.bfloat16()
        kept = ~expected.isnan().numpy()  # the sign that PyTorch gives a NaN depends on the processor
        same_bits(bits.float().numpy()[kept], expected[~expected.isnan()])
        assert bits.isnan().equal(expected.isnan())


DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_what_safetensors_writes(tmp_path, nx, dtype):
    x = (torch.randn(3, 5) * 3).to(getattr(torch, dtype))
    flat = {"x": x, "none": x[:0], "one": x[0, 0].clone()}
    safetensors.torch.save_file(flat, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors", nx)
    for name, expected in flat.items():
        assert tuple(got[name].shape) == tuple(expected.shape)
        expected = expected.float() if x.is_floating_point() else expected
        np.testing.assert_array_equal(nx.to_numpy(got[name]), expected.numpy())


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_safetensors_reads_what_we_write(tmp_path, nx, dtype):
    x, ids = torch.randn(3, 5), torch.arange(4, dtype=torch.int32)
    flat = {"a.x": nx.array(x.numpy()), "ids": nx.array(ids.numpy())}
    write_safetensors(tmp_path / "x.safetensors", flat, {"by": "minflux"}, dtype)
    got = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert torch.equal(got["a.x"], x.to(getattr(torch, dtype or "float32")))
    assert torch.equal(got["ids"], ids)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "minflux"}


def test_native_bfloat16_is_kept(tmp_path):
    mx = pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    x = mx.array([0.1, -3.0, 1e30]).astype(mx.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", {"x": x})
    got = read_safetensors(tmp_path / "x.safetensors", nx)["x"]
    assert got.dtype == mx.bfloat16
    assert mx.array_equal(got, x)
    assert mx.array_equal(mx.load(str(tmp_path / "x.safetensors"))["x"], x)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_casting_on_reading(tmp_path, nx, dtype):
    write_safetensors(tmp_path / "x.safetensors", {"x": nx.array([1.5]), "i": nx.array(np.arange(2))})
    if (nx.name, dtype) == ("numpy", "bfloat16"):
        with pytest.raises(ArgumentError, match="dtype: numpy has no bfloat16, use 'float32'"):
            read_safetensors(tmp_path / "x.safetensors", nx, dtype)
        return
    got = read_safetensors(tmp_path / "x.safetensors", nx, dtype)
    assert str(got["x"].dtype).endswith(dtype)
    assert "int" in str(got["i"].dtype)


def test_unknown_dtypes(tmp_path, nx):
    with pytest.raises(ArgumentError, match="dtype: expected one of float32, float16, bfloat16, got 'int4'"):
        write_safetensors(tmp_path / "x.safetensors", {"x": nx.array([1.0])}, dtype="int4")
    write_safetensors(tmp_path / "x.safetensors", {"x": nx.array([1.0])})
    with pytest.raises(ArgumentError, match="got 'int4'"):
        read_safetensors(tmp_path / "x.safetensors", nx, "int4")


def test_equal_weights_make_equal_files(tmp_path):
    flat = {"b": np.ones(3, np.float32), "a": np.zeros(2, np.float16)}
    write_safetensors(tmp_path / "1", flat)
    write_safetensors(tmp_path / "2", dict(reversed(flat.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def header(**entries) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (pickle.dumps({"x": [1.0] * 99}), "is a Python pickle, which can run code when opened"),
        (b"PK\x03\x04" + bytes(99), "is a PyTorch pickle"),
        (b"GGUF" + bytes(99), "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"", "is no safetensors file"),
        (b"hello, world, this is a text", "is no safetensors file"),
        (header(x=GOOD)[:-9] + bytes(8), "is cut short, in the header|expected JSON"),
        (header(x=GOOD)[:20], "is cut short, in the header"),
        (header(x=GOOD) + bytes(7), "is cut short: x ends at byte 8 of 7"),
        (header(x=GOOD | {"shape": [3]}) + bytes(8), r"x: expected 12 bytes for F32 \(3,\), found 8"),
        (header(x=GOOD | {"shape": [-2]}) + bytes(8), "x: expected a shape of at most 8 axes"),
        (header(x=GOOD | {"data_offsets": [-8, 0]}) + bytes(8), "x: expected 8 bytes"),
        (header(x=GOOD | {"dtype": "F3"}) + bytes(8), "x: can't read its header entry"),
        (header(x=GOOD | {"data_offsets": [0.0, 8.0]}) + bytes(8), "x: can't read its header entry"),
        (header(x=[1, 2]) + bytes(8), "x: can't read its header entry"),
        ((9).to_bytes(8, "little") + b"{'a': 1}!", "expected JSON"),
    ],
)
def test_bad_files(tmp_path, nx, content, complaint):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"bad.safetensors: ({complaint})") as error:
        read_safetensors(path, nx)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders(tmp_path, nx):
    with pytest.raises(CheckpointError, match=r"no.safetensors: no such file"):
        read_safetensors(tmp_path / "no.safetensors", nx)
    with pytest.raises(CheckpointError, match="is a directory"):
        read_safetensors(tmp_path, nx)
    (tmp_path / "x.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found a list"):
        read_safetensors(tmp_path / "x.index.json", nx)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with contextlib.suppress(ZeroDivisionError), written_whole(path) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]
    with written_whole(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]
