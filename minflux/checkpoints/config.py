"""The sizes of a model, between its `config.json` and our dataclasses.

diffusers has its own names for BFL's sizes; tables say which is which. A model that minflux would compute
wrongly (another activation, an extra convolution, …) is refused here, before its weights are read.
"""

from dataclasses import asdict, fields
from typing import Any

from minflux.errors import CheckpointError
from minflux.model.clip import CLIPConfig
from minflux.model.flux import FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import VAEConfig

Json = dict[str, Any]

# diffusers' name -> BFL's
FLUX_NAMES = {
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "pooled_projection_dim": "vec_in_dim",
    "joint_attention_dim": "context_in_dim",
    "num_attention_heads": "num_heads",
    "num_layers": "depth",
    "num_single_layers": "depth_single_blocks",
    "axes_dims_rope": "axes_dim",
    "guidance_embeds": "guidance_embed",
}
VAE_NAMES = {
    "in_channels": "in_channels",
    "out_channels": "out_ch",
    "layers_per_block": "num_res_blocks",
    "latent_channels": "z_channels",
    "scaling_factor": "scale_factor",
    "shift_factor": "shift_factor",
    "norm_num_groups": "norm_groups",
}

# what has to be so for our code to be right, and is written into every config
FLUX_FIXED = {"_class_name": "FluxTransformer2DModel", "patch_size": 1}
VAE_FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5_FIXED = {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
CLIP_FIXED = {"hidden_act": "quick_gelu"}

MAY_BE_ZERO = ("depth", "depth_single_blocks", "eos_token_id")


def require(config: Json, fixed: Json) -> None:
    """Raise `CheckpointError` unless every key of `fixed` that the config has, has that value."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{key}: expected {value!r}, found {config[key]!r}: minflux can't run this model")


def take(config: Json, cls: Any, names: dict[str, str]) -> Json:
    """Collect a dataclass's fields from a config, under the dataclass's names; absent ones are left out.

    Raises `CheckpointError` where a value is of another type than the field's default.
    """
    defaults, found = asdict(cls()), {}
    for theirs, ours in names.items():
        value = config.get(theirs)
        if value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        kind = (int, float) if isinstance(defaults[ours], float) else type(defaults[ours])
        least = 0 if ours in MAY_BE_ZERO else 1
        if not isinstance(value, kind) or (kind is int and value < least):
            raise CheckpointError(f"{theirs}: expected a value like {defaults[ours]!r}, found {config[theirs]!r}")
        found[ours] = value
    return found


def same_names(cls: Any) -> dict[str, str]:
    """Map each field's name to itself: our text encoders keep Hugging Face's names."""
    return {field.name: field.name for field in fields(cls)}


# -- the transformer -----------------------------------------------------------------------------------------


def read_flux_config(config: Json) -> FluxConfig:
    """Read the config of diffusers' `FluxTransformer2DModel`; raises `CheckpointError` if we can't run it."""
    require(config, FLUX_FIXED)
    found = take(config, FluxConfig, FLUX_NAMES)
    head_dim = config.get("attention_head_dim", 128)
    found.setdefault("out_channels", found.get("in_channels", FluxConfig.in_channels))
    cfg = FluxConfig(**found, hidden_size=head_dim * found.get("num_heads", FluxConfig.num_heads))
    if sum(cfg.axes_dim) != head_dim:
        raise CheckpointError(f"axes_dims_rope: expected a sum of {head_dim}, found {cfg.axes_dim}")
    return cfg


def write_flux_config(cfg: FluxConfig) -> Json:
    """Write the config that diffusers reads; mlp_ratio 4 and theta 10000 are fixed there, and not written."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in FLUX_NAMES.items()}
    return FLUX_FIXED | sizes | {"attention_head_dim": cfg.hidden_size // cfg.num_heads}


# -- the autoencoder -----------------------------------------------------------------------------------------


def read_vae_config(config: Json) -> VAEConfig:
    """Read the config of a diffusers `AutoencoderKL`; raises `CheckpointError` on one we can't run."""
    require(config, VAE_FIXED)
    widths = config.get("block_out_channels")
    if not isinstance(widths, list) or not widths or any(width % widths[0] for width in widths):
        raise CheckpointError(f"block_out_channels: expected multiples of the first, found {widths}")
    found = Json({"shift_factor": 0.0}) | take(config, VAEConfig, VAE_NAMES)
    return VAEConfig(**found, ch=widths[0], ch_mult=tuple(width // widths[0] for width in widths))


def write_vae_config(cfg: VAEConfig) -> Json:
    """Write the config that diffusers reads."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in VAE_NAMES.items()}
    levels = len(cfg.ch_mult)
    return VAE_FIXED | sizes | {
        "block_out_channels": [cfg.ch * mult for mult in cfg.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }  # fmt: skip


# -- the text encoders ---------------------------------------------------------------------------------------


def read_t5_config(config: Json) -> T5Config:
    """Read the config of a transformers `T5EncoderModel`; raises `CheckpointError` on one we can't run."""
    require(config, T5_FIXED)
    return T5Config(**take(config, T5Config, same_names(T5Config)))


def write_t5_config(cfg: T5Config) -> Json:
    """Write the config that transformers reads."""
    rest = {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False, "use_cache": False}
    return T5_FIXED | asdict(cfg) | rest


def read_clip_config(config: Json) -> CLIPConfig:
    """Read the config of a transformers `CLIPTextModel`; raises `CheckpointError` on one we can't run.

    Configs from before transformers 4.31 say eos_token_id 2, which is wrong and means "the largest id in
    the row": the end-of-text token is the last of CLIP's vocabulary.
    """
    require(config, CLIP_FIXED)
    found = take(config, CLIPConfig, same_names(CLIPConfig))
    if found.get("eos_token_id") == 2:
        found["eos_token_id"] = found.get("vocab_size", CLIPConfig.vocab_size) - 1
    return CLIPConfig(**found)


def write_clip_config(cfg: CLIPConfig) -> Json:
    """Write the config that transformers reads."""
    rest = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "bos_token_id": None}
    return CLIP_FIXED | asdict(cfg) | rest | {"projection_dim": cfg.hidden_size}
