"""FLUX.1, as its reader builds it: the functions that the chapters end with, in NumPy alone.

Each chapter's last exercise is the function below its title here. Put yours in its place; where you skip one, this one
stands in for it. Chapter 09 draws with this file in place of minflux's model. A weight tree `p` has the names of a
checkpoint, so that `linear(x, **p["img_in"])` is all the loading there is.

B images, I image tokens, T text tokens, L = T + I of both; width D in H heads of K numbers.
"""

import math
from itertools import pairwise

import numpy as np

# -- The map: from a prompt to a picture ---------------------------------------------------------------------------


def guided(v, scale):
    """Go `scale` times as far from the empty prompt's velocity as the prompt's goes: (2 B, ...) -> (B, ...)."""
    prompt, empty = np.split(v, 2)
    return empty + scale * (prompt - empty)


# -- Straight paths ------------------------------------------------------------------------------------------------


def timesteps(steps, shift):
    """List the times 1 = t₀ > t₁ > … > 0 at which to stop; a shift over 1 has more of them near the noise."""
    t = np.linspace(1, 1 / steps, steps)
    t = shift * t / (1 + (shift - 1) * t)
    return np.append(t, 0).astype(np.float32).tolist()  # steps + 1


def euler(velocity, x, times):
    """Follow the velocity from noise to latents, straight on from each time to the next."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
    return x


# -- Telling time --------------------------------------------------------------------------------------------------


def linear(x, weight, bias=0.0):
    """Map the last axis: (..., in) -> (..., out), the weight being (out, in)."""
    return x @ weight.T + bias


def silu(x):
    """Compute x / (1 + e^-x), about x above 0 and about 0 below; by tanh, which never overflows."""
    return 0.5 * x * (1 + np.tanh(0.5 * x))


def sinusoids(t, dim=256):
    """Turn each number of t (B,) into the cosines and sines of 1000 t at dim/2 speeds: (B, dim)."""
    speeds = np.exp(-math.log(10_000) * np.arange(dim // 2, dtype=np.float32) / (dim // 2))
    angles = 1000 * t[:, None] * speeds  # (B, dim/2)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def embedder(p, x):
    """Apply Linear, SiLU, Linear, into the model's width: (B, in) -> (B, D)."""
    return linear(silu(linear(x, **p["in_layer"])), **p["out_layer"])


def condition(p, t, y, guidance=None):
    """Make `vec`, all that steers the blocks, of time (B,), pooled text (B, P) and guidance (B,): (B, D)."""
    vec = embedder(p["time_in"], sinusoids(t)) + embedder(p["vector_in"], y)
    return vec if guidance is None else vec + embedder(p["guidance_in"], sinusoids(guidance))


# -- From latents to tokens ----------------------------------------------------------------------------------------


def pack(x):
    """Cut latents into tokens of 2×2: (B, 2h, 2w, C) -> (B, h·w, C·2·2)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)  # (B, h, 2, w, 2, C)
    x = x.transpose(0, 1, 3, 5, 2, 4)  # (B, h, w, C, 2, 2)
    return x.reshape(batch, height * width // 4, channels * 4)


def unpack(tokens, height, width):
    """Put tokens back into latents of height × width: (B, I, C·2·2) -> (B, height, width, C)."""
    batch, _, numbers = tokens.shape
    x = tokens.reshape(batch, height // 2, width // 2, numbers // 4, 2, 2)  # (B, h, w, C, 2, 2)
    x = x.transpose(0, 1, 4, 2, 5, 3)  # (B, h, 2, w, 2, C)
    return x.reshape(batch, height, width, numbers // 4)


def position_ids(texts, height, width):
    """Number the joint list: (0, 0, 0) for each word, (0, row, column) for each token: (1, T + I, 3)."""
    row, column = np.indices((height // 2, width // 2)).reshape(2, -1)  # (I,) each
    image = np.stack([0 * row, row, column], axis=-1)  # (I, 3)
    return np.concatenate([np.zeros((texts, 3), int), image])[None]


# -- Attention -----------------------------------------------------------------------------------------------------


def softmax(x):
    """Turn the last axis into shares that sum to 1: e^x / Σ e^x, the largest x taken off first."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v, bias=0.0):
    """Let each token take a mixture of all values, softmax(q kᵀ / √K + bias) v: (B, H, L, K) each -> the same."""
    products = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, L, L): one for each pair
    return softmax(products + bias) @ v  # (B, H, L, K)


def split_heads(x, heads):
    """Cut each token into heads: (B, L, H·K) -> (B, H, L, K)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def merge_heads(x):
    """Put the heads side by side again: (B, H, L, K) -> (B, L, H·K)."""
    batch, heads, length, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * width)


def gelu(x):
    """Bend numbers as the MLPs do: about 0 below, about x above; the tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def mlp(p, x):
    """Think about each token on its own, at four times the width: (B, L, D) -> (B, L, D)."""
    return linear(gelu(linear(x, **p["0"])), **p["2"])


# -- Rotary positions ----------------------------------------------------------------------------------------------


