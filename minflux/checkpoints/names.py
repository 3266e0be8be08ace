"""One model, two sets of names: BFL's, which our trees use, and diffusers'.

Most weights are only called differently, and pairs of patterns say how; read from left to right they turn
diffusers' names into BFL's, from right to left the other way. Three things are more than names:

- BFL keeps the projections to q, k, v (and, in single blocks, the MLP's) in one matrix, diffusers apart;
- the final layer's shift and scale come in the other order;
- the decoder's levels are counted from the other end; the projections of its attention are 1×1 convolutions.

Every function takes and returns a flat dict, name to array, of either backend. Sources: BFL `flux/model.py`
and `flux/modules/autoencoder.py`; diffusers `transformer_flux.py` and `vae.py`.
"""

import re
from collections.abc import Iterable

from minflux.arrays import Array
from minflux.backend import backend_of

Flat = dict[str, Array]
Rules = tuple[tuple[str, str], ...]

# (diffusers, BFL). # is a number, which is kept. qkv@1 is part 1 of the joint matrix qkv.
FLUX_RULES: Rules = (
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    ("time_text_embed.timestep_embedder", "time_in"),
    ("time_text_embed.guidance_embedder", "guidance_in"),
    ("time_text_embed.text_embedder", "vector_in"),
    ("linear_1", "in_layer"),
    ("linear_2", "out_layer"),
    ("transformer_blocks.#.norm1.linear", "double_blocks.#.img_mod.lin"),
    ("transformer_blocks.#.norm1_context.linear", "double_blocks.#.txt_mod.lin"),
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
FINAL_MODULATION = "final_layer.adaLN_modulation.1"
FUSED = {"qkv": 3, "linear1": 4}  # BFL's joint matrices, and how many of diffusers' are in each

VAE_RULES: Rules = (
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


# -- names ---------------------------------------------------------------------------------------------------


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply each rule in turn to the whole parts of a dotted name.

    >>> rename("blocks.3.attn.w", [("blocks.#.attn", "layers.#.attention")])
    'layers.3.attention.w'
    """
    for old, new in rules:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        name = re.sub(rf"(?<![^.]){pattern}(?![^.])", new.replace("#", r"\1"), name)
    return name


def backwards(rules: Rules) -> Rules:
    """Turn rules round: what was read from left to right, read from right to left and from the end."""
    return tuple((new, old) for old, new in reversed(rules))


# -- the transformer -----------------------------------------------------------------------------------------


def flux_to_bfl(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `FluxTransformer2DModel` into BFL's."""
    renamed = {rename(name, FLUX_RULES): array for name, array in flat.items()}
    return swap_shift_scale(fuse(renamed))


def flux_to_diffusers(flat: Flat) -> Flat:
    """Undo `flux_to_bfl`."""
    rules = backwards(FLUX_RULES)
    return {rename(name, rules): array for name, array in unfuse(swap_shift_scale(flat)).items()}


def fuse(flat: Flat) -> Flat:
    """Stack "qkv@0.weight", "qkv@1.weight", … into one "qkv.weight"; all else stays as it is."""
    parts: dict[str, dict[str, Array]] = {}
    for name, array in flat.items():
        parts.setdefault(re.sub(r"@\d", "", name), {})[name] = array
    return {name: _stack([group[part] for part in sorted(group)]) for name, group in parts.items()}


def _stack(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else backend_of(*arrays).concatenate(arrays, axis=0)


def unfuse(flat: Flat) -> Flat:
    """Undo `fuse`."""
    apart: Flat = {}
    for name, array in flat.items():
        stem, _, leaf = name.rpartition(".")
        count = _joint_parts(stem)
        for i in range(count):
            rows = joint_rows(stem, i, flat[f"{stem}.weight"].shape[1])
            apart[f"{stem}@{i}.{leaf}"] = array[rows]
        if not count:
            apart[name] = array
    return apart


def joint_rows(stem: str, part: int, columns: int) -> slice:
    """Tell which rows of a joint matrix a part has: as many as it has columns, and the last part the rest."""
    last = part == _joint_parts(stem) - 1
    return slice(part * columns, None if last else (part + 1) * columns)


def _joint_parts(stem: str) -> int:
    """Count the parts of the matrix called `stem`, 0 if it is no joint one."""
    return FUSED.get(stem.rpartition(".")[2], 0)


def swap_shift_scale(flat: Flat) -> Flat:
    """Exchange the halves of the final modulation: shift, scale for BFL, scale, shift for diffusers."""
    return {
        name: exchanged(array) if name.startswith(f"{FINAL_MODULATION}.") else array for name, array in flat.items()
    }


def exchanged(array: Array) -> Array:
    """Exchange the upper and the lower half of the rows."""
    half = array.shape[0] // 2
    return _stack([array[half:], array[:half]])


# -- the autoencoder -----------------------------------------------------------------------------------------


def vae_to_bfl(flat: Flat) -> Flat:
    """Turn the weights of a diffusers `AutoencoderKL` into BFL's `ae`; kernels stay (out, in, kh, kw)."""
    renamed = {rename(name, VAE_RULES): array for name, array in flat.items()}
    return reverse_up({
        name: array.reshape(*array.shape, 1, 1) if is_projection(name) else array
        for name, array in renamed.items()
    })  # fmt: skip


def vae_to_diffusers(flat: Flat) -> Flat:
    """Undo `vae_to_bfl`."""
    rules = backwards(VAE_RULES)
    return {
        rename(name, rules): array.reshape(array.shape[:2]) if is_projection(name) else array
        for name, array in reverse_up(flat).items()
    }


def is_projection(name: str) -> bool:
    """Tell whether a weight is a matrix in diffusers but a 1×1 convolution in BFL's files."""
    return bool(re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$", name))


def reverse_up(flat: Flat) -> Flat:
    """Count the decoder's levels from the other end: BFL's up.0 is the finest, diffusers' the coarsest."""
    level = re.compile(r"(?<=^decoder\.up\.)\d+")
    found = [int(match[0]) for match in map(level.search, flat) if match]
    last = max(found, default=0)
    return {level.sub(lambda match: str(last - int(match[0])), name): array for name, array in flat.items()}


def to_channels_last(flat: Flat) -> Flat:
    """Turn PyTorch's kernels (out, in, kh, kw) into ours, (out, kh, kw, in), and 1×1 ones into (out, in)."""
    return {name: _channels_last(array) if array.ndim == 4 else array for name, array in flat.items()}


def _channels_last(kernel: Array) -> Array:
    if kernel.shape[2:] == (1, 1):
        return kernel.reshape(kernel.shape[:2])
    return _laid_out(kernel.transpose(0, 2, 3, 1))


def to_torch_layout(flat: Flat) -> Flat:
    """Undo `to_channels_last`: in the autoencoder, every matrix is a 1×1 kernel."""
    return {name: _channels_second(array) if array.ndim > 1 else array for name, array in flat.items()}


def _channels_second(kernel: Array) -> Array:
    if kernel.ndim == 2:
        return kernel.reshape(*kernel.shape, 1, 1)
    return _laid_out(kernel.transpose(0, 3, 1, 2))


def _laid_out(array: Array) -> Array:
    """Lay a transposed view out in memory in its new order, as matrix products want it."""
    return array.reshape(-1).reshape(array.shape)
