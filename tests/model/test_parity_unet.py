"""The U-Net, its parts and the whole, against diffusers' `UNet2DConditionModel`."""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.unet import write_config
from minflux.checkpoints.components.vae import channels_last
from minflux.checkpoints.tree import tree
from minflux.model.unet import UNetConfig, embed_time, gated_mlp, resnet_block, spatial_transformer, unet, upsample_to
from tests.compare import MODEL
from tests.model.test_parity_vae import last, nhwc
from tests.strategies import batches, tokens, unet_configs

sides = st.integers(2, 7)


def weights(trial, module):
    """A module's weights as our tree."""
    return tree(channels_last(trial.flat(module)))


def oracle(trial, cfg):
    """diffusers' U-Net with random weights, and the same weights as ours."""
    module = trial.random(UNet2DConditionModel.from_config(write_config(cfg)))
    return module, weights(trial, module)


@given(unet_configs(), batches)
def test_time_is_embedded(trial, cfg, batch):
    module, p = oracle(trial, cfg)
    t = torch.tensor([0, 999, 333][:batch]).float()
    expected = torch.nn.functional.silu(module.time_embedding(trial.rounded(module.time_proj(t))))
    got = embed_time(p["time_embedding"], cfg, trial.array(t, "float32"), p["conv_in"]["weight"].dtype)
    trial.close("U-Net time embedding", got, expected)


@given(batches, sides, sides, st.integers(1, 3), st.integers(2, 4), st.integers(2, 4))
def test_resnet_block(trial, batch, height, width, groups, inputs, outputs):
    module = trial.random(
        ResnetBlock2D(
            in_channels=groups * inputs, out_channels=groups * outputs, temb_channels=7, groups=groups, eps=1e-5
        )
    )
    x, vec = trial.randn(batch, groups * inputs, height, width), trial.randn(batch, 7)
    silu = trial.rounded(torch.nn.functional.silu(vec))
    got = resnet_block(weights(trial, module), nhwc(trial, x), trial.array(silu), groups)
    trial.close("U-Net residual block", got, last(module(x, vec)), 1e-5)


@given(unet_configs(), batches, tokens, sides, sides)
def test_spatial_transformer(trial, cfg, batch, length, height, width):
    channels = cfg.block_out_channels[-1]
    module = trial.random(
        Transformer2DModel(
            cfg.num_heads, channels // cfg.num_heads, channels, norm_num_groups=cfg.norm_groups,
            cross_attention_dim=cfg.cross_attention_dim,
        )
    )  # fmt: skip
    x, txt = trial.randn(batch, channels, height, width), trial.randn(batch, length, cfg.cross_attention_dim)
    expected = module(x, txt, return_dict=False)[0]
    got = spatial_transformer(weights(trial, module), cfg, nhwc(trial, x), trial.array(txt))
    trial.close("U-Net attention", got, last(expected))


@given(batches, tokens, st.integers(3, 9))
def test_gated_mlp(trial, batch, length, width):
    block = Transformer2DModel(1, width, width, norm_num_groups=1, cross_attention_dim=5).transformer_blocks[0]
    module, x = trial.random(block.ff), trial.randn(batch, length, width)
    trial.close("U-Net gated MLP", gated_mlp(trial.tree(module)["net"], trial.array(x)), module(x))


@given(batches, sides, sides, st.booleans(), st.booleans())
def test_upsampling_to_an_odd_size(trial, batch, height, width, odd_height, odd_width):
    conv, x = trial.random(torch.nn.Conv2d(5, 3, 3, padding=1)), trial.randn(batch, 5, height, width)
    size = 2 * height - odd_height, 2 * width - odd_width
    expected = conv(torch.nn.functional.interpolate(x, size=size, mode="nearest"))
    trial.close("U-Net upsampling", upsample_to(weights(trial, conv), nhwc(trial, x), *size), last(expected))


@given(unet_configs(wide=True), batches, tokens, st.integers(3, 7), st.integers(3, 7))
def test_unet(trial, cfg, batch, length, height, width):
    """Of any size: odd ones are halved to the larger half, and cut on the way up."""
    module, p = oracle(trial, cfg)
    x, t = trial.randn(batch, cfg.in_channels, height, width), torch.tensor([17, 999, 640][:batch])
    txt = trial.randn(batch, length, cfg.cross_attention_dim)
    expected = module(x, t, txt).sample
    got = unet(p, cfg, nhwc(trial, x), trial.array(t.float(), "float32"), trial.array(txt))
    trial.close("U-Net", got, last(expected), MODEL)


def test_every_level_is_heard(trial):
    cfg = UNetConfig(3, 2, (4, 8), (False, True), 1, 2, 5, 2)
    p, heard = oracle(trial, cfg)[1], {}
    x, txt = nhwc(trial, trial.randn(1, 3, 4, 6)), trial.array(trial.randn(1, 2, 5))
    unet(p, cfg, x, trial.array(torch.zeros(1), "float32"), txt, lambda name, seen: heard.update({name: seen["img"]}))
    assert {name: tuple(x.shape) for name, x in heard.items()} == {
        "down_blocks.0": (1, 2, 3, 4), "down_blocks.1": (1, 2, 3, 8), "mid_block": (1, 2, 3, 8),
        "up_blocks.0": (1, 4, 6, 8), "up_blocks.1": (1, 4, 6, 4),
    }  # fmt: skip
