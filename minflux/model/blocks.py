"""The two kinds of block, and the final layer.

A double-stream block keeps picture and text apart, each with its own weights, and lets them meet in one joint
attention. A single-stream block treats the joined sequence as one, with attention and MLP side by side.
Source: BFL `flux/modules/layers.py`; the double block is the MMDiT of Esser et al. 2024 (arXiv 2403.03206).
"""

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import attention, normed_qkv
from minflux.model.linear import linear
from minflux.model.modulation import chunks, modulate


@shaped
def mlp(p: Tree, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """Linear to 4 D, GELU, Linear back; the weights are called "0" and "2", their places in the file's list."""
    return linear(backend_of(x).gelu(linear(x, **p["0"])), **p["2"])


@shaped
def double_block(
    p: Tree, img: Float[Array, "B I D"], txt: Float[Array, "B T D"], mod: Tree, pe: tuple
) -> tuple[Float[Array, "B I D"], Float[Array, "B T D"]]:
    """Let both streams attend to each other, then think apart: (img, txt) -> (img, txt).

    In the joint sequence txt comes before img; `pe` is for both, (B, 1, T + I, K/2) each; `mod` is the block's own of
    `modulations`, {"img", "txt"} of (B, 6 D).
    """
    nx = backend_of(img, txt)
    txt_mod, img_mod = chunks(mod["txt"], 6), chunks(mod["img"], 6)

    # each stream: shift, scale, project to q, k, v
    txt_qkv = normed_qkv(p["txt_attn"]["norm"], linear(modulate(txt, *txt_mod[:2]), **p["txt_attn"]["qkv"]))
    img_qkv = normed_qkv(p["img_attn"]["norm"], linear(modulate(img, *img_mod[:2]), **p["img_attn"]["qkv"]))

    # one attention over both
    q, k, v = (nx.concatenate([t, i], axis=2) for t, i in zip(txt_qkv, img_qkv, strict=True))  # (B, H, T + I, K)
    txt_joint, img_joint = nx.split(attention(q, k, v, pe), [txt.shape[1]], axis=1)  # (B, T, D), (B, I, D)

    return (
        _finish_stream(p["img_attn"]["proj"], p["img_mlp"], img, img_joint, img_mod),
        _finish_stream(p["txt_attn"]["proj"], p["txt_mlp"], txt, txt_joint, txt_mod),
    )


def _finish_stream(proj: Tree, mlp_weights: Tree, x: Array, attended: Array, mod: list[Array]) -> Array:
    """Add a stream's gated attention output, then its gated MLP."""
    _, _, gate1, shift2, scale2, gate2 = mod
    x = x + gate1 * linear(attended, **proj)
    return x + gate2 * mlp(mlp_weights, modulate(x, shift2, scale2))


@shaped
def single_block(p: Tree, x: Float[Array, "B L D"], mod: Float[Array, "B O"], pe: tuple) -> Float[Array, "B L D"]:
    """Attention and MLP from one projection, joined by another: x + gate · linear2(attention ‖ gelu(mlp)).

    linear1 gives (q, k, v, mlp) of widths D, D, D and 4 D; linear2 takes 5 D. Running them side by side is due to
    Dehghani et al. 2023 (arXiv 2302.05442).
    """
    nx = backend_of(x, mod)
    shift, scale, gate = chunks(mod, 3)
    qkv, hidden = nx.split(linear(modulate(x, shift, scale), **p["linear1"]), [3 * x.shape[-1]], axis=-1)
    both = nx.concatenate([attention(*normed_qkv(p["norm"], qkv), pe), nx.gelu(hidden)], axis=-1)
    return x + gate * linear(both, **p["linear2"])


@shaped
def final_layer(p: Tree, x: Float[Array, "B I D"], mod: Float[Array, "B M"]) -> Float[Array, "B I O"]:
    """The last modulated norm and the projection to velocity tokens; its chunks are shift, scale in BFL's order.

    diffusers stores the two the other way round (`norm_out`).
    """
    shift, scale = chunks(mod, 2)
    return linear(modulate(x, shift, scale), **p["linear"])
