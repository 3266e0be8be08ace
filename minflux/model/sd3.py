"""SD3's transformer, the MMDiT from which FLUX.1 came, in FLUX.1's words and of the same parts.

    patches + where they are -> double blocks, the last of them for the image alone -> final layer -> latents

What differs from `flux`: positions are added once, from a table, and no query or key is turned; there are no single
blocks; latents go in and come out as an image. In SD3.5 queries and keys are normalised, as in FLUX.1, and in the
first blocks of SD3.5-medium the image attends a second time, to itself alone.
Source: Esser et al. 2024 (arXiv 2403.03206); diffusers `transformer_sd3.py`.
"""

import math
from dataclasses import dataclass

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import attention, normed_qkv, split_qkv
from minflux.model.blocks import final_layer, finish_stream
from minflux.model.flux import condition
from minflux.model.hooks import OnBlock, RunBlock, ignore, run
from minflux.model.latents import pack
from minflux.model.linear import linear
from minflux.model.modulation import chunks, modulate, modulations


@dataclass(frozen=True)
class SD3Config:
    """The sizes of an SD3 transformer, under FLUX.1's names for them; in_channels are those of the latents.

    pos_embed_max_size: tokens along a side of the table of positions. dual_attention_layers: the numbers of the blocks
    in which the image attends to itself once more.
    """

    in_channels: int = 16
    out_channels: int = 16
    vec_in_dim: int = 2048
    context_in_dim: int = 4096
    hidden_size: int = 1536
    num_heads: int = 24
    depth: int = 24
    pos_embed_max_size: int = 192
    qk_norm: bool = False
    dual_attention_layers: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """The width of a head."""
        return self.hidden_size // self.num_heads


SD3_MEDIUM = SD3Config()
SD35_LARGE = SD3Config(hidden_size=2432, num_heads=38, depth=38, qk_norm=True)
SD35_MEDIUM = SD3Config(pos_embed_max_size=384, qk_norm=True, dual_attention_layers=tuple(range(13)))
SD3_PRESETS = {"sd3-medium": SD3_MEDIUM, "sd3.5-large": SD35_LARGE, "sd3.5-medium": SD35_MEDIUM}


# -- patches -------------------------------------------------------------------------------------------------


@shaped
def positions(table: Float[Array, "1 N D"], rows: int, columns: int) -> Float[Array, "1 I D"]:
    """Cut rows × columns out of the middle of the table of positions, a square; raises ValueError where it is smaller.

    So the middle of an image has one position, whatever the image's size.
    """
    _, count, width = table.shape
    side = math.isqrt(count)
    if max(rows, columns) > side:
        raise ValueError(f"the table of positions has {side}×{side} tokens, an image of {rows}×{columns} needs more")
    top, left = (side - rows) // 2, (side - columns) // 2
    middle = table.reshape(side, side, width)[top : top + rows, left : left + columns]
    return middle.reshape(1, rows * columns, width)


