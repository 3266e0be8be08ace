"""Stable Diffusion 1's U-Net in files: diffusers' names, which our trees use.

Only the layout differs: kernels are (out, kh, kw, in) here, (out, in, kh, kw) in files, and the 1×1 kernels of
shortcuts and of attention's projections in and out are plain matrices here. Source: diffusers `unet_2d_condition.py`.
"""

import re

from minflux.checkpoints.components.base import Component, Flat, Json, Naming, is_like, require, take
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, norm_shapes, under
from minflux.checkpoints.components.vae import MOST_LEVELS, channels_last, conv_shapes, kernel_to_torch
from minflux.errors import CheckpointError, quoted
from minflux.model.unet import UNetConfig

SMALL_KERNEL = re.compile(r"\.(conv_shortcut|proj_in|proj_out)\.weight$")  # 1×1 in files, a matrix here


def to_diffusers(flat: Flat) -> Flat:
    """Turn our weights into those of a diffusers `UNet2DConditionModel`: undo `channels_last`."""
    return {
        name: kernel_to_torch(array) if array.ndim == 4 or SMALL_KERNEL.search(name) else array
        for name, array in flat.items()
    }


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {  # diffusers' name -> ours
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "layers_per_block": "layers_per_block",
    "attention_head_dim": "num_heads",  # diffusers' name is wrong, and says so
    "cross_attention_dim": "cross_attention_dim",
    "norm_num_groups": "norm_groups",
}
DOWN = {False: "DownBlock2D", True: "CrossAttnDownBlock2D"}  # without attention, and with it
UP = {False: "UpBlock2D", True: "CrossAttnUpBlock2D"}
USUAL: Json = {  # diffusers' own where ours are another's, or none
    "block_out_channels": list(UNetConfig.block_out_channels),
    "cross_attention_dim": 1280,
    "down_block_types": [DOWN[attends] for attends in UNetConfig.attends],
    "up_block_types": [UP[attends] for attends in reversed(UNetConfig.attends)],
}
FIXED = {  # what our code takes for granted
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
}


def read_config(config: Json) -> UNetConfig:
    """Read the config of a diffusers `UNet2DConditionModel`; raises `CheckpointError` on one we can't run."""
    require(config, FIXED)
    config = USUAL | config
    widths = read_levels(config)
    cfg = UNetConfig(
        **take(config, UNetConfig(), CONFIG_NAMES),
        block_out_channels=widths,
        attends=read_attention(config, len(widths)),
    )
    check_divisors(cfg)
    return cfg


def read_levels(config: Json) -> tuple[int, ...]:
    """Return the channels of each level; raises `CheckpointError` unless they are 1 to 8 sizes."""
    widths = config["block_out_channels"]
    if not isinstance(widths, list) or not 0 < len(widths) <= MOST_LEVELS:
        raise CheckpointError(f"block_out_channels: expected 1 to {MOST_LEVELS} numbers, found {quoted(widths)}")
    if not all(is_like(width, 1, least=1) for width in widths):
        raise CheckpointError(f"block_out_channels: expected sizes, found {quoted(widths)}")
    return tuple(widths)


def read_attention(config: Json, levels: int) -> tuple[bool, ...]:
    """Return which levels attend; raises `CheckpointError` for levels that differ on the way down and up."""
    down = config["down_block_types"]
    attends = tuple(kind == DOWN[True] for kind in down) if isinstance(down, list) else ()
    for key, expected in block_types(attends).items():
        found = config[key]
        if found != expected or len(expected) != levels:
            raise CheckpointError(
                f"{key}: expected {levels} of {DOWN[False]} and {DOWN[True]}, and their mirror image on the way up, "
                f"found {quoted(found)}"
            )
    return attends


def block_types(attends: tuple[bool, ...]) -> Json:
    """Return diffusers' names of the levels on both ways."""
    return {
        "down_block_types": [DOWN[level] for level in attends],
        "up_block_types": [UP[level] for level in reversed(attends)],
    }


def check_divisors(cfg: UNetConfig) -> None:
    """Raise `CheckpointError` where a level can't be cut into groups or heads, or has no sinusoids for time."""
    for width in cfg.block_out_channels:
        for name, count in (("norm_num_groups", cfg.norm_groups), ("attention_head_dim", cfg.num_heads)):
            if width % count:
                raise CheckpointError(f"{name}: expected a divisor of {width}, found {count}")
    if cfg.block_out_channels[0] % 2:
        raise CheckpointError(f"block_out_channels: expected an even first one, found {cfg.block_out_channels[0]}")


def write_config(cfg: UNetConfig) -> Json:
    """Return the config that diffusers reads."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in CONFIG_NAMES.items()}
    return FIXED | sizes | block_types(cfg.attends) | {"block_out_channels": list(cfg.block_out_channels)}


# -- shapes ----------------------------------------------------------------------------------------------------


def unet_shapes(cfg: UNetConfig) -> Shapes:
    """Return the shape of every weight of the U-Net: 686 for Stable Diffusion 1.5's."""
    first, last = cfg.block_out_channels[0], cfg.block_out_channels[-1]
    shapes = under("conv_in", conv_shapes(first, cfg.in_channels))
    shapes |= under("time_embedding.linear_1", linear_shapes(4 * first, first))
    shapes |= under("time_embedding.linear_2", linear_shapes(4 * first, 4 * first))
    shapes |= down_shapes(cfg)
    shapes |= under("mid_block", level_shapes(cfg, last, [last, last], attentions=1))
    shapes |= up_shapes(cfg)
    return shapes | under("conv_norm_out", norm_shapes(first)) | under("conv_out", conv_shapes(cfg.out_channels, first))


