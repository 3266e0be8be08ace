"""SigLIP's vision encoder in files: everybody calls its weights as transformers does. Source: `modeling_siglip.py`."""

from dataclasses import asdict, fields, replace
from math import isqrt

from minflux.checkpoints.components.base import Component, Json, Naming, require, take
from minflux.checkpoints.components.shapes import Shapes, Sizes, clip_layer_shapes, norm_shapes, under
from minflux.errors import CheckpointError, quoted
from minflux.model.siglip import SO400M, SiglipConfig

CHANNELS = 3
PATCHES, POSITIONS = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
UNUSED = ("head.", "text_model.", "logit_", "embeddings.position_ids")  # of the whole SigLIP, and of its pooling


def alias(name: str) -> str | None:
    """Return the standard name of a weight: transformers 5 drops the prefix "vision_model.".

    The head that pools the states, and the text encoder of the whole SigLIP, are not used.
    """
    bare = name.removeprefix("vision_model.")
    return None if bare.startswith(UNUSED) else bare


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {field.name: field.name for field in fields(SiglipConfig)}
FIXED = {"hidden_act": SO400M.hidden_act, "num_channels": CHANNELS}  # what our code takes for granted

TRANSFORMERS: Json = {  # what a config that leaves a size out means
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip


def read_config(config: Json) -> SiglipConfig:
    """Read the config of a transformers `SiglipVisionModel`, or its part of a `SiglipModel`'s.

    Raises `CheckpointError` on one that we can't run. What a config leaves out has transformers' default, which is a
    smaller SigLIP's.
    """
    inner = config.get("vision_config", config)
    if not isinstance(inner, dict):
        raise CheckpointError(f"vision_config: expected a JSON object, found {quoted(inner)}")
    require(inner, FIXED)
    cfg = SiglipConfig(**TRANSFORMERS | take(inner, SO400M, CONFIG_NAMES))
    if cfg.hidden_size % cfg.num_attention_heads:
        raise CheckpointError(
            f"num_attention_heads: expected a divisor of {cfg.hidden_size}, found {cfg.num_attention_heads}"
        )
    if not cfg.grid:
        raise CheckpointError(f"patch_size: expected at most {cfg.image_size}, found {cfg.patch_size}")
    return cfg


def write_config(cfg: SiglipConfig) -> Json:
    """Return the config that transformers reads."""
    return FIXED | asdict(cfg) | {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"}


# -- shapes ----------------------------------------------------------------------------------------------------


def siglip_shapes(cfg: SiglipConfig) -> Shapes:
    """Return the shape of every weight of the vision encoder that is used."""
    d = cfg.hidden_size
    shapes: Shapes = {
        PATCHES: (d, CHANNELS, cfg.patch_size, cfg.patch_size),
        "embeddings.patch_embedding.bias": (d,),
        POSITIONS: (cfg.grid**2, d),
    }
    for i in range(cfg.num_hidden_layers):
        shapes |= under(f"encoder.layers.{i}", clip_layer_shapes(cfg.hidden_size, cfg.intermediate_size))
    return shapes | under("post_layernorm", norm_shapes(d))


# -- sizes -----------------------------------------------------------------------------------------------------


def siglip_sizes(size: Sizes, beside: SiglipConfig | None) -> SiglipConfig:
    """Read the vision encoder's config off its shapes.

    No shape shows its heads, nor the pixels that its patches leave out. They are those of `beside`, and without that
    those of so400m; raises `CheckpointError` for an encoder of other sizes.
    """
    found = replace(
        beside or SO400M,
        hidden_size=size(PATCHES, 0),
        intermediate_size=size("encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=size.count("encoder.layers"),
        patch_size=size(PATCHES, 2),
    )
    if beside is None and (found != SO400M or isqrt(size(POSITIONS, 0)) != SO400M.grid):
        raise CheckpointError(
            f"{size.title}: expected SigLIP-so400m for 384 pixels, whose heads and image size are known, found "
            f"{describe(found)}: put its config.json beside it"
        )
    return found


def describe(cfg: SiglipConfig) -> str:
    """Return the vision encoder's sizes in a line."""
    side = cfg.image_size
    return f"width {cfg.hidden_size}, {cfg.num_hidden_layers} layers, {cfg.grid**2} patches of {side} × {side} pixels"


# -- the record ------------------------------------------------------------------------------------------------

SIGLIP = Component(
    name="image_encoder",
    title="SigLIP",
    stem="model",
    library=("transformers", "SiglipVisionModel"),
    config=SiglipConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=siglip_shapes,
    sizes=siglip_sizes,
    namings=(Naming("transformers", "Hugging Face's names", (PATCHES, f"vision_model.{PATCHES}")),),
    own="transformers",
    stage="text",
    alias=alias,
)
