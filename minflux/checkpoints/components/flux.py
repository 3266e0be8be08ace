"""FLUX.1's transformer in files: BFL's names, which our trees use, and diffusers'.

Most weights are only called differently, and pairs of patterns say how; read from left to right they turn diffusers'
names into BFL's, from right to left the other way. Two things are more than names: BFL keeps the projections to q, k, v
(and, in single blocks, the MLP's) in one matrix, diffusers apart; and the final layer's shift and scale come in the
other order. Sources: BFL `flux/model.py`; diffusers `transformer_flux.py`.
"""

import re
from typing import TypeVar

from minflux.checkpoints.components.base import Component, Flat, Json, Naming, Sharing, is_like, require, take
from minflux.checkpoints.components.renaming import Rules, apart, backwards, exchange, joined, rename, renamed
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, under
from minflux.errors import CheckpointError, quoted
from minflux.model.flux import SCHNELL, TIME_DIM, FluxConfig

Config = TypeVar("Config", bound=FluxConfig)

# -- names -----------------------------------------------------------------------------------------------------

# (diffusers, BFL). # is a number, which is kept. qkv@1 is part 1 of the joint matrix qkv.
JOINT_ATTENTION: Rules = (  # of a double block, in FLUX.1, FLUX.2 and SD3
    ("transformer_blocks.#.attn.to_q", "double_blocks.#.img_attn.qkv@0"),
    ("transformer_blocks.#.attn.to_k", "double_blocks.#.img_attn.qkv@1"),
    ("transformer_blocks.#.attn.to_v", "double_blocks.#.img_attn.qkv@2"),
    ("transformer_blocks.#.attn.add_q_proj", "double_blocks.#.txt_attn.qkv@0"),
    ("transformer_blocks.#.attn.add_k_proj", "double_blocks.#.txt_attn.qkv@1"),
    ("transformer_blocks.#.attn.add_v_proj", "double_blocks.#.txt_attn.qkv@2"),
    ("transformer_blocks.#.attn.norm_q.weight", "double_blocks.#.img_attn.norm.query_norm.scale"),
    ("transformer_blocks.#.attn.norm_k.weight", "double_blocks.#.img_attn.norm.key_norm.scale"),
    ("transformer_blocks.#.attn.norm_added_q.weight", "double_blocks.#.txt_attn.norm.query_norm.scale"),
    ("transformer_blocks.#.attn.norm_added_k.weight", "double_blocks.#.txt_attn.norm.key_norm.scale"),
    ("transformer_blocks.#.attn.to_out.0", "double_blocks.#.img_attn.proj"),
    ("transformer_blocks.#.attn.to_add_out", "double_blocks.#.txt_attn.proj"),
)
RULES: Rules = (
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder", "time_in"),
    ("time_text_embed.guidance_embedder", "guidance_in"),
    ("time_text_embed.text_embedder", "vector_in"),
    ("linear_1", "in_layer"),
    ("linear_2", "out_layer"),
    ("transformer_blocks.#.norm1.linear", "double_blocks.#.img_mod.lin"),
    ("transformer_blocks.#.norm1_context.linear", "double_blocks.#.txt_mod.lin"),
    *JOINT_ATTENTION,
    ("transformer_blocks.#.ff.net.0.proj", "double_blocks.#.img_mlp.0"),
    ("transformer_blocks.#.ff.net.2", "double_blocks.#.img_mlp.2"),
    ("transformer_blocks.#.ff_context.net.0.proj", "double_blocks.#.txt_mlp.0"),
    ("transformer_blocks.#.ff_context.net.2", "double_blocks.#.txt_mlp.2"),
    ("single_transformer_blocks.#.norm.linear", "single_blocks.#.modulation.lin"),
    ("single_transformer_blocks.#.attn.to_q", "single_blocks.#.linear1@0"),
    ("single_transformer_blocks.#.attn.to_k", "single_blocks.#.linear1@1"),
    ("single_transformer_blocks.#.attn.to_v", "single_blocks.#.linear1@2"),
    ("single_transformer_blocks.#.proj_mlp", "single_blocks.#.linear1@3"),
    ("single_transformer_blocks.#.attn.norm_q.weight", "single_blocks.#.norm.query_norm.scale"),
    ("single_transformer_blocks.#.attn.norm_k.weight", "single_blocks.#.norm.key_norm.scale"),
    ("single_transformer_blocks.#.proj_out", "single_blocks.#.linear2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
)
XLABS_RULES: Rules = (  # (XLabs' name of what a LoRA changes, BFL's); 1 is the image, 2 the text
    ("double_blocks.#.processor.qkv_lora1", "double_blocks.#.img_attn.qkv"),
    ("double_blocks.#.processor.qkv_lora2", "double_blocks.#.txt_attn.qkv"),
    ("double_blocks.#.processor.proj_lora1", "double_blocks.#.img_attn.proj"),
    ("double_blocks.#.processor.proj_lora2", "double_blocks.#.txt_attn.proj"),
    ("single_blocks.#.processor.qkv_lora", "single_blocks.#.linear1@0-2"),
    ("single_blocks.#.processor.proj_lora", "single_blocks.#.linear2"),
)
COMFY_RULES: Rules = (("single_blocks.#.linear1_qkv", "single_blocks.#.linear1@0-2"),)
JOINTS = {"qkv": 3, "linear1": 4}  # BFL's joint matrices, and how many of diffusers' are in each
FINAL_MODULATION = "final_layer.adaLN_modulation.1"


MFLUX_RULES: Rules = (  # (mflux's name, diffusers'), where they differ
    ("transformer_blocks.#.ff.linear1", "transformer_blocks.#.ff.net.0.proj"),
    ("transformer_blocks.#.ff.linear2", "transformer_blocks.#.ff.net.2"),
    ("transformer_blocks.#.ff_context.linear1", "transformer_blocks.#.ff_context.net.0.proj"),
    ("transformer_blocks.#.ff_context.linear2", "transformer_blocks.#.ff_context.net.2"),
)


def from_diffusers(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `FluxTransformer2DModel` into BFL's."""
    return exchange_final(joined(renamed(flat, RULES)))


def to_diffusers(flat: Flat) -> Flat:
    """Undo `from_diffusers`."""
    return renamed(apart(exchange_final(flat), JOINTS), backwards(RULES))


def from_mflux(flat: Flat) -> Flat:
    """Turn the weights of a transformer that mflux saved into BFL's; packed matrices stay packed."""
    return from_diffusers(renamed(flat, MFLUX_RULES))


def to_mflux(flat: Flat) -> Flat:
    """Undo `from_mflux`."""
    return renamed(to_diffusers(flat), backwards(MFLUX_RULES))


def our_part_of_mflux(name: str, config: FluxConfig) -> str:
    """Return our name of a weight that mflux names; of a joint matrix, the part."""
    return our_part(rename(name, MFLUX_RULES), config)


def exchange_final(flat: Flat) -> Flat:
    """Exchange the halves of the final modulation: shift, scale for BFL, scale, shift for diffusers."""
    return exchange(flat, (FINAL_MODULATION,))


def our_part(name: str, config: FluxConfig) -> str:
    """Return our name of a weight that diffusers names; of a joint matrix, the part.

    >>> our_part("transformer_blocks.3.attn.to_k.bias", SCHNELL)
    'double_blocks.3.img_attn.qkv@1.bias'
    """
    return rename(name, RULES)


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {  # diffusers' name -> BFL's
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
FIXED = {"_class_name": "FluxTransformer2DModel", "patch_size": 1}  # what our code takes for granted


def read_config(config: Json) -> FluxConfig:
    """Read the config of diffusers' `FluxTransformer2DModel`; raises `CheckpointError` if we can't run it."""
    require(config, FIXED)
    in_channels = {"out_channels": config.get("in_channels", FluxConfig.in_channels)}
    return as_config(FluxConfig, in_channels | config, CONFIG_NAMES)


def as_config(kind: type[Config], config: Json, names: dict[str, str]) -> Config:
    """Make a transformer's or a ControlNet's config of diffusers' `config`; `names` maps its names to ours.

    Raises `CheckpointError` for a value of a wrong type, and for heads that RoPE's axes don't fill.
    """
    found = take(config, kind(), names, may_be_zero=("depth", "depth_single_blocks"))
    head_dim = config.get("attention_head_dim", 128)
    if not is_like(head_dim, 128, least=1):
        raise CheckpointError(f"attention_head_dim: expected a whole number, found {quoted(head_dim)}")
    cfg = kind(**found, hidden_size=head_dim * found.get("num_heads", FluxConfig.num_heads))
    if sum(cfg.axes_dim) != head_dim or len(cfg.axes_dim) != 3 or any(dim % 2 for dim in cfg.axes_dim):
        raise CheckpointError(f"axes_dims_rope: expected three even numbers of sum {head_dim}, found {cfg.axes_dim}")
    return cfg


def write_config(cfg: FluxConfig) -> Json:
    """Return the config that diffusers reads; mlp_ratio 4 and theta 10000 are fixed there, and not written."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in CONFIG_NAMES.items()}
    return FIXED | sizes | {"attention_head_dim": cfg.hidden_size // cfg.num_heads}


# -- shapes ----------------------------------------------------------------------------------------------------


def flux_shapes(cfg: FluxConfig) -> Shapes:
    """Return the shape of every weight of the transformer: 780 for FLUX.1-dev. Source: BFL `flux/model.py`."""
    d = cfg.hidden_size
    final = under(FINAL_MODULATION, linear_shapes(2 * d, d))
    return body_shapes(cfg) | final | under("final_layer.linear", linear_shapes(cfg.out_channels, d))


def body_shapes(cfg: FluxConfig) -> Shapes:
    """Return the shape of every weight but the final layer's: what embeds the inputs, and the blocks."""
    d = cfg.hidden_size
    shapes = (
        under("img_in", linear_shapes(d, cfg.in_channels))
        | under("txt_in", linear_shapes(d, cfg.context_in_dim))
        | under("time_in", embedder_shapes(d, TIME_DIM))
        | under("vector_in", embedder_shapes(d, cfg.vec_in_dim))
    )
    if cfg.guidance_embed:
        shapes |= under("guidance_in", embedder_shapes(d, TIME_DIM))
    for i in range(cfg.depth):
        shapes |= under(f"double_blocks.{i}", stream_shapes(cfg, "img"), stream_shapes(cfg, "txt"))
    for i in range(cfg.depth_single_blocks):
        shapes |= under(f"single_blocks.{i}", single_block_shapes(cfg))
    return shapes


def embedder_shapes(outputs: int, inputs: int, bias: bool = True) -> Shapes:
    """Return the shapes of the two layers that bring a vector into the model's width."""
    first, last = linear_shapes(outputs, inputs, bias), linear_shapes(outputs, outputs, bias)
    return under("in_layer", first) | under("out_layer", last)


def stream_shapes(cfg: FluxConfig, stream: str) -> Shapes:
    """Return the shapes of one stream ("img" or "txt") of a double block."""
    d, hidden = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    return (
        under(f"{stream}_mod.lin", linear_shapes(6 * d, d))
        | under(f"{stream}_attn.qkv", linear_shapes(3 * d, d, cfg.qkv_bias))
        | under(f"{stream}_attn", qk_norm_shapes(cfg.hidden_size // cfg.num_heads))
        | under(f"{stream}_attn.proj", linear_shapes(d, d))
        | under(f"{stream}_mlp.0", linear_shapes(hidden, d))
        | under(f"{stream}_mlp.2", linear_shapes(d, hidden))
    )


def single_block_shapes(cfg: FluxConfig) -> Shapes:
    """Return the shapes of a single-stream block: linear1 makes q, k, v and the MLP's hidden layer, linear2 joins."""
    d, hidden = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    return (
        under("modulation.lin", linear_shapes(3 * d, d))
        | under("linear1", linear_shapes(3 * d + hidden, d))
        | qk_norm_shapes(cfg.hidden_size // cfg.num_heads)
        | under("linear2", linear_shapes(d, d + hidden))
    )


def qk_norm_shapes(head_dim: int) -> Shapes:
    """Return the shapes of a block's query and key norms: one number for each of a head's dimensions."""
    return {"norm.query_norm.scale": (head_dim,), "norm.key_norm.scale": (head_dim,)}


# -- sizes -----------------------------------------------------------------------------------------------------


def flux_sizes(size: Sizes, beside: FluxConfig | None) -> FluxConfig:
    """Read the transformer's config off its shapes (see `body_sizes`)."""
    return FluxConfig(**body_sizes(size, beside), out_channels=size("final_layer.linear.weight", 0))


def body_sizes(size: Sizes, beside: FluxConfig | None) -> Json:
    """Read all of a config but the channels that come out off the shapes; heads are as wide as a query norm's scale.

    No shape shows θ, nor how a head's dimensions are shared among the axes: these are `beside`'s, or FLUX.1's own.
    """
    hidden_from = beside or SCHNELL
    width, has_double = size("img_in.weight", 0), size.count("double_blocks") > 0
    block = "double_blocks.0.img_attn" if has_double else "single_blocks.0"
    head_dim = size(f"{block}.norm.query_norm.scale", 0)
    check_heads(size.title, width, head_dim, hidden_from.axes_dim)
    mlp_hidden = size("double_blocks.0.img_mlp.0.weight", 0) if has_double else 4 * width
    return {
        "in_channels": size("img_in.weight", 1),
        "vec_in_dim": size("vector_in.in_layer.weight", 1),
        "context_in_dim": size("txt_in.weight", 1),
        "hidden_size": width,
        "mlp_ratio": mlp_hidden / width,
        "num_heads": width // head_dim,
        "depth": size.count("double_blocks"),
        "depth_single_blocks": size.count("single_blocks"),
        "axes_dim": hidden_from.axes_dim,
        "theta": hidden_from.theta,
        "guidance_embed": size.has("guidance_in.in_layer.weight"),
    }


def check_heads(title: str, width: int, head_dim: int, axes_dim: tuple[int, ...]) -> None:
    """Raise `CheckpointError` unless heads of `head_dim` fill the width, and RoPE's axes fill a head."""
    if head_dim != sum(axes_dim) or width % head_dim:
        raise CheckpointError(
            f"{title}: {width} channels in heads of {head_dim}: can't tell RoPE's axes_dim for heads that are not "
            f"{sum(axes_dim)} wide from the weights; put the {title}'s config.json beside the file"
        )


# -- several processes -----------------------------------------------------------------------------------------


def sharings(cfg: FluxConfig) -> dict[str, Sharing]:
    """Return how processes share a block's matrices: its heads, and its MLP's hidden layer.

    A block's two sums a stream (one in a single block) are all that has to be sent in a step. Modulations need not be
    shared for that, but they are a quarter of all weights, and their outputs are small.
    """
    d, hidden = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    shared = {"qkv": Sharing(0, (d, d, d)), "mlp.0": Sharing(0, (hidden,)), "linear1": Sharing(0, (d, d, d, hidden))}
    summed = {"proj": (d,), "mlp.2": (hidden,), "linear2": (d, hidden)}
    gathered = {"mod.lin": (6 * d,), "modulation.lin": (3 * d,)}
    shared |= {module: Sharing(1, parts, "summed") for module, parts in summed.items()}
    return shared | {module: Sharing(0, parts, "gathered") for module, parts in gathered.items()}


def shared_counts(cfg: FluxConfig) -> dict[str, int]:
    """Return what the processes have equal shares of."""
    return {"heads": cfg.num_heads, "channels of the MLP": int(cfg.hidden_size * cfg.mlp_ratio)}


# -- the family ------------------------------------------------------------------------------------------------


def describe(cfg: FluxConfig) -> str:
    """Return the transformer's variant and sizes in a line."""
    return (
        f"{variant(cfg)}; width {cfg.hidden_size}, {cfg.num_heads} heads, {cfg.depth} double and "
        f"{cfg.depth_single_blocks} single blocks, {cfg.in_channels} channels in"
    )


MASK = 4 * 8 * 8  # numbers of a token: 2 × 2 latents, and 8 × 8 pixels of the mask for each
TAKING = {
    "mask": "Fill, which takes a masked image beside the latents",
    "control": "Canny or Depth, which takes a control image beside the latents",
}


def takes(cfg: FluxConfig) -> str | None:
    """Return what a transformer takes beside the latents: "mask", "control", or "" for nothing; None if unknown."""
    latents = cfg.out_channels
    known = {latents: "", 2 * latents: "control", 2 * latents + MASK: "mask"}
    return known.get(cfg.in_channels)


def variant(cfg: FluxConfig) -> str:
    """Return the name of the member of the FLUX.1 family that has these sizes, at any depth."""
    if taken := takes(cfg):
        return TAKING[taken]
    family = FluxConfig(depth=cfg.depth, depth_single_blocks=cfg.depth_single_blocks, guidance_embed=cfg.guidance_embed)
    if cfg == family:
        return "dev (Krea-dev's and Kontext's weights have the same shapes)" if cfg.guidance_embed else "schnell"
    return f"of its own size, {'with' if cfg.guidance_embed else 'without'} guidance built in"


# -- the record ------------------------------------------------------------------------------------------------

COMFY = "model.diffusion_model."  # ComfyUI's prefix

TRANSFORMER = Component(
    name="transformer",
    title="transformer",
    stem="diffusion_pytorch_model",
    library=("diffusers", "FluxTransformer2DModel"),
    config=FluxConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=flux_shapes,
    sizes=flux_sizes,
    namings=(
        Naming(
            "diffusers", "diffusers' names", ("x_embedder.weight",), ("transformer.", ""),
            from_diffusers, to_diffusers, our_part, exchanged=(FINAL_MODULATION,),
        ),
        Naming("bfl", "BFL's names", ("img_in.weight",), (COMFY, "diffusion_model.", "")),
        Naming(
            "mflux", "mflux's names", ("transformer_blocks.0.ff.linear1.weight",), ("",), from_mflux, to_mflux,
            our_part_of_mflux, exchanged=(FINAL_MODULATION,), has_config=False,
        ),
    ),
    own="bfl",
    stage="steps",
    once=re.compile(r"(^(time|guidance|vector)_in|_mod\.lin|modulation\.lin|adaLN_modulation\.1)\."),
    in_blocks=re.compile(r"(double|single)_blocks\.\d+\."),
    joints=JOINTS,
    lora_prefixes=(
        "transformer.", COMFY, "diffusion_model.", "lora_unet_", "lora_transformer_", "lycoris_", "base_model.model.",
        "transformer.base_model.model.", "base_model.model.transformer.", "",
    ),
    lora_rules=XLABS_RULES + COMFY_RULES,
    gguf=("bfl", "flux"),
    sharings=sharings,
    shared_counts=shared_counts,
)  # fmt: skip