def down_shapes(cfg: UNetConfig) -> Shapes:
    """Return the shapes of the levels from fine to coarse; all but the last halve the size."""
    shapes: Shapes = {}
    width, last = cfg.block_out_channels[0], len(cfg.attends) - 1
    for i, (outputs, attends) in enumerate(zip(cfg.block_out_channels, cfg.attends, strict=True)):
        inputs = [width] + [outputs] * (cfg.layers_per_block - 1)
        level = level_shapes(cfg, outputs, inputs, len(inputs) if attends else 0)
        level |= under("downsamplers.0.conv", conv_shapes(outputs, outputs)) if i < last else {}
        shapes |= under(f"down_blocks.{i}", level)
        width = outputs
    return shapes


def up_shapes(cfg: UNetConfig) -> Shapes:
    """Return the shapes of the levels from coarse to fine; each layer takes what one on the way down gave, too."""
    shapes: Shapes = {}
    width, last = cfg.block_out_channels[-1], len(cfg.attends) - 1
    kept = kept_channels(cfg)
    for i in range(last + 1):
        outputs, attends = cfg.block_out_channels[last - i], cfg.attends[last - i]
        before = [width] + [outputs] * cfg.layers_per_block
        inputs = [channels + kept.pop() for channels in before]
        level = level_shapes(cfg, outputs, inputs, len(inputs) if attends else 0)
        level |= under("upsamplers.0.conv", conv_shapes(outputs, outputs)) if i < last else {}
        shapes |= under(f"up_blocks.{i}", level)
        width = outputs
    return shapes


def kept_channels(cfg: UNetConfig) -> list[int]:
    """List the channels of all that is kept on the way down: conv_in's, each layer's, and each halving's."""
    kept = [cfg.block_out_channels[0]]
    for width in cfg.block_out_channels:
        kept += [width] * (cfg.layers_per_block + 1)
    return kept[:-1]  # the last level does not halve


def level_shapes(cfg: UNetConfig, outputs: int, inputs: list[int], attentions: int) -> Shapes:
    """Return the shapes of a level: a residual block for each of `inputs`, and so many attentions."""
    shapes: Shapes = {}
    for i, channels in enumerate(inputs):
        shapes |= under(f"resnets.{i}", resnet_shapes(outputs, channels, 4 * cfg.block_out_channels[0]))
    for i in range(attentions):
        shapes |= under(f"attentions.{i}", attention_shapes(outputs, cfg.cross_attention_dim))
    return shapes


def resnet_shapes(outputs: int, inputs: int, time: int) -> Shapes:
    """Return the shapes of a residual block; it has a shortcut where the number of channels changes."""
    shapes = (
        under("norm1", norm_shapes(inputs))
        | under("conv1", conv_shapes(outputs, inputs))
        | under("time_emb_proj", linear_shapes(outputs, time))
        | under("norm2", norm_shapes(outputs))
        | under("conv2", conv_shapes(outputs, outputs))
    )
    return shapes | (under("conv_shortcut", linear_shapes(outputs, inputs)) if inputs != outputs else {})


def attention_shapes(width: int, text: int) -> Shapes:
    """Return the shapes of what lets pixels attend to each other and to a text of width `text`."""
    block = under("ff.net.0.proj", linear_shapes(8 * width, width)) | under("ff.net.2", linear_shapes(width, 4 * width))
    for name, seen in (("attn1", width), ("attn2", text)):
        block |= under(f"{name}.to_q", linear_shapes(width, width, bias=False))
        block |= under(f"{name}.to_k", linear_shapes(width, seen, bias=False))
        block |= under(f"{name}.to_v", linear_shapes(width, seen, bias=False))
        block |= under(f"{name}.to_out.0", linear_shapes(width, width))
    for name in ("norm1", "norm2", "norm3"):
        block |= under(name, norm_shapes(width))
    projection = linear_shapes(width, width)
    ends = under("norm", norm_shapes(width)) | under("proj_in", projection) | under("proj_out", projection)
    return ends | under("transformer_blocks.0", block)


# -- sizes -----------------------------------------------------------------------------------------------------


def unet_sizes(size: Sizes, beside: UNetConfig | None) -> UNetConfig:
    """Read the U-Net's config off its shapes; no shape shows groups and heads: they are `beside`'s, or 32 and 8."""
    hidden_from = beside or UNetConfig()
    levels = range(size.count("down_blocks"))
    return UNetConfig(
        in_channels=size("conv_in.weight", 1),
        out_channels=size("conv_out.weight", 0),
        block_out_channels=tuple(size(f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels),
        attends=tuple(size.has(f"down_blocks.{i}.attentions.0.norm.weight") for i in levels),
        layers_per_block=size.count("down_blocks.0.resnets"),
        num_heads=hidden_from.num_heads,
        cross_attention_dim=size("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
        norm_groups=hidden_from.norm_groups,
    )


def describe(cfg: UNetConfig) -> str:
    """Return the U-Net's sizes in a line."""
    levels = zip(cfg.block_out_channels, cfg.attends, strict=True)
    widths = ", ".join(f"{width}{'+text' * attends}" for width, attends in levels)
    return f"{cfg.in_channels} latent channels, levels of {widths}, {cfg.layers_per_block} blocks each"


# -- the record ------------------------------------------------------------------------------------------------

UNET = Component(
    name="unet",
    title="U-Net",
    stem="diffusion_pytorch_model",
    library=("diffusers", "UNet2DConditionModel"),
    config=UNetConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=unet_shapes,
    sizes=unet_sizes,
    namings=(
        Naming(
            "diffusers", "diffusers' names", ("mid_block.resnets.0.time_emb_proj.weight",), ("unet.", ""),
            channels_last, to_diffusers,
        ),
    ),
    own="diffusers",
    stage="steps",
)  # fmt: skip