@shaped
def embed_patches(p: Tree, latents: Float[Array, "B H W C"]) -> Float[Array, "B I D"]:
    """Make a token of every 2×2 patch of latents, and add where it is.

    The convolution of the patches is a product here, of the tokens that `pack` makes.
    """
    _, height, width, _ = latents.shape
    tokens = linear(pack(latents), **p["patch_in"])  # (B, I, D)
    return tokens + positions(p["pos_embed"], height // 2, width // 2)


@shaped
def unpatch(tokens: Float[Array, "B I O"], height: int, width: int) -> Float[Array, "B H W C"]:
    """Put tokens of (row, column, channel) back in their places: (B, height, width, C).

    FLUX.1's tokens are (channel, row, column), on both ends (see `latents`); SD3's so where they go in alone.
    """
    batch, _, numbers = tokens.shape
    rows, columns, channels = height // 2, width // 2, numbers // 4
    x = tokens.reshape(batch, rows, columns, 2, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, h, 2, w, 2, C)
    return x.reshape(batch, height, width, channels)


# -- blocks --------------------------------------------------------------------------------------------------


@shaped
def joint_block(
    p: Tree, head_dim: int, img: Float[Array, "B I D"], txt: Float[Array, "B T D"], mod: Tree, seen=None
) -> tuple[Float[Array, "B I D"], Float[Array, "B T D"]]:
    """Let both streams attend to each other, then pass each through its own MLP: (img, txt) -> (img, txt).

    As `double_block`, without rotations. A block whose text has no MLP, the last, returns txt as it was: its text has
    only queries, keys and values, for which mod["txt"] is (B, 2 D). A block with `img_attn2` lets the image attend to
    itself too, for which mod["img"] is (B, 9 D). seen: see `attention`.
    """
    nx, width = backend_of(img, txt), img.shape[-1]
    img_mod, txt_mod = (chunks(rows, rows.shape[-1] // width) for rows in (mod["img"], mod["txt"]))

    # one attention over both
    img_qkv = stream_qkv(p["img_attn"], head_dim, img, img_mod)
    txt_qkv = stream_qkv(p["txt_attn"], head_dim, txt, txt_mod)
    q, k, v = (nx.concatenate(both, axis=2) for both in zip(txt_qkv, img_qkv, strict=True))  # (B, H, T + I, K)
    attended = attention(q, k, v, None, seen)  # (B, T + I, D)
    txt_attended, img_attended = nx.split(attended, [txt.shape[1]], axis=1)

    # each stream on its own again
    if "img_attn2" in p:
        img = img + second_attention(p["img_attn2"], head_dim, img, img_mod[6:])
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_attended, img_mod[:6])
    if "txt_mlp" in p:
        txt = finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_attended, txt_mod)
    return img, txt


def stream_qkv(attn: Tree, head_dim: int, x: Array, mod: list[Array]) -> tuple[Array, Array, Array]:
    """Shift and scale a stream by the first two of `mod`, and project it to q, k and v; normalised in SD3.5 alone."""
    shift, scale, *_ = mod
    qkv = linear(modulate(x, shift, scale), **attn["qkv"])  # (B, L, 3 D)
    return normed_qkv(attn["norm"], qkv) if "norm" in attn else split_qkv(qkv, head_dim)


def second_attention(attn: Tree, head_dim: int, img: Array, mod: list[Array]) -> Array:
    """Let the image's tokens attend to each other alone, and gate the result."""
    _, _, gate = mod
    attended = attention(*stream_qkv(attn, head_dim, img, mod), None)
    return gate * linear(attended, **attn["proj"])


# -- the whole -----------------------------------------------------------------------------------------------


@shaped
def sd3(
    p: Tree,
    cfg: SD3Config,
    latents: Float[Array, "B H W C"],
    txt: Float[Array, "B T E"],
    timesteps: Float[Array, "B"],
    y: Float[Array, "B P"],
    on_block: OnBlock = ignore,
    keep_qkv: bool = False,
    run_block: RunBlock = run,
) -> Float[Array, "B H W O"]:
    """Predict the velocity of latents: noise - image, as the flow's ODE needs it.

    latents: at time t; txt: the states of both CLIPs side by side, then T5's; y: both CLIPs' pooled outputs;
    timesteps in [0, 1], 1 for pure noise; the rest: see `flux.velocity`. Computed in the weights' dtype; the result
    has it too. Raises ValueError for latents larger than the table of positions. Source: diffusers
    `transformer_sd3.py`.
    """
    mod = modulations(p, condition(p, timesteps, y))
    return velocity(p, cfg, latents, txt, mod, on_block, keep_qkv, run_block)


@shaped
def velocity(
    p: Tree,
    cfg: SD3Config,
    latents: Float[Array, "B H W C"],
    txt: Float[Array, "B T E"],
    mod: Tree,
    on_block: OnBlock = ignore,
    keep_qkv: bool = False,
    run_block: RunBlock = run,
) -> Float[Array, "B H W O"]:
    """Run the blocks, given their modulations `mod`; the last three arguments: see `flux.velocity`."""
    _, height, width, _ = latents.shape
    dtype = mod["final"].dtype
    img = embed_patches(p, latents.astype(dtype))  # (B, I, D)
    txt = linear(txt.astype(dtype), **p["txt_in"])  # (B, T, D)
    for i, (block, block_mod) in enumerate(zip(p["double_blocks"], mod["double"], strict=True)):
        seen = {"mod": block_mod}
        img, txt = run_block(joint_block, block, cfg.head_dim, img, txt, block_mod, seen if keep_qkv else None)
        on_block(f"double_blocks.{i}", {"img": img, "txt": txt, **seen})
    tokens = final_layer(p["final_layer"], img, mod["final"])
    return unpatch(tokens, height, width)
