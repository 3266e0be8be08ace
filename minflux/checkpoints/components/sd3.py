"""SD3 in files: its transformer under diffusers' names and Stability's, and its three text encoders.

Our names are FLUX.1's (see `components/flux.py`), since the parts are FLUX.1's: what Stability calls x_block and
context_block are the streams img and txt. Beside the names, diffusers keeps q, k and v apart, and has two modulations'
halves in the other order: the final layer's, and that of the last block's text, of which only shift and scale are left.
The patches' kernel, 2×2 in every file, is a matrix here. Sources: Stability's `mmdit.py` as diffusers'
`single_file_utils.py` reads it; diffusers' `transformer_sd3.py`.
"""

import math
import re
from dataclasses import replace

from minflux.arrays import Array
from minflux.checkpoints.components import clip as clip_files
from minflux.checkpoints.components.base import Component, Flat, Json, Naming, is_like, require, take
from minflux.checkpoints.components.clip import CLIP, PROJECTION, clip_sizes
from minflux.checkpoints.components.flux import COMFY, JOINT_ATTENTION, embedder_shapes
from minflux.checkpoints.components.renaming import Rules, apart, backwards, joined, rename, renamed
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, under
from minflux.checkpoints.components.t5 import T5
from minflux.checkpoints.components.vae import VAE, vae_sizes
from minflux.errors import CheckpointError, quoted
from minflux.model.clip import ACTIVATIONS, CLIP_G, CLIPConfig
from minflux.model.flux import TIME_DIM
from minflux.model.sd3 import SD3_PRESETS, SD3Config
from minflux.model.vae import FLUX_VAE, VAEConfig

SD3_VAE_CONFIG = replace(FLUX_VAE, scale_factor=1.5305, shift_factor=0.0609)

# -- names -----------------------------------------------------------------------------------------------------

