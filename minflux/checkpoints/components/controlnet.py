"""ControlNets in files: diffusers' names, and XLabs', which our trees use, BFL's for what the transformer has too.

A folder of diffusers has a config; of a single file the shapes say all. Our layout of kernels is (out, kh, kw, in), as
the VAE's. Sources: diffusers `models/controlnets/controlnet_flux.py`; XLabs' x-flux `src/flux/controlnet.py`.
"""

import re

from minflux.checkpoints.components.base import Component, Flat, Json, Naming, require
from minflux.checkpoints.components.flux import CONFIG_NAMES as FLUX_CONFIG_NAMES
from minflux.checkpoints.components.flux import JOINTS, RULES, as_config, body_shapes, body_sizes
from minflux.checkpoints.components.renaming import Rules, apart, backwards, joined, rename, renamed
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, under
from minflux.checkpoints.components.vae import channels_last, kernel_to_torch
from minflux.errors import CheckpointError
from minflux.model.controlnet import HINT_STRIDES, ControlNetConfig

CLASS = "FluxControlNetModel"
HINT, HINT_WIDTH = "input_hint_block", 16  # the convolutions, and the channels between them
LAST_HINT = f"{HINT}.14.weight"
EMBEDDER = "pos_embed_input"
MODES = "controlnet_mode_embedder.weight"

# -- names -----------------------------------------------------------------------------------------------------

CONTROL_RULES: Rules = (  # (diffusers, XLabs)
    ("controlnet_x_embedder", EMBEDDER),
    (f"{HINT}.conv_in", f"{HINT}.0"),
    *((f"{HINT}.blocks.{i}", f"{HINT}.{2 * i + 2}") for i in range(6)),
    (f"{HINT}.conv_out", f"{HINT}.14"),
)