def rope(ids, axes_dim, theta=10_000):
    """Make the rotation of each token, a third id · frequency each: cos and sin, (B, 1, L, K/2) each."""
    rates = [theta ** (-np.arange(0, dim, 2) / dim) for dim in axes_dim]  # (dim/2,) for each axis
    angles = np.concatenate([ids[..., i, None] * rate for i, rate in enumerate(rates)], axis=-1)  # (B, L, K/2)
    return np.cos(angles)[:, None].astype(np.float32), np.sin(angles)[:, None].astype(np.float32)


def turn(x, pe):
    """Turn each pair of neighbours (a, b) by its angle: (B, H, L, K) -> the same."""
    cos, sin = pe
    a, b = x[..., 0::2], x[..., 1::2]  # (B, H, L, K/2) each
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


# -- AdaLN ---------------------------------------------------------------------------------------------------------


def layer_norm(x, eps=1e-6):
    """Take off each token's mean, and divide it by its standard deviation."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def modulation(p, vec, count):
    """Ask `vec` for shifts, scales and gates, `count` in all: (B, D) -> (B, 1, D) each."""
    return np.split(linear(silu(vec), **p)[:, None], count, axis=-1)


def modulate(x, shift, scale):
    """Norm the tokens, then stretch and move them as `vec` says: (B, L, D) -> the same."""
    return (1 + scale) * layer_norm(x) + shift


# -- The double-stream block ---------------------------------------------------------------------------------------


def rms_norm(x, scale, eps=1e-6):
    """Bring each vector to length √K, then stretch its numbers by the learned scale (K,)."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * scale


def queries_keys_values(norm, qkv):
    """Cut (B, L, 3 D) into q, k and v of (B, H, L, K), and norm q and k."""
    query_scale, key_scale = norm["query_norm"]["scale"], norm["key_norm"]["scale"]  # (K,) each
    heads = qkv.shape[-1] // (3 * len(query_scale))
    q, k, v = (split_heads(x, heads) for x in np.split(qkv, 3, axis=-1))
    return rms_norm(q, query_scale), rms_norm(k, key_scale), v


def stream_qkv(attn, x, mod):
    """Norm, shift and scale a stream, and ask it for queries, keys and values: (B, L, D) -> three (B, H, L, K)."""
    shift, scale, *_ = mod
    return queries_keys_values(attn["norm"], linear(modulate(x, shift, scale), **attn["qkv"]))


def finish_stream(attn, p, x, heard, mod):
    """Add what a stream heard, then what its MLP makes of it, each times its gate: (B, L, D) -> the same."""
    *_, gate, shift, scale, gate_mlp = mod
    x = x + gate * linear(heard, **attn["proj"])
    return x + gate_mlp * mlp(p, modulate(x, shift, scale))


def double_block(p, img, txt, vec, pe):
    """Keep image and text apart, each with its own weights, but for one attention over both: (img, txt)."""
    img_mod, txt_mod = (modulation(p[f"{s}_mod"]["lin"], vec, 6) for s in ("img", "txt"))  # 6 of (B, 1, D) each
    pairs = zip(stream_qkv(p["txt_attn"], txt, txt_mod), stream_qkv(p["img_attn"], img, img_mod), strict=True)
    q, k, v = (np.concatenate(pair, axis=2) for pair in pairs)  # (B, H, T + I, K) each
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))  # (B, T + I, D)
    txt_heard, img_heard = np.split(mixed, [txt.shape[1]], axis=1)  # (B, T, D), (B, I, D)
    img = finish_stream(p["img_attn"], p["img_mlp"], img, img_heard, img_mod)
    return img, finish_stream(p["txt_attn"], p["txt_mlp"], txt, txt_heard, txt_mod)


# -- The single-stream block ---------------------------------------------------------------------------------------


def single_block(p, x, vec, pe):
    """Treat text and image as one list, with attention and MLP side by side: (B, L, D) -> the same."""
    shift, scale, gate = modulation(p["modulation"]["lin"], vec, 3)
    first = linear(modulate(x, shift, scale), **p["linear1"])  # (B, L, 7 D)
    qkv, hidden = np.split(first, [3 * x.shape[-1]], axis=-1)  # (B, L, 3 D), (B, L, 4 D)
    q, k, v = queries_keys_values(p["norm"], qkv)
    mixed = merge_heads(attention(turn(q, pe), turn(k, pe), v))  # (B, L, D)
    return x + gate * linear(np.concatenate([mixed, gelu(hidden)], axis=-1), **p["linear2"])


# -- Assembly ------------------------------------------------------------------------------------------------------


def flux(p, img, txt, vec, pe):
    """Predict the velocity of each image token: (B, I, 64) and T5's (B, T, E) -> (B, I, 64)."""
    img, txt = linear(img, **p["img_in"]), linear(txt, **p["txt_in"])  # (B, I, D), (B, T, D)
    for block in p["double_blocks"]:
        img, txt = double_block(block, img, txt, vec, pe)
    x = np.concatenate([txt, img], axis=1)  # (B, T + I, D)
    for block in p["single_blocks"]:
        x = single_block(block, x, vec, pe)
    last = p["final_layer"]
    shift, scale = modulation(last["adaLN_modulation"]["1"], vec, 2)
    return linear(modulate(x[:, txt.shape[1] :], shift, scale), **last["linear"])  # (B, I, 64)