DIFFUSERS_RULES: Rules = (  # (diffusers, ours). # is a number, which is kept. qkv@1 is part 1 of the joint matrix qkv.
    ("pos_embed.proj", "patch_in"),
    ("pos_embed.pos_embed", "pos_embed"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("transformer_blocks.#.norm1.linear", "double_blocks.#.img_mod.lin"),
    ("transformer_blocks.#.norm1_context.linear", "double_blocks.#.txt_mod.lin"),
    *JOINT_ATTENTION,
    ("transformer_blocks.#.attn2.to_q", "double_blocks.#.img_attn2.qkv@0"),
    ("transformer_blocks.#.attn2.to_k", "double_blocks.#.img_attn2.qkv@1"),
    ("transformer_blocks.#.attn2.to_v", "double_blocks.#.img_attn2.qkv@2"),
    ("transformer_blocks.#.attn2.norm_q.weight", "double_blocks.#.img_attn2.norm.query_norm.scale"),
    ("transformer_blocks.#.attn2.norm_k.weight", "double_blocks.#.img_attn2.norm.key_norm.scale"),
    ("transformer_blocks.#.attn2.to_out.0", "double_blocks.#.img_attn2.proj"),
    ("transformer_blocks.#.ff.net.0.proj", "double_blocks.#.img_mlp.0"),
    ("transformer_blocks.#.ff.net.2", "double_blocks.#.img_mlp.2"),
    ("transformer_blocks.#.ff_context.net.0.proj", "double_blocks.#.txt_mlp.0"),
    ("transformer_blocks.#.ff_context.net.2", "double_blocks.#.txt_mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("proj_out", "final_layer.linear"),
)
STABILITY_RULES: Rules = (  # (Stability, ours)
    ("x_embedder.proj", "patch_in"),
    ("context_embedder", "txt_in"),
    ("t_embedder.mlp.0", "time_in.in_layer"),
    ("t_embedder.mlp.2", "time_in.out_layer"),
    ("y_embedder.mlp.0", "vector_in.in_layer"),
    ("y_embedder.mlp.2", "vector_in.out_layer"),
    ("joint_blocks.#.x_block.adaLN_modulation.1", "double_blocks.#.img_mod.lin"),
    ("joint_blocks.#.context_block.adaLN_modulation.1", "double_blocks.#.txt_mod.lin"),
    ("joint_blocks.#.x_block.attn", "double_blocks.#.img_attn"),
    ("joint_blocks.#.x_block.attn2", "double_blocks.#.img_attn2"),
    ("joint_blocks.#.context_block.attn", "double_blocks.#.txt_attn"),
    ("ln_q.weight", "norm.query_norm.scale"),
    ("ln_k.weight", "norm.key_norm.scale"),
    ("joint_blocks.#.x_block.mlp.fc1", "double_blocks.#.img_mlp.0"),
    ("joint_blocks.#.x_block.mlp.fc2", "double_blocks.#.img_mlp.2"),
    ("joint_blocks.#.context_block.mlp.fc1", "double_blocks.#.txt_mlp.0"),
    ("joint_blocks.#.context_block.mlp.fc2", "double_blocks.#.txt_mlp.2"),
)
JOINTS = {"qkv": 3}
PATCHES = "patch_in.weight"


def from_diffusers(flat: Flat) -> Flat:
    """Turn the names of a diffusers `SD3Transformer2DModel` into ours, and join q, k, v."""
    return flattened(joined(renamed(flat, DIFFUSERS_RULES)))


def to_diffusers(flat: Flat) -> Flat:
    """Undo `from_diffusers`."""
    return renamed(apart(kernelled(flat), JOINTS), backwards(DIFFUSERS_RULES))


def from_stability(flat: Flat) -> Flat:
    """Turn Stability's names into ours."""
    return flattened(renamed(flat, STABILITY_RULES))


def to_stability(flat: Flat) -> Flat:
    """Undo `from_stability`."""
    return renamed(kernelled(flat), backwards(STABILITY_RULES))


def exchanged(cfg: SD3Config) -> tuple[str, ...]:
    """List the modulations of shift and scale alone, which come as scale and shift in diffusers' files."""
    return ("final_layer.adaLN_modulation.1", f"double_blocks.{cfg.depth - 1}.txt_mod.lin")


def flattened(flat: Flat) -> Flat:
    """Make a matrix (out, in·2·2) of the patches' kernel (out, in, 2, 2)."""
    return {name: as_matrix(array) if name == PATCHES else array for name, array in flat.items()}


def kernelled(flat: Flat) -> Flat:
    """Undo `flattened`."""
    return {name: as_kernel(array) if name == PATCHES else array for name, array in flat.items()}


def as_matrix(kernel: Array) -> Array:
    """Return a kernel (out, in, 2, 2) as a matrix (out, in·2·2)."""
    return kernel.reshape(kernel.shape[0], -1)


def as_kernel(matrix: Array) -> Array:
    """Return a matrix (out, in·2·2) as a kernel (out, in, 2, 2)."""
    return matrix.reshape(matrix.shape[0], -1, 2, 2)


def diffusers_part(name: str, config: SD3Config) -> str:
    """Return our name of a weight that diffusers names; of a joint matrix, the part.

    >>> diffusers_part("transformer_blocks.3.attn2.to_k.bias", SD3Config())
    'double_blocks.3.img_attn2.qkv@1.bias'
    """
    return rename(name, DIFFUSERS_RULES)


def stability_part(name: str, config: SD3Config) -> str:
    """Return our name of a weight that Stability names.

    >>> stability_part("joint_blocks.3.context_block.mlp.fc1.bias", SD3Config())
    'double_blocks.3.txt_mlp.0.bias'
    """
    return rename(name, STABILITY_RULES)


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {  # diffusers' name -> ours
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "pooled_projection_dim": "vec_in_dim",
    "joint_attention_dim": "context_in_dim",
    "num_attention_heads": "num_heads",
    "num_layers": "depth",
    "pos_embed_max_size": "pos_embed_max_size",
}
FIXED = {"_class_name": "SD3Transformer2DModel", "patch_size": 2}  # what our code takes for granted
QK_NORMS = {None: False, "rms_norm": True}


def read_config(config: Json) -> SD3Config:
    """Read the config of diffusers' `SD3Transformer2DModel`; raises `CheckpointError` if we can't run it."""
    require(config, FIXED)
    found = take(config, SD3Config(), CONFIG_NAMES)
    head_dim, norm = config.get("attention_head_dim", 64), config.get("qk_norm")
    if not is_like(head_dim, 64, least=1):
        raise CheckpointError(f"attention_head_dim: expected a whole number, found {quoted(head_dim)}")
    if norm not in ("rms_norm", None):
        raise CheckpointError(f"qk_norm: expected null or 'rms_norm', found {quoted(norm)}")
    width = head_dim * found.get("num_heads", SD3Config.num_heads)
    require(config, {"caption_projection_dim": width})
    return SD3Config(**found, hidden_size=width, qk_norm=QK_NORMS[norm], dual_attention_layers=read_dual(config))


def read_dual(config: Json) -> tuple[int, ...]:
    """Return the numbers of the blocks with a second attention; raises `CheckpointError` for anything else."""
    layers = config.get("dual_attention_layers") or []
    if not isinstance(layers, list) or not all(is_like(layer, 0, least=0) for layer in layers):
        raise CheckpointError(f"dual_attention_layers: expected whole numbers, found {quoted(layers)}")
    return tuple(sorted(set(layers)))


def write_config(cfg: SD3Config) -> Json:
    """Return the config that diffusers reads."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in CONFIG_NAMES.items()}
    return FIXED | sizes | {
        "attention_head_dim": cfg.head_dim,
        "caption_projection_dim": cfg.hidden_size,
        "dual_attention_layers": list(cfg.dual_attention_layers),
        "qk_norm": "rms_norm" if cfg.qk_norm else None,
    }  # fmt: skip


# -- shapes ----------------------------------------------------------------------------------------------------


def sd3_shapes(cfg: SD3Config) -> Shapes:
    """Return the shape of every weight of the transformer under our names."""
    d = cfg.hidden_size
    shapes: Shapes = {"pos_embed": (1, cfg.pos_embed_max_size**2, d)}
    shapes |= under("patch_in", linear_shapes(d, 4 * cfg.in_channels))
    shapes |= under("txt_in", linear_shapes(d, cfg.context_in_dim))
    shapes |= under("time_in", embedder_shapes(d, TIME_DIM))
    shapes |= under("vector_in", embedder_shapes(d, cfg.vec_in_dim))
    for i in range(cfg.depth):
        shapes |= under(f"double_blocks.{i}", image_shapes(cfg, i), text_shapes(cfg, is_last=i == cfg.depth - 1))
    shapes |= under("final_layer.adaLN_modulation.1", linear_shapes(2 * d, d))
    return shapes | under("final_layer.linear", linear_shapes(4 * cfg.out_channels, d))


def image_shapes(cfg: SD3Config, i: int) -> Shapes:
    """Return the shapes of block i's image stream, with a second attention in some."""
    d, is_dual = cfg.hidden_size, i in cfg.dual_attention_layers
    shapes = under("img_mod.lin", linear_shapes(9 * d if is_dual else 6 * d, d))
    for name in ("img_attn", "img_attn2")[: 1 + is_dual]:
        shapes |= under(name, attention_shapes(cfg), under("proj", linear_shapes(d, d)))
    return shapes | under("img_mlp", mlp_shapes(d))


def text_shapes(cfg: SD3Config, is_last: bool) -> Shapes:
    """Return the shapes of a block's text stream; in the last block it is there to be attended to, and ends."""
    d = cfg.hidden_size
    if is_last:
        return under("txt_mod.lin", linear_shapes(2 * d, d)) | under("txt_attn", attention_shapes(cfg))
    shapes = under("txt_mod.lin", linear_shapes(6 * d, d))
    shapes |= under("txt_attn", attention_shapes(cfg), under("proj", linear_shapes(d, d)))
    return shapes | under("txt_mlp", mlp_shapes(d))


def attention_shapes(cfg: SD3Config) -> Shapes:
    """Return the shapes of the projection to q, k and v, and of their norms where there are any."""
    shapes = under("qkv", linear_shapes(3 * cfg.hidden_size, cfg.hidden_size))
    for name in ("query_norm", "key_norm") if cfg.qk_norm else ():
        shapes[f"norm.{name}.scale"] = (cfg.head_dim,)
    return shapes


def mlp_shapes(width: int) -> Shapes:
    """Return the shapes of a stream's MLP, four times as wide inside."""
    return under("0", linear_shapes(4 * width, width)) | under("2", linear_shapes(width, 4 * width))


# -- sizes -----------------------------------------------------------------------------------------------------


def sd3_sizes(size: Sizes, beside: SD3Config | None) -> SD3Config:
    """Read the transformer's config off its shapes; without norms, heads are as wide as `beside`'s, or 64."""
    width, depth = size(PATCHES, 0), size.count("double_blocks")
    scale = "double_blocks.0.img_attn.norm.query_norm.scale"
    qk_norm = size.has(scale)
    head_dim = size(scale, 0) if qk_norm else beside.head_dim if beside else 64
    if not depth or not head_dim or width % head_dim:
        raise CheckpointError(f"transformer: can't tell its heads from {width} channels, {depth} blocks")
    return SD3Config(
        in_channels=size(PATCHES, 1),
        out_channels=size("final_layer.linear.weight", 0) // 4,
        vec_in_dim=size("vector_in.in_layer.weight", 1),
        context_in_dim=size("txt_in.weight", 1),
        hidden_size=width,
        num_heads=width // head_dim,
        depth=depth,
        pos_embed_max_size=math.isqrt(size("pos_embed", 1)),
        qk_norm=qk_norm,
        dual_attention_layers=tuple(i for i in range(depth) if has_second(size, i)),
    )


def has_second(size: Sizes, i: int) -> bool:
    """Return whether block i has a second attention."""
    return size.has(f"double_blocks.{i}.img_attn2.proj.weight")


def describe(cfg: SD3Config) -> str:
    """Return the transformer's variant and sizes in a line."""
    names = [name for name, preset in SD3_PRESETS.items() if preset == cfg] or ["of its own size"]
    second, norm = len(cfg.dual_attention_layers), "QK-norm" if cfg.qk_norm else "no QK-norm"
    blocks = f"{cfg.depth} double blocks" + (f", {second} of them with a second attention" if second else "")
    width = f"width {cfg.hidden_size}, {cfg.num_heads} heads"
    return f"{names[0]}; {width}, {blocks}, {norm}, {cfg.in_channels} channels in"


# -- the record ------------------------------------------------------------------------------------------------

SD3_TRANSFORMER = Component(
    name="transformer",
    title="SD3 transformer",
    stem="diffusion_pytorch_model",
    library=("diffusers", "SD3Transformer2DModel"),
    config=SD3Config,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=sd3_shapes,
    sizes=sd3_sizes,
    namings=(
        Naming(
            "diffusers", "diffusers' names", ("pos_embed.proj.weight",), ("transformer.", ""),
            from_diffusers, to_diffusers, diffusers_part, exchanged_in=exchanged,
        ),
        Naming(
            "stability", "Stability's names", ("joint_blocks.0.x_block.attn.qkv.weight",),
            (COMFY, "diffusion_model.", ""), from_stability, to_stability, stability_part,
        ),
        Naming("minflux", "minflux's names", (PATCHES,), ("",), flattened, kernelled),
    ),
    own="minflux",
    stage="steps",
    once=re.compile(r"(^(time|vector)_in|_mod\.lin|adaLN_modulation\.1)\."),
    in_blocks=re.compile(r"double_blocks\.\d+\."),
    joints=JOINTS,
)  # fmt: skip


# -- the VAE and the text encoders -----------------------------------------------------------------------------
# The VAE is built as FLUX.1's is, and its latents are scaled and shifted by other numbers.
# SD3 reads a prompt by CLIP-L, by OpenCLIP's bigG and by T5, and takes of both CLIPs the projected pooled output.


def clip_alias(name: str) -> str | None:
    """Return the standard name of a weight of a CLIP whose projection is used."""
    return name if name == PROJECTION else clip_files.alias(name)


def read_clip_config(config: Json) -> CLIPConfig:
    """Read the config of a transformers `CLIPTextModelWithProjection`; raises `CheckpointError` if we can't run it."""
    act = config.get("hidden_act", "quick_gelu")
    if act not in list(ACTIVATIONS):
        raise CheckpointError(f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, found {quoted(act)}")
    cfg = clip_files.read_config(config | {"hidden_act": "quick_gelu"})
    if cfg.num_hidden_layers < 2:
        raise CheckpointError("num_hidden_layers: expected two at least, for SD3 takes the states before the last")
    width = take(config, CLIP_G, {"projection_dim": "projection_dim"}).get("projection_dim", 512)  # transformers' own
    return replace(cfg, hidden_act=act, projection_dim=width)


def write_clip_config(cfg: CLIPConfig) -> Json:
    """Return the config that transformers reads."""
    return clip_files.write_config(cfg) | {"architectures": ["CLIPTextModelWithProjection"]}


def projected_sizes(size: Sizes, beside: CLIPConfig | None) -> CLIPConfig:
    """Read a CLIP's config off its shapes; no shape shows the activation: OpenCLIP's in CLIPs of bigG's width."""
    cfg = clip_sizes(size, beside)
    usual = CLIP_G.hidden_act if cfg.hidden_size == CLIP_G.hidden_size else CLIPConfig.hidden_act
    act = beside.hidden_act if beside else usual
    return replace(cfg, hidden_act=act, projection_dim=size(PROJECTION, 0))


def named_clip(name: str, title: str, stem: str) -> Component:
    """Return the record of one of SD3's CLIPs, whose name in single files is `stem`."""
    (naming,) = CLIP.namings
    prefixes = (f"text_encoders.{stem}.transformer.", f"text_encoders.{stem}.", "")
    return replace(
        CLIP, name=name, title=title, library=("transformers", "CLIPTextModelWithProjection"), lora_prefixes=(),
        read_config=read_clip_config, write_config=write_clip_config, sizes=projected_sizes, alias=clip_alias,
        namings=(replace(naming, prefixes=prefixes),),
    )  # fmt: skip


def sd3_vae_sizes(size: Sizes, beside: VAEConfig | None) -> VAEConfig:
    """Read the VAE's config off its shapes; no shape shows scale and shift: these are `beside`'s, or SD3's own."""
    return vae_sizes(size, beside or SD3_VAE_CONFIG)


SD3_VAE = replace(VAE, sizes=sd3_vae_sizes)
SD3_CLIP_L = named_clip("text_encoder", "CLIP-L", "clip_l")
SD3_CLIP_G = named_clip("text_encoder_2", "CLIP-G", "clip_g")
SD3_T5 = replace(T5, name="text_encoder_3", lora_prefixes=())