def from_diffusers(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `FluxControlNetModel` into ours."""
    return channels_last(joined(renamed(flat, CONTROL_RULES + RULES)))


def to_diffusers(flat: Flat) -> Flat:
    """Undo `from_diffusers`."""
    return renamed(apart(to_xlabs(flat), JOINTS), backwards(CONTROL_RULES + RULES))


def to_xlabs(flat: Flat) -> Flat:
    """Lay our weights out as files have them, under XLabs' names."""
    return {name: kernel_to_torch(array) if array.ndim == 4 else array for name, array in flat.items()}


def our_part(name: str, config: ControlNetConfig | None) -> str:
    """Return our name of a weight that diffusers names; of a joint matrix, the part.

    >>> our_part("input_hint_block.blocks.1.bias", None), our_part("transformer_blocks.0.attn.to_k.bias", None)
    ('input_hint_block.4.bias', 'double_blocks.0.img_attn.qkv@1.bias')
    """
    return rename(name, CONTROL_RULES + RULES)


# -- config ----------------------------------------------------------------------------------------------------

OWN_NAMES = {"num_mode": "modes", "conditioning_embedding_channels": "hint_channels"}  # diffusers' name -> ours
CONFIG_NAMES = {
    theirs: ours for theirs, ours in FLUX_CONFIG_NAMES.items() if ours != "out_channels"
} | OWN_NAMES  # fmt: skip
FIXED = {"_class_name": CLASS, "extra_condition_channels": 0}  # what our code takes for granted


def read_config(config: Json) -> ControlNetConfig:
    """Read the config of a diffusers `FluxControlNetModel`; raises `CheckpointError` if we can't run it."""
    require(config, FIXED)
    cfg = as_config(ControlNetConfig, config, CONFIG_NAMES)
    require(config, {"patch_size": patch_size(cfg)})
    check_hint(cfg)
    return cfg


def patch_size(cfg: ControlNetConfig) -> int:
    """Return diffusers' patch size: 2 where pixels are shrunk to latents, which are packed; else 1, and not used."""
    return 2 if cfg.sees_pixels else 1


def check_hint(cfg: ControlNetConfig) -> None:
    """Raise `CheckpointError` unless a 2×2 patch of what is made of pixels is as long as a token."""
    if cfg.sees_pixels and 4 * cfg.hint_channels != cfg.in_channels:
        raise CheckpointError(
            f"conditioning_embedding_channels: expected {cfg.in_channels // 4}, a quarter of in_channels, found "
            f"{cfg.hint_channels}"
        )


def write_config(cfg: ControlNetConfig) -> Json:
    """Return the config that diffusers reads."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in CONFIG_NAMES.items()}
    own = {theirs: sizes[theirs] or None for theirs in OWN_NAMES}
    head_dim = cfg.hidden_size // cfg.num_heads
    return {"_class_name": CLASS} | sizes | own | {"attention_head_dim": head_dim, "patch_size": patch_size(cfg)}


# -- shapes ----------------------------------------------------------------------------------------------------


def controlnet_shapes(cfg: ControlNetConfig) -> Shapes:
    """Return the shape of every weight of a ControlNet: the transformer's without its final layer, and its own."""
    d = cfg.hidden_size
    shapes = body_shapes(cfg) | under(EMBEDDER, linear_shapes(d, cfg.in_channels))
    for i in range(cfg.depth):
        shapes |= under(f"controlnet_blocks.{i}", linear_shapes(d, d))
    for i in range(cfg.depth_single_blocks):
        shapes |= under(f"controlnet_single_blocks.{i}", linear_shapes(d, d))
    if cfg.modes:
        shapes |= {MODES: (cfg.modes, d)}
    return shapes | under(HINT, hint_shapes(cfg)) if cfg.sees_pixels else shapes


def hint_shapes(cfg: ControlNetConfig) -> Shapes:
    """Return the shapes of the convolutions that make latents of pixels."""
    shapes: Shapes = {}
    for i, place in enumerate(HINT_STRIDES):
        channels_in = HINT_WIDTH if i else 3
        channels_out = HINT_WIDTH if i < len(HINT_STRIDES) - 1 else cfg.hint_channels
        shapes |= under(place, {"weight": (channels_out, 3, 3, channels_in), "bias": (channels_out,)})
    return shapes


def controlnet_sizes(size: Sizes, beside: ControlNetConfig | None) -> ControlNetConfig:
    """Read a ControlNet's config off its shapes; what none shows is `beside`'s, or FLUX.1's own."""
    modes = size(MODES, 0) if size.has(MODES) else 0
    hint_channels = size(LAST_HINT, 0) if size.has(LAST_HINT) else 0
    cfg = ControlNetConfig(**body_sizes(size, beside), modes=modes, hint_channels=hint_channels)
    check_hint(cfg)
    return cfg


def describe(cfg: ControlNetConfig) -> str:
    """Return what kind of ControlNet it is, and its sizes, in a line."""
    return (
        f"{family(cfg)}, {'with' if cfg.guidance_embed else 'without'} guidance built in; width {cfg.hidden_size}, "
        f"{cfg.num_heads} heads, {cfg.depth} double and {cfg.depth_single_blocks} single blocks"
    )


def family(cfg: ControlNetConfig) -> str:
    """Return what a ControlNet sees."""
    if cfg.modes:
        return f"a Union of {cfg.modes} modes"
    return "sees the control image as pixels, as XLabs'" if cfg.sees_pixels else "sees the control image as latents"


# -- the record ------------------------------------------------------------------------------------------------

CONTROLNET = Component(
    name="controlnet",
    title="ControlNet",
    stem="diffusion_pytorch_model",
    library=("diffusers", CLASS),
    config=ControlNetConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=controlnet_shapes,
    sizes=controlnet_sizes,
    namings=(
        Naming(
            "diffusers", "diffusers' names", ("controlnet_x_embedder.weight",), ("",), from_diffusers, to_diffusers,
            our_part,
        ),
        Naming("xlabs", "XLabs' names", (f"{EMBEDDER}.weight",), ("",), channels_last, to_xlabs),
    ),
    own="xlabs",
    stage="steps",
    once=re.compile(rf"(^(time|guidance|vector)_in|_mod\.lin|modulation\.lin|^{EMBEDDER}|^{HINT})\b"),
    in_blocks=re.compile(r"(double|single)_blocks\.\d+\."),
    joints=JOINTS,
)  # fmt: skip
