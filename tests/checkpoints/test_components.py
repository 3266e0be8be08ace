"""What is known of each component: its names there and back, and configs that both libraries open."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minflux.backend import get_backend
from minflux.checkpoints.components import clip as clip_files
from minflux.checkpoints.components import flux as flux_files
from minflux.checkpoints.components import t5 as t5_files
from minflux.checkpoints.components import unet as unet_files
from minflux.checkpoints.components import vae as vae_files
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import to_diffusers as flux_to_diffusers
from minflux.checkpoints.components.vae import bfl_to_diffusers as vae_to_diffusers
from minflux.checkpoints.components.vae import channels_last as to_channels_last
from minflux.checkpoints.components.vae import channels_second as to_torch_layout
from minflux.checkpoints.components.vae import diffusers_to_bfl as vae_to_bfl
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.read import load_component
from minflux.errors import CheckpointError
from minflux.model.clip import CLIP_L
from minflux.model.flux import DEV, SCHNELL
from minflux.model.t5 import T5_XXL
from minflux.model.unet import UNetConfig
from minflux.model.vae import FLUX_VAE
from tests.checkpoints.oracles import KINDS, ORACLES, RECORDS, SMALL_CONFIGS
from tests.strategies import clip_configs, flux_configs, t5_configs, unet_configs, vae_configs

CONFIGS = {
    "transformer": flux_configs(),
    "vae": vae_configs(),
    "text_encoder": clip_configs(),
    "text_encoder_2": t5_configs(),
    "unet": unet_configs(),
}


def numpy_weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """A module's weights, drawn anew so that no two are equal."""
    return {name: np.random.standard_normal(w.shape).astype(np.float32) for name, w in module.state_dict().items()}


def assert_same(got: dict, expected: dict) -> None:
    """The same names, shapes, dtypes and bits."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert np.asarray(got[name]).dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(got[name]), array, err_msg=name, strict=True)


# -- names ----------------------------------------------------------------------------------------------------


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


@given(unet_configs())
def test_unet_names_there_and_back(cfg):
    theirs = numpy_weights(ORACLES["unet"](cfg))
    ours = unet_files.UNET.folder_naming.to_ours(theirs)
    assert {name: w.shape for name, w in ours.items()} == unet_files.unet_shapes(cfg)
    assert_same(unet_files.to_diffusers(ours), theirs)


def test_stable_diffusion_has_686_weights_of_860_million_numbers():
    shapes = unet_files.unet_shapes(UNetConfig())
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (686, 859_520_964)
    assert shapes["up_blocks.3.resnets.0.conv1.weight"] == (320, 3, 3, 960)
    assert shapes["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (640, 768)


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


# -- configs --------------------------------------------------------------------------------------------------


@KINDS
@given(data=st.data())
def test_configs_there_and_back(kind, data):
    cfg, spec = data.draw(CONFIGS[kind]), RECORDS[kind]
    assert spec.read_config(json.loads(json.dumps(spec.write_config(cfg)))) == cfg


def test_the_published_config_of_stable_diffusion():
    sd = {"_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}
    assert unet_files.read_config(sd) == UNetConfig()
    assert unet_files.read_config({}).cross_attention_dim == 1280  # diffusers' own default


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
    vae |= {"use_quant_conv": False, "use_post_quant_conv": False}
    assert vae_files.read_config(vae | {"scaling_factor": 0.3611}) == FLUX_VAE
    assert vae_files.read_config({"block_out_channels": [128], "shift_factor": None}).shift_factor == 0


def test_a_vae_whose_config_does_not_say_it_has_quant_convs():
    """As Stable Diffusion 1's, from before there were others."""
    assert vae_files.read_config({"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}).quant_conv


@pytest.mark.parametrize(
    ("kind", "wrong", "complaint"),
    [
        ("transformer", {"_class_name": "PixArtTransformer2DModel"}, "_class_name: .*PixArt"),
        ("transformer", {"axes_dims_rope": [2, 2, 4]}, "axes_dims_rope: expected three even numbers of sum 6, found"),
        ("transformer", {"num_layers": "two"}, "num_layers: expected a value like 19, found 'two'"),
        ("transformer", {"num_attention_heads": 0}, "num_attention_heads: .*found 0"),
        ("vae", {"use_quant_conv": True}, "use_post_quant_conv: .*found False"),
        ("vae", {"block_out_channels": [128, 200]}, "block_out_channels: .*found .128, 200"),
        ("unet", {"use_linear_projection": True}, "use_linear_projection: .*found True"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 2}, "up_block_types: expected 2 of .*found .'UpBlock2D'"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 3}, "down_block_types: expected 2 of .*found .'DownBlock2D'"),
        ("unet", {"attention_head_dim": [1, 2]}, "attention_head_dim: expected a value like 8, found .1, 2"),
        ("unet", {"norm_num_groups": 3}, "norm_num_groups: expected a divisor of 4, found 3"),
        ("unet", {"block_out_channels": [4, 0]}, "block_out_channels: expected sizes, found .4, 0"),
        ("text_encoder", {"hidden_act": "gelu"}, "hidden_act: .*'quick_gelu', found 'gelu'"),
        ("text_encoder_2", {"feed_forward_proj": "relu"}, "feed_forward_proj: .*found 'relu'"),
    ],
)
def test_configs_we_can_not_run(tmp_path, kind, wrong, complaint):
    path = tmp_path / kind / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(RECORDS[kind].write_config(SMALL_CONFIGS[kind]) | wrong))
    with pytest.raises(CheckpointError, match=f"config.json: {complaint}"):
        load_component(tmp_path, kind, get_backend("numpy"))
