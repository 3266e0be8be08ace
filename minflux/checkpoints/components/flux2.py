"""FLUX.2 in files: its transformer and its VAE under BFL's names, which our trees use, and diffusers'.

Our names are FLUX.1's, since the parts are FLUX.1's; three modulations lie outside of the blocks. diffusers keeps q, k
and v of the double blocks apart, and joins those of the single blocks with their MLP as BFL does. The final layer's
shift and scale come in the other order there. Sources: BFL `flux2/model.py`, `flux2/autoencoder.py`; diffusers
`transformer_flux2.py`, `autoencoder_kl_flux2.py`, `scripts/convert_flux2_to_diffusers.py`.
"""

import re
from dataclasses import replace
from typing import Any

from minflux.checkpoints.components import vae as vae_files
from minflux.checkpoints.components.base import Component, Flat, Json, Naming, is_like, require, take
from minflux.checkpoints.components.flux import (
    COMFY,
    FINAL_MODULATION,
    JOINT_ATTENTION,
    check_heads,
    embedder_shapes,
    qk_norm_shapes,
)
from minflux.checkpoints.components.renaming import Rules, apart, backwards, exchange, joined, rename, renamed
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, under
from minflux.checkpoints.components.vae import (
    VAE,
    channels_last,
    channels_second,
    decoder_shapes,
    encoder_shapes,
    vae_sizes,
)
from minflux.errors import CheckpointError, quoted
from minflux.model.flux import TIME_DIM
from minflux.model.flux2 import FLUX2_DEV, FLUX2_PRESETS, KLEIN_4B, SHARED, Flux2Config
from minflux.model.vae import FLUX2_VAE as FLUX2_VAE_CONFIG
from minflux.model.vae import Flux2VAEConfig, VAEConfig

# -- names -----------------------------------------------------------------------------------------------------

RULES: Rules = (  # (diffusers, BFL). # is a number, which is kept. qkv@1 is part 1 of the joint matrix qkv.
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    *JOINT_ATTENTION,
    ("transformer_blocks.#.ff.linear_in", "double_blocks.#.img_mlp.0"),
    ("transformer_blocks.#.ff.linear_out", "double_blocks.#.img_mlp.2"),
    ("transformer_blocks.#.ff_context.linear_in", "double_blocks.#.txt_mlp.0"),
    ("transformer_blocks.#.ff_context.linear_out", "double_blocks.#.txt_mlp.2"),
    ("single_transformer_blocks.#.attn.to_qkv_mlp_proj", "single_blocks.#.linear1"),
    ("single_transformer_blocks.#.attn.to_out", "single_blocks.#.linear2"),
    ("single_transformer_blocks.#.attn.norm_q.weight", "single_blocks.#.norm.query_norm.scale"),
    ("single_transformer_blocks.#.attn.norm_k.weight", "single_blocks.#.norm.key_norm.scale"),
    ("norm_out.linear", FINAL_MODULATION),
    ("proj_out", "final_layer.linear"),
)
JOINTS = {"qkv": 3}


