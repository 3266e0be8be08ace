"""The autoencoder, its parts and both halves, against diffusers' `AutoencoderKL`."""

from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2KleinPipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.flux2 import FLUX2_VAE
from minflux.checkpoints.components.vae import channels_last as to_channels_last
from minflux.checkpoints.components.vae import diffusers_to_bfl as vae_to_bfl
from minflux.checkpoints.components.vae import write_config as write_vae_config
from minflux.checkpoints.tree import tree
from minflux.model.vae import attention_block, conv3, decode, encode, encode_moments, middle, norm_silu, resnet_block
from tests.compare import MODEL
from tests.strategies import batches, flux2_vae_configs, vae_configs

sides = st.integers(2, 6)
groups_of = st.integers(1, 3)
per_group = st.integers(2, 4)


def nhwc(trial, x: torch.Tensor):
    """A picture as ours: channels last."""
    return trial.array(x.permute(0, 2, 3, 1).contiguous())


def last(x: torch.Tensor) -> torch.Tensor:
    """PyTorch's picture with channels last."""
    return x.permute(0, 2, 3, 1)


def part(trial, module, prefix, *path):
    """The weights of a diffusers module that stands at `prefix`, and at `path` in our tree."""
    p = tree(to_channels_last(vae_to_bfl(trial.flat(module, f"{prefix}."))))
    for key in path:
        p = p[key]
    return p


@given(batches, sides, sides, groups_of, per_group, per_group)
def test_resnet_block(trial, batch, height, width, groups, inputs, outputs):
    module = trial.random(
        ResnetBlock2D(
            in_channels=groups * inputs, out_channels=groups * outputs, temb_channels=None, groups=groups, eps=1e-6
        )
    )
    x = trial.randn(batch, groups * inputs, height, width)
    p = part(trial, module, "encoder.down_blocks.0.resnets.0", "encoder", "down", 0, "block", 0)
    trial.close("VAE residual block", resnet_block(p, nhwc(trial, x), groups), last(module(x, None)))


@given(batches, sides, sides, groups_of, per_group)
def test_norm_silu_and_conv(trial, batch, height, width, groups, each):
    norm = trial.random(torch.nn.GroupNorm(groups, groups * each, eps=1e-6))
    conv = trial.random(torch.nn.Conv2d(groups * each, 5, 3, padding=1))
    x = trial.randn(batch, groups * each, height, width)
    expected = torch.nn.functional.silu(norm(x))
    trial.close("VAE norm and SiLU", norm_silu(trial.tree(norm), nhwc(trial, x), groups), last(expected))
    trial.close(
        "VAE convolution",
        conv3(part(trial, conv, "encoder.conv_in", "encoder", "conv_in"), nhwc(trial, x)),
        last(conv(x)),
    )


@given(batches, sides, sides, groups_of, per_group)
def test_middle_attention(trial, batch, height, width, groups, each):
    channels = groups * each
    module = trial.random(
        Attention(
            channels, heads=1, dim_head=channels, norm_num_groups=groups, eps=1e-6, bias=True,
            residual_connection=True, _from_deprecated_attn_block=True, upcast_softmax=True,
        )
    )  # fmt: skip
    x = trial.randn(batch, channels, height, width)
    p = part(trial, module, "encoder.mid_block.attentions.0", "encoder", "mid", "attn_1")
    trial.close("VAE attention", attention_block(p, nhwc(trial, x), groups), last(module(x)))


@given(batches, sides, sides, st.integers(1, 9))
def test_downsample(trial, batch, height, width, channels):
    module = trial.random(Downsample2D(channels, use_conv=True, padding=0))
    x = trial.randn(batch, channels, height, width)
    p = part(trial, module, "encoder.down_blocks.0.downsamplers.0", "encoder", "down", 0, "downsample", "conv")
    trial.close("VAE downsampling", trial.nx.downsample(nhwc(trial, x), **p), last(module(x)))


@given(batches, sides, sides, st.integers(1, 9))
def test_upsample(trial, batch, height, width, channels):
    module = trial.random(Upsample2D(channels, use_conv=True))
    x = trial.randn(batch, channels, height, width)
    p = part(trial, module, "decoder.up_blocks.0.upsamplers.0", "decoder", "up", 0, "upsample", "conv")
    got = conv3(p, trial.nx.upsample(nhwc(trial, x)))
    trial.close("VAE upsampling", got, last(module(x)))


