"""FLUX.1's VAE in files: BFL's names, which our trees use, and diffusers'.

Beside the names, two things differ: the decoder's levels are counted from the other end, and the projections of its
attention are 1×1 convolutions in BFL's files, matrices in diffusers'. And our layout is NHWC: kernels are (out, kh, kw,
in) here, (out, in, kh, kw) in every file, and all 1×1 kernels are plain matrices here.
Sources: BFL `flux/modules/autoencoder.py`; diffusers `vae.py`.
"""

import re

from minflux.arrays import Array
from minflux.checkpoints.components.base import Component, Flat, Json, Naming, is_like, require, take
from minflux.checkpoints.components.renaming import Rules, backwards, rename
from minflux.checkpoints.components.shapes import Shapes, Sizes, linear_shapes, norm_shapes, under
from minflux.errors import CheckpointError, quoted
from minflux.model.vae import FLUX_VAE, VAEConfig

# -- names -----------------------------------------------------------------------------------------------------

RULES: Rules = (  # (diffusers, BFL)
    ("down_blocks.#.resnets", "down.#.block"),
    ("down_blocks.#.downsamplers.0", "down.#.downsample"),
    ("up_blocks.#.resnets", "up.#.block"),
    ("up_blocks.#.upsamplers.0", "up.#.upsample"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)
MFLUX_RULES: Rules = (  # (mflux's name, diffusers'), where they differ
    ("conv_in.conv2d", "conv_in"),
    ("conv_out.conv2d", "conv_out"),
    ("conv_norm_out.norm", "conv_norm_out"),
)
UP_LEVEL = re.compile(r"(?<=^decoder\.up\.)\d+")
SHORTCUT = re.compile(r"\.nin_shortcut\.weight$")
PROJECTION = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")  # a matrix in diffusers, a 1×1 kernel in BFL's


def from_diffusers(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `AutoencoderKL` into ours."""
    return channels_last(diffusers_to_bfl(flat))


def to_diffusers(flat: Flat) -> Flat:
    """Undo `from_diffusers`."""
    return bfl_to_diffusers(channels_second(flat))


def from_mflux(flat: Flat) -> Flat:
    """Turn the weights of a VAE that mflux saved into ours; its kernels are laid out as ours are."""
    renamed = {rename(name, MFLUX_RULES + RULES): array for name, array in flat.items()}
    return reverse_up({name: without_sides(array) for name, array in renamed.items()})


def to_mflux(flat: Flat) -> Flat:
    """Undo `from_mflux`: of the matrices, the shortcuts alone are 1×1 kernels there."""
    kernels = {name: with_sides(array) if SHORTCUT.search(name) else array for name, array in flat.items()}
    return {rename(name, backwards(MFLUX_RULES + RULES)): array for name, array in reverse_up(kernels).items()}


def without_sides(kernel: Array) -> Array:
    """Return a 1×1 kernel (out, 1, 1, in) as a matrix; any other array as it is."""
    is_matrix = kernel.ndim == 4 and kernel.shape[1:3] == (1, 1)
    return kernel.reshape(kernel.shape[0], kernel.shape[3]) if is_matrix else kernel


def with_sides(matrix: Array) -> Array:
    """Return a matrix (out, in) as a 1×1 kernel (out, 1, 1, in)."""
    rows, columns = matrix.shape
    return matrix.reshape(rows, 1, 1, columns)


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return how PyTorch would lay out a kernel (out, kh, kw, in): (out, in, kh, kw)."""
    return (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape


def our_part_of_mflux(name: str, config: VAEConfig | None) -> str:
    """Return our name of a weight that mflux names; without a config the levels stay as diffusers counts them."""
    return our_part(rename(name, MFLUX_RULES), config)


def diffusers_to_bfl(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `AutoencoderKL` into BFL's `ae`; kernels stay (out, in, kh, kw)."""
    renamed = {rename(name, RULES): array for name, array in flat.items()}
    kernels = {name: as_kernel(array) if PROJECTION.search(name) else array for name, array in renamed.items()}
    return reverse_up(kernels)


def bfl_to_diffusers(flat: Flat) -> Flat:
    """Undo `diffusers_to_bfl`."""
    matrices = {name: as_matrix(array) if PROJECTION.search(name) else array for name, array in flat.items()}
    return {rename(name, backwards(RULES)): array for name, array in reverse_up(matrices).items()}


def as_kernel(matrix: Array) -> Array:
    """Return a matrix (out, in) as a 1×1 kernel (out, in, 1, 1)."""
    return matrix.reshape(*matrix.shape, 1, 1)


def as_matrix(kernel: Array) -> Array:
    """Return a 1×1 kernel (out, in, 1, 1) as a matrix (out, in)."""
    return kernel.reshape(kernel.shape[:2])


def reverse_up(flat: Flat) -> Flat:
    """Count the decoder's levels from the other end: BFL's up.0 is the finest, diffusers' the coarsest."""
    found = [int(match[0]) for match in map(UP_LEVEL.search, flat) if match]
    last = max(found, default=0)
    return {reverse_level(name, last): array for name, array in flat.items()}


def reverse_level(name: str, last: int) -> str:
    """Return a weight's name with its decoder level counted from the other end, `last` being the last one's number."""
    return UP_LEVEL.sub(lambda match: str(last - int(match[0])), name)


def our_part(name: str, config: VAEConfig | None) -> str:
    """Return our name of a weight that diffusers names; without a config the levels stay as diffusers counts them.

    >>> our_part("decoder.up_blocks.0.resnets.1.conv1.bias", FLUX_VAE)
    'decoder.up.3.block.1.conv1.bias'
    """
    renamed = rename(name, RULES)
    return renamed if config is None else reverse_level(renamed, len(config.ch_mult) - 1)


# -- layout ----------------------------------------------------------------------------------------------------


def channels_last(flat: Flat) -> Flat:
    """Turn PyTorch's kernels (out, in, kh, kw) into ours, (out, kh, kw, in), and 1×1 ones into (out, in)."""
    return {name: kernel_to_ours(array) if array.ndim == 4 else array for name, array in flat.items()}


def kernel_to_ours(kernel: Array) -> Array:
    """Turn one kernel (out, in, kh, kw) into (out, kh, kw, in), or into a matrix (out, in) where it is 1×1."""
    is_matrix = kernel.shape[2:] == (1, 1)
    return as_matrix(kernel) if is_matrix else laid_out(kernel.transpose(0, 2, 3, 1))


def channels_second(flat: Flat) -> Flat:
    """Undo `channels_last`: in the VAE, every matrix is a 1×1 kernel."""
    return {name: kernel_to_torch(array) if array.ndim > 1 else array for name, array in flat.items()}


def kernel_to_torch(kernel: Array) -> Array:
    """Undo `kernel_to_ours`."""
    return as_kernel(kernel) if kernel.ndim == 2 else laid_out(kernel.transpose(0, 3, 1, 2))


def laid_out(array: Array) -> Array:
    """Lay a transposed view out in memory in its new order, as matrix products want it."""
    return array.reshape(-1).reshape(array.shape)


# -- config ----------------------------------------------------------------------------------------------------

CONFIG_NAMES = {  # diffusers' name -> BFL's
    "in_channels": "in_channels",
    "out_channels": "out_ch",
    "layers_per_block": "num_res_blocks",
    "latent_channels": "z_channels",
    "scaling_factor": "scale_factor",
    "shift_factor": "shift_factor",
    "norm_num_groups": "norm_groups",
}
MOST_LEVELS = 8  # each halves the image; FLUX.1's has four
FIXED = {  # what our code takes for granted
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "mid_block_add_attention": True,
}


def read_config(config: Json) -> VAEConfig:
    """Read the config of a diffusers `AutoencoderKL`; raises `CheckpointError` on one we can't run."""
    quant_conv = config.get("use_quant_conv", True)  # in Stable Diffusion 1's, whose config doesn't say it
    require(config, FIXED | quant_convs(bool(quant_conv)))
    widths = read_widths(config)
    found = Json({"shift_factor": 0.0}) | take(config, VAEConfig(), CONFIG_NAMES)
    multiples = tuple(width // widths[0] for width in widths)
    cfg = VAEConfig(**found, ch=widths[0], ch_mult=multiples, quant_conv=bool(quant_conv))
    if cfg.ch % cfg.norm_groups:
        raise CheckpointError(f"norm_num_groups: expected a divisor of {cfg.ch}, found {cfg.norm_groups}")
    if not cfg.scale_factor:
        raise CheckpointError("scaling_factor: expected another number than 0")
    return cfg


def quant_convs(there: bool) -> Json:
    """Return what a config says of the 1×1 convolutions on both sides of the latents."""
    return {"use_quant_conv": there, "use_post_quant_conv": there}


def read_widths(config: Json) -> list[int]:
    """Return the channels of each level, multiples of the first's; raises `CheckpointError` for anything else."""
    widths = config.get("block_out_channels")
    if not isinstance(widths, list) or not 0 < len(widths) <= MOST_LEVELS:
        raise CheckpointError(f"block_out_channels: expected 1 to {MOST_LEVELS} numbers, found {quoted(widths)}")
    if not all(is_like(width, 1, least=1) and width % widths[0] == 0 for width in widths):
        raise CheckpointError(f"block_out_channels: expected multiples of the first, found {quoted(widths)}")
    return widths


def write_config(cfg: VAEConfig) -> Json:
    """Return the config that diffusers reads."""
    sizes = {theirs: getattr(cfg, ours) for theirs, ours in CONFIG_NAMES.items()}
    levels = len(cfg.ch_mult)
    blocks = {
        "block_out_channels": [cfg.ch * mult for mult in cfg.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return FIXED | sizes | blocks | quant_convs(cfg.quant_conv)


# -- shapes ----------------------------------------------------------------------------------------------------


def vae_shapes(cfg: VAEConfig) -> Shapes:
    """Return the shape of every weight of the VAE: 244 for FLUX.1's. Source: BFL `flux/modules/autoencoder.py`."""
    shapes = under("encoder", encoder_shapes(cfg)) | under("decoder", decoder_shapes(cfg))
    if cfg.quant_conv:
        shapes |= under("quant_conv", linear_shapes(2 * cfg.z_channels, 2 * cfg.z_channels))
        shapes |= under("post_quant_conv", linear_shapes(cfg.z_channels, cfg.z_channels))
    return shapes


def encoder_shapes(cfg: VAEConfig) -> Shapes:
    """Return the shapes from image to mean and log-variance: levels from fine to coarse, then the middle."""
    shapes, width = under("conv_in", conv_shapes(cfg.ch, cfg.in_channels)), cfg.ch
    for i, mult in enumerate(cfg.ch_mult):
        resize = "downsample" if i < len(cfg.ch_mult) - 1 else None
        shapes |= under(f"down.{i}", level_shapes(cfg.ch * mult, width, cfg.num_res_blocks, resize))
        width = cfg.ch * mult
    shapes |= under("mid", middle_shapes(width)) | under("norm_out", norm_shapes(width))
    return shapes | under("conv_out", conv_shapes(2 * cfg.z_channels, width))


def decoder_shapes(cfg: VAEConfig) -> Shapes:
    """Return the shapes from latents to image: the middle, then levels from coarse to fine (up.0), one block more."""
    width = cfg.ch * cfg.ch_mult[-1]
    shapes = under("conv_in", conv_shapes(width, cfg.z_channels)) | under("mid", middle_shapes(width))
    for i, mult in reversed(list(enumerate(cfg.ch_mult))):
        resize = "upsample" if i > 0 else None
        shapes |= under(f"up.{i}", level_shapes(cfg.ch * mult, width, cfg.num_res_blocks + 1, resize))
        width = cfg.ch * mult
    shapes |= under("norm_out", norm_shapes(width))
    return shapes | under("conv_out", conv_shapes(cfg.out_ch, width))


def level_shapes(outputs: int, inputs: int, blocks: int, resize: str | None) -> Shapes:
    """Return the shapes of a level of residual blocks, the first changing the channels; `resize` leads to the next."""
    shapes: Shapes = {}
    for j in range(blocks):
        shapes |= under(f"block.{j}", resnet_shapes(outputs, inputs if j == 0 else outputs))
    return shapes | (under(f"{resize}.conv", conv_shapes(outputs, outputs)) if resize else {})


def middle_shapes(channels: int) -> Shapes:
    """Return the shapes of residual block, attention, residual block."""
    attention = under("norm", norm_shapes(channels))
    for name in ("q", "k", "v", "proj_out"):
        attention |= under(name, linear_shapes(channels, channels))
    block = resnet_shapes(channels, channels)
    return under("block_1", block) | under("attn_1", attention) | under("block_2", block)


def resnet_shapes(outputs: int, inputs: int) -> Shapes:
    """Return the shapes of a residual block; it has a shortcut where the number of channels changes."""
    shapes = (
        under("norm1", norm_shapes(inputs))
        | under("conv1", conv_shapes(outputs, inputs))
        | under("norm2", norm_shapes(outputs))
        | under("conv2", conv_shapes(outputs, outputs))
    )
    return shapes | (under("nin_shortcut", linear_shapes(outputs, inputs)) if inputs != outputs else {})


def conv_shapes(outputs: int, inputs: int) -> Shapes:
    """Return the shapes of a 3×3 convolution."""
    return {"weight": (outputs, 3, 3, inputs), "bias": (outputs,)}


# -- sizes -----------------------------------------------------------------------------------------------------


def vae_sizes(size: Sizes, beside: VAEConfig | None) -> VAEConfig:
    """Read the VAE's config off its encoder's shapes; shift, scale and groups are `beside`'s, or FLUX.1's own."""
    hidden_from = beside or FLUX_VAE
    ch, levels = size("encoder.conv_in.weight", 0), size.count("encoder.down")
    widths = [size(f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)]
    if any(width % ch for width in widths):
        raise CheckpointError(f"vae: expected widths that are multiples of {ch}, found {widths}")
    return VAEConfig(
        in_channels=size("encoder.conv_in.weight", 1),
        out_ch=size("decoder.conv_out.weight", 0),
        z_channels=size("decoder.conv_in.weight", 1),
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=size.count("encoder.down.0.block"),
        norm_groups=min(hidden_from.norm_groups, ch),
        scale_factor=hidden_from.scale_factor,
        shift_factor=hidden_from.shift_factor,
        quant_conv=size.has("quant_conv.weight"),
    )


def describe(cfg: VAEConfig) -> str:
    """Return the VAE's sizes in a line."""
    return f"{cfg.z_channels} latent channels, {cfg.downscale} pixels a latent, levels {cfg.ch_mult} × {cfg.ch}"


# -- the record ------------------------------------------------------------------------------------------------

VAE = Component(
    name="vae",
    title="VAE",
    stem="diffusion_pytorch_model",
    library=("diffusers", "AutoencoderKL"),
    config=VAEConfig,
    read_config=read_config,
    write_config=write_config,
    describe=describe,
    shapes=vae_shapes,
    sizes=vae_sizes,
    never_float16=re.compile(""),  # all of them: FLUX.1's settings say `force_upcast`, and diffusers widens it too
    namings=(
        Naming(
            "diffusers", "diffusers' names", ("decoder.mid_block.resnets.0.conv1.weight",), ("vae.", ""),
            from_diffusers, to_diffusers, our_part,
        ),
        Naming(
            "bfl", "BFL's names", ("decoder.mid.block_1.conv1.weight",), ("vae.", "first_stage_model.", ""),
            channels_last, channels_second,
        ),
        Naming(
            "mflux", "mflux's names", ("decoder.conv_in.conv2d.weight",), ("",), from_mflux, to_mflux,
            our_part_of_mflux, torch_shape=torch_shape, has_config=False,
        ),
    ),
    own="bfl",
    stage="decode",
)  # fmt: skip
