"""The two kinds of block, and the final layer.

A double-stream block keeps image and text apart, each with its own weights, and lets them meet in one joint attention.
A single-stream block treats the joined sequence as one, with attention and MLP side by side.
Source: BFL `flux/modules/layers.py`; the double block is the MMDiT of Esser et al. 2024 (arXiv 2403.03206).
"""

from collections.abc import Callable

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import attention, normed_qkv
from minflux.model.linear import linear
from minflux.model.modulation import chunks, modulate

Activation = Callable[[Array], Array]


@shaped
def gelu(x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
    """Compute GELU in its tanh form, the activation of FLUX.1's MLPs."""
    return backend_of(x).gelu(x)


@shaped
def mlp(p: Tree, x: Float[Array, "B L D"], activate: Activation = gelu) -> Float[Array, "B L D"]:
    """Apply Linear to 4 D, GELU, Linear back; the weights are called "0" and "2", their places in the file's list.

    activate: another activation in GELU's place; it may return fewer channels than it takes.
    """
    hidden = linear(x, **p["0"])  # (B, L, 4 D)
    hidden = activate(hidden)
    return linear(hidden, **p["2"])


@shaped
def double_block(
    p: Tree,
    img: Float[Array, "B I D"],
    txt: Float[Array, "B T D"],
    mod: Tree,
    pe: tuple,
    seen=None,
    bias=None,
    activate: Activation = gelu,
) -> tuple[Float[Array, "B I D"], Float[Array, "B T D"]]:
    """Let both streams attend to each other, then pass each through its own MLP: (img, txt) -> (img, txt).

    mod: the block's own of `modulations`, {"img", "txt"} of (B, 6 D). pe: the rotations of the joint sequence, in which
    txt comes before img, (B, 1, T + I, K/2) each. seen: a dict to write the joint q, k and v into, and bias: what is
    added to the joint attention's logits (see `attention`). activate: see `mlp`.
    """
    nx = backend_of(img, txt)
    img_mod = chunks(mod["img"], 6)  # shift, scale and gate of the attention, then of the MLP: (B, 1, D) each
    txt_mod = chunks(mod["txt"], 6)

    # prepare each stream for attention
    img_q, img_k, img_v = stream_qkv(p["img_attn"], img, img_mod)  # (B, H, I, K) each
    txt_q, txt_k, txt_v = stream_qkv(p["txt_attn"], txt, txt_mod)  # (B, H, T, K) each

    # one attention over both
    q = nx.concatenate([txt_q, img_q], axis=2)  # (B, H, T + I, K)
    k = nx.concatenate([txt_k, img_k], axis=2)
    v = nx.concatenate([txt_v, img_v], axis=2)
    attended = attention(q, k, v, pe, seen, bias)  # (B, T + I, D)
    txt_attended, img_attended = nx.split(attended, [txt.shape[1]], axis=1)

    # each stream on its own again
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_attended, img_mod, activate)
    txt = finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_attended, txt_mod, activate)
    return img, txt


def stream_qkv(attn: Tree, x: Array, mod: list[Array]) -> tuple[Array, Array, Array]:
    """Shift and scale a stream, and project it to q, k and v."""
    shift, scale, *_ = mod
    x = modulate(x, shift, scale)
    qkv = linear(x, **attn["qkv"])  # (B, L, 3 D)
    return normed_qkv(attn["norm"], qkv)


def finish_stream(
    attn: Tree, mlp_weights: Tree, x: Array, attended: Array, mod: list[Array], activate: Activation = gelu
) -> Array:
    """Add a stream's gated attention output, then its gated MLP."""
    *_, gate1, shift2, scale2, gate2 = mod
    x = x + gate1 * linear(attended, **attn["proj"])
    x_mod = modulate(x, shift2, scale2)
    return x + gate2 * mlp(mlp_weights, x_mod, activate)


@shaped
def single_block(
    p: Tree,
    x: Float[Array, "B L D"],
    mod: Float[Array, "B O"],
    pe: tuple,
    seen=None,
    bias=None,
    activate: Activation = gelu,
) -> Float[Array, "B L D"]:
    """Compute attention and MLP from one projection, and join them by another: x + gate · linear2(attention ‖ mlp).

    linear1 gives (q, k, v, mlp) of widths D, D, D and 4 D; linear2 takes 5 D. Running them side by side is due to
    Dehghani et al. 2023 (arXiv 2302.05442). mod: (B, 3 D); pe, seen, bias, activate: see `double_block`.
    """
    nx = backend_of(x, mod)
    shift, scale, gate = chunks(mod, 3)
    projected = linear(modulate(x, shift, scale), **p["linear1"])  # (B, L, 7 D)
    width = x.shape[-1] // p["linear2"].get("summed", 1)  # D; of processes that share the heads, each one's part of it
    qkv, hidden = nx.split(projected, [3 * width], axis=-1)  # (B, L, 3 D), (B, L, 4 D)

    # attention and MLP side by side
    attended = attention(*normed_qkv(p["norm"], qkv), pe, seen, bias)  # (B, L, D)
    both = nx.concatenate([attended, activate(hidden)], axis=-1)  # (B, L, 5 D)
    return x + gate * linear(both, **p["linear2"])


@shaped
def final_layer(p: Tree, x: Float[Array, "B I D"], mod: Float[Array, "B M"]) -> Float[Array, "B I O"]:
    """Apply the last modulated norm and the projection to velocity tokens.

    Its modulation is shift, scale in BFL's order. diffusers stores the two the other way round (`norm_out`).
    """
    shift, scale = chunks(mod, 2)
    x = modulate(x, shift, scale)
    return linear(x, **p["linear"])