def oracle(trial, cfg):
    """diffusers' autoencoder of these sizes with random weights, and its weights as our tree."""
    module = trial.random(AutoencoderKL.from_config(write_vae_config(cfg)))
    return module, tree(to_channels_last(vae_to_bfl(trial.flat(module))))


@given(vae_configs(), batches, sides, sides)
def test_middle(trial, cfg, batch, height, width):
    module, p = oracle(trial, cfg)
    x = trial.randn(batch, cfg.ch * cfg.ch_mult[-1], height, width)
    got = middle(p["encoder"]["mid"], nhwc(trial, x), cfg.norm_groups)
    trial.close("VAE middle", got, last(module.encoder.mid_block(x)))


@given(vae_configs(), batches, st.integers(3, 7), st.integers(3, 7))
def test_encode(trial, cfg, batch, rows, cols):
    module, p = oracle(trial, cfg)
    image = trial.rounded(torch.rand(batch, 3, rows * cfg.downscale, cols * cfg.downscale) * 2 - 1)
    moments = module.encoder(image)
    moments = module.quant_conv(moments) if cfg.quant_conv else moments
    mean, log_variance = encode_moments(p, cfg, nhwc(trial, image))
    trial.close("VAE encode", mean, last(moments[:, : cfg.z_channels]), MODEL)
    trial.close("VAE encode", log_variance, last(moments[:, cfg.z_channels :]), MODEL)
    latents = (module.encode(image).latent_dist.mode() - cfg.shift_factor) * cfg.scale_factor
    trial.close("VAE encode", encode(p, cfg, nhwc(trial, image)), last(latents), MODEL)


@given(vae_configs(), batches, sides, sides)
def test_decode(trial, cfg, batch, rows, cols):
    module, p = oracle(trial, cfg)
    latents = trial.randn(batch, cfg.z_channels, rows, cols)
    expected = module.decode(latents / cfg.scale_factor + cfg.shift_factor).sample
    trial.close("VAE decode", decode(p, cfg, nhwc(trial, latents)), last(expected), MODEL)


def flux2_oracle(trial, cfg):
    """diffusers' `AutoencoderKLFlux2` with random weights and statistics, and its weights as our tree."""
    module = trial.random(AutoencoderKLFlux2.from_config(FLUX2_VAE.write_config(cfg)))
    module.bn.running_mean = trial.randn(*module.bn.running_mean.shape)
    module.bn.running_var = trial.rounded(0.1 + torch.rand(module.bn.running_var.shape))
    flat = {name: array for name, array in trial.flat(module).items() if FLUX2_VAE.alias(name)}
    return module, tree(FLUX2_VAE.folder_naming.load(flat, cfg))


@given(flux2_vae_configs(), batches, sides, sides)
def test_encode_as_flux2(trial, cfg, batch, rows, cols):
    module, p = flux2_oracle(trial, cfg)
    image = trial.rounded(torch.rand(batch, 3, 2 * rows * cfg.downscale, 2 * cols * cfg.downscale) * 2 - 1)
    patchify = Flux2KleinPipeline._patchify_latents
    pipe = SimpleNamespace(vae=module, _patchify_latents=patchify)
    patches = Flux2KleinPipeline._encode_vae_image(pipe, image, None)
    expected = Flux2KleinPipeline._unpatchify_latents(patches)
    trial.close("FLUX.2's VAE, encode", encode(p, cfg, nhwc(trial, image)), last(expected), MODEL)


@given(flux2_vae_configs(), batches, sides, sides)
def test_decode_as_flux2(trial, cfg, batch, rows, cols):
    module, p = flux2_oracle(trial, cfg)
    latents = trial.randn(batch, cfg.z_channels, 2 * rows, 2 * cols)
    patches = Flux2KleinPipeline._patchify_latents(latents)
    mean, variance = (statistic[None, :, None, None] for statistic in (module.bn.running_mean, module.bn.running_var))
    raw = Flux2KleinPipeline._unpatchify_latents(patches * (variance + cfg.batch_norm_eps).sqrt() + mean)
    expected = module.decode(raw).sample
    trial.close("FLUX.2's VAE, decode", decode(p, cfg, nhwc(trial, latents)), last(expected), MODEL)