def from_diffusers(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `Flux2Transformer2DModel` into BFL's."""
    return exchange(joined(renamed(flat, RULES)), (FINAL_MODULATION,))


def to_diffusers(flat: Flat) -> Flat:
    """Undo `from_diffusers`."""
    return renamed(apart(exchange(flat, (FINAL_MODULATION,)), JOINTS), backwards(RULES))


def our_part(name: str, config: Flux2Config) -> str:
    """Return our name of a weight that diffusers names; of a joint matrix, the part.

    >>> our_part("transformer_blocks.3.attn.to_k.weight", KLEIN_4B)
    'double_blocks.3.img_attn.qkv@1.weight'
    """
    return rename(name, RULES)


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {  # diffusers' name -> ours
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "joint_attention_dim": "context_in_dim",
    "mlp_ratio": "mlp_ratio",
    "num_attention_heads": "num_heads",
    "num_layers": "depth",
    "num_single_layers": "depth_single_blocks",
    "axes_dims_rope": "axes_dim",
    "rope_theta": "theta",
    "guidance_embeds": "guidance_embed",
}
FIXED = {  # what our code takes for granted
    "_class_name": "Flux2Transformer2DModel",
    "patch_size": 1,
    "timestep_guidance_channels": TIME_DIM,
    "eps": 1e-6,
}
WIDEST = 64  # of an MLP, in widths of the model; FLUX.2's are 3


def read_config(config: Json) -> Flux2Config:
    """Read the config of diffusers' `Flux2Transformer2DModel`; raises `CheckpointError` if we can't run it."""
    require(config, FIXED)
    found = take(config, FLUX2_DEV, CONFIG_NAMES, may_be_zero=("depth", "depth_single_blocks"))
    head_dim = config.get("attention_head_dim", 128)
    if not is_like(head_dim, 128, least=1):
        raise CheckpointError(f"attention_head_dim: expected a whole number, found {quoted(head_dim)}")
    same_channels = {"out_channels": found.get("in_channels", FLUX2_DEV.in_channels)}
    sizes = vars(FLUX2_DEV) | same_channels | found  # diffusers' own defaults are dev's
    cfg = Flux2Config(**sizes | {"hidden_size": head_dim * sizes["num_heads"]})
    if sum(cfg.axes_dim) != head_dim or len(cfg.axes_dim) != 4 or any(dim % 2 for dim in cfg.axes_dim):
        raise CheckpointError(f"axes_dims_rope: expected four even numbers of sum {head_dim}, found {cfg.axes_dim}")
    if not 0 < cfg.mlp_ratio <= WIDEST:
        raise CheckpointError(f"mlp_ratio: expected a number above 0, {WIDEST} at most, found {cfg.mlp_ratio}")
    return cfg


def write_config(cfg: Flux2Config) -> Json:
    """Return the config that diffusers reads."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in CONFIG_NAMES.items()}
    return FIXED | sizes | {"attention_head_dim": cfg.head_dim}


# -- shapes ----------------------------------------------------------------------------------------------------


def flux2_shapes(cfg: Flux2Config) -> Shapes:
    """Return the shape of every weight of the transformer. Source: BFL `flux2/model.py`."""
    d = cfg.hidden_size
    shapes = (
        under("img_in", linear_shapes(d, cfg.in_channels, bias=False))
        | under("txt_in", linear_shapes(d, cfg.context_in_dim, bias=False))
        | under("time_in", embedder_shapes(d, TIME_DIM, bias=False))
    )
    if cfg.guidance_embed:
        shapes |= under("guidance_in", embedder_shapes(d, TIME_DIM, bias=False))
    for name, count in zip(SHARED, (6, 6, 3), strict=True):
        shapes |= under(f"{name}.lin", linear_shapes(count * d, d, bias=False))
    for i in range(cfg.depth):
        shapes |= under(f"double_blocks.{i}", stream_shapes(cfg, "img"), stream_shapes(cfg, "txt"))
    for i in range(cfg.depth_single_blocks):
        shapes |= under(f"single_blocks.{i}", single_block_shapes(cfg))
    shapes |= under(FINAL_MODULATION, linear_shapes(2 * d, d, bias=False))
    return shapes | under("final_layer.linear", linear_shapes(cfg.out_channels, d, bias=False))


def mlp_width(cfg: Flux2Config) -> int:
    """Return how many numbers an MLP has inside, after the gates."""
    return int(cfg.hidden_size * cfg.mlp_ratio)


def stream_shapes(cfg: Flux2Config, stream: str) -> Shapes:
    """Return the shapes of one stream ("img" or "txt") of a double block."""
    d, hidden = cfg.hidden_size, mlp_width(cfg)
    return (
        under(f"{stream}_attn.qkv", linear_shapes(3 * d, d, bias=False))
        | under(f"{stream}_attn", qk_norm_shapes(cfg.head_dim))
        | under(f"{stream}_attn.proj", linear_shapes(d, d, bias=False))
        | under(f"{stream}_mlp.0", linear_shapes(2 * hidden, d, bias=False))
        | under(f"{stream}_mlp.2", linear_shapes(d, hidden, bias=False))
    )


def single_block_shapes(cfg: Flux2Config) -> Shapes:
    """Return the shapes of a single block: linear1 makes q, k, v and the MLP's gates and values, linear2 joins."""
    d, hidden = cfg.hidden_size, mlp_width(cfg)
    return (
        under("linear1", linear_shapes(3 * d + 2 * hidden, d, bias=False))
        | qk_norm_shapes(cfg.head_dim)
        | under("linear2", linear_shapes(d, d + hidden, bias=False))
    )


# -- sizes -----------------------------------------------------------------------------------------------------


def flux2_sizes(size: Sizes, beside: Flux2Config | None) -> Flux2Config:
    """Read the transformer's config off its shapes; heads are as wide as a query norm's scale.

    No shape shows θ, nor how a head's dimensions are shared among the axes: these are `beside`'s, or FLUX.2's own.
    """
    hidden_from = beside or KLEIN_4B
    width, has_double = size("img_in.weight", 0), size.count("double_blocks") > 0
    block = "double_blocks.0.img_attn" if has_double else "single_blocks.0"
    head_dim = size(f"{block}.norm.query_norm.scale", 0)
    check_heads(size.title, width, head_dim, hidden_from.axes_dim)
    joint = "double_blocks.0.img_mlp.2.weight" if has_double else "single_blocks.0.linear2.weight"
    hidden = size(joint, 1) - (0 if has_double else width)
    return Flux2Config(
        in_channels=size("img_in.weight", 1),
        out_channels=size("final_layer.linear.weight", 0),
        context_in_dim=size("txt_in.weight", 1),
        hidden_size=width,
        mlp_ratio=hidden / width,
        num_heads=width // head_dim,
        depth=size.count("double_blocks"),
        depth_single_blocks=size.count("single_blocks"),
        axes_dim=hidden_from.axes_dim,
        theta=hidden_from.theta,
        guidance_embed=size.has("guidance_in.in_layer.weight"),
    )


def describe(cfg: Flux2Config) -> str:
    """Return the transformer's variant and sizes in a line."""
    variant = next((name for name, preset in FLUX2_PRESETS.items() if preset == cfg), "of its own size")
    guidance = "with" if cfg.guidance_embed else "without"
    return (
        f"{variant}, {guidance} guidance built in; width {cfg.hidden_size}, {cfg.num_heads} heads, {cfg.depth} double "
        f"and {cfg.depth_single_blocks} single blocks, {cfg.in_channels} channels in"
    )


# -- the record ------------------------------------------------------------------------------------------------

FLUX2_TRANSFORMER = Component(
    name="transformer",
    title="FLUX.2 transformer",
    stem="diffusion_pytorch_model",
    library=("diffusers", "Flux2Transformer2DModel"),
    config=Flux2Config,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=flux2_shapes,
    sizes=flux2_sizes,
    namings=(
        Naming(
            "diffusers", "diffusers' names", ("single_stream_modulation.linear.weight",), ("transformer.", ""),
            from_diffusers, to_diffusers, our_part, exchanged=(FINAL_MODULATION,),
        ),
        Naming(
            "bfl", "BFL's names", ("single_stream_modulation.lin.weight",), (COMFY, "diffusion_model.", ""),
        ),
    ),
    own="bfl",
    stage="steps",
    once=re.compile(r"^((time|guidance)_in|(double|single)_stream_modulation|final_layer\.adaLN_modulation)"),
    in_blocks=re.compile(r"(double|single)_blocks\.\d+\."),
    joints=JOINTS,
)  # fmt: skip


# -- the VAE ---------------------------------------------------------------------------------------------------
# It is built as FLUX.1's is, with a 1×1 convolution on both sides of the latents, and beside it the statistics by which
# they are normalised.

VAE_RULES: Rules = (  # (BFL, ours)
    ("encoder.quant_conv", "quant_conv"),
    ("decoder.post_quant_conv", "post_quant_conv"),
)
VAE_FIXED = {"_class_name": "AutoencoderKLFlux2", "patch_size": [2, 2], "use_quant_conv": True}
DECODER_WIDTHS = "decoder_block_out_channels"  # null where they are the encoder's
FLUX1_VAE = {"_class_name": "AutoencoderKL", "scaling_factor": 1.0, "shift_factor": 0.0}  # what it shares with that
STEPS = "bn.num_batches_tracked"  # how many steps the statistics are of, which nothing depends on


def vae_from_bfl(flat: Flat) -> Flat:
    """Turn BFL's names and layout into ours."""
    return channels_last(renamed(flat, VAE_RULES))


def vae_to_bfl(flat: Flat) -> Flat:
    """Undo `vae_from_bfl`."""
    return renamed(channels_second(flat), backwards(VAE_RULES))


def our_vae_part(name: str, config: Flux2VAEConfig) -> str:
    """Return our name of a weight that BFL names."""
    return rename(name, VAE_RULES)


def vae_alias(name: str) -> str | None:
    """Return a weight's name, None for the count of steps."""
    return None if name == STEPS else name


def read_vae_config(config: Json) -> Flux2VAEConfig:
    """Read the config of diffusers' `AutoencoderKLFlux2`; raises `CheckpointError` if we can't run it."""
    require(config, VAE_FIXED)
    same = vae_files.read_config({"latent_channels": FLUX2_VAE_CONFIG.z_channels} | config | FLUX1_VAE)
    eps = take(config, FLUX2_VAE_CONFIG, {"batch_norm_eps": "batch_norm_eps"}).get("batch_norm_eps", 1e-4)
    if not eps > 0:
        raise CheckpointError(f"batch_norm_eps: expected a number above 0, found {eps}")
    widths = read_decoder_widths(config.get(DECODER_WIDTHS), same)
    return Flux2VAEConfig(**vars(same) | {"batch_norm_eps": eps, "decoder_widths": widths})


def read_decoder_widths(found: Any, cfg: VAEConfig) -> tuple[int, ...]:
    """Return the decoder's widths, () for none; raises `CheckpointError` for those that are no VAE's of such groups."""
    if found is None:
        return ()
    widths = vae_files.read_widths({"block_out_channels": found})
    if len(widths) != len(cfg.ch_mult) or widths[0] % cfg.norm_groups:
        raise CheckpointError(
            f"{DECODER_WIDTHS}: expected {len(cfg.ch_mult)} multiples of {cfg.norm_groups}, found {quoted(found)}"
        )
    return tuple(widths)


def write_vae_config(cfg: Flux2VAEConfig) -> Json:
    """Return the config that diffusers reads."""
    same = {name: value for name, value in vae_files.write_config(cfg).items() if name not in FLUX1_VAE}
    return same | VAE_FIXED | {
        "batch_norm_eps": cfg.batch_norm_eps,
        DECODER_WIDTHS: list(cfg.decoder_widths) or None,
    }  # fmt: skip


def flux2_vae_shapes(cfg: Flux2VAEConfig) -> Shapes:
    """Return the shape of every weight of the VAE, and of the statistics of a patch's numbers."""
    numbers = (4 * cfg.z_channels,)
    shapes = under("encoder", encoder_shapes(cfg)) | under("decoder", decoder_shapes(decoder_config(cfg)))
    shapes |= under("quant_conv", linear_shapes(2 * cfg.z_channels, 2 * cfg.z_channels))
    shapes |= under("post_quant_conv", linear_shapes(cfg.z_channels, cfg.z_channels))
    return shapes | under("bn", {"running_mean": numbers, "running_var": numbers})


def decoder_config(cfg: Flux2VAEConfig) -> VAEConfig:
    """Return the config of a VAE that has the decoder's widths on both sides."""
    if not cfg.decoder_widths:
        return cfg
    first = cfg.decoder_widths[0]
    return replace(cfg, ch=first, ch_mult=tuple(width // first for width in cfg.decoder_widths))


def flux2_vae_sizes(size: Sizes, beside: Flux2VAEConfig | None) -> Flux2VAEConfig:
    """Read the VAE's config off its shapes; no shape shows groups and eps: these are `beside`'s, or FLUX.2's own."""
    hidden_from = beside or FLUX2_VAE_CONFIG
    same = vae_sizes(size, hidden_from)
    levels = range(size.count("decoder.up"))  # which diffusers counts from the other end
    widths = tuple(sorted(size(f"decoder.up.{i}.block.0.conv1.weight", 0) for i in levels))
    own = () if widths == tuple(sorted(same.ch * mult for mult in same.ch_mult)) else widths
    return Flux2VAEConfig(
        **vars(same) | {"batch_norm_eps": hidden_from.batch_norm_eps, "decoder_widths": own}
    )  # fmt: skip


DIFFUSERS_VAE = VAE.naming("diffusers")
FLUX2_VAE = replace(
    VAE,
    library=("diffusers", "AutoencoderKLFlux2"),
    config=Flux2VAEConfig,
    read_config=read_vae_config,
    write_config=write_vae_config,
    shapes=flux2_vae_shapes,
    sizes=flux2_vae_sizes,
    namings=(
        DIFFUSERS_VAE,
        replace(VAE.naming("bfl"), to_ours=vae_from_bfl, from_ours=vae_to_bfl, our_part=our_vae_part),
    ),
    alias=vae_alias,
)
