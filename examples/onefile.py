"""FLUX.1 on one page, in NumPy: a sentence becomes an image.

    python examples/onefile.py "a large owl on a green background" --seed 3

It opens any folder in the layout of diffusers; unless told, the small model that comes with minflux, and then takes a
second. Read it from top to bottom. The middle is what the reader of the course has built, word for word
(chapters/mine.py); before it stand the files and the two text encoders, after it the VAE and the drawing.

All is float32 here, so FLUX.1-dev itself (--model FOLDER) wants some 64 GB of memory, and hours. minflux does the same
sums with less of both; and it checks the files that it opens, where this page trusts them.

B images, I image tokens, T text tokens, L = T + I of both; width D in H heads of K numbers.
"""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
from PIL import Image

TINY = Path(__file__).parents[1] / "minflux" / "zoo" / "tiny"

# == Files: names and numbers ======================================================================================


def read_json(path):
    """Read a JSON file, or {} where there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def read_safetensors(path):
    """Read a file of 8 bytes (how long its table is), the table (JSON), and all numbers one after the other."""
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int(raw[:8].view("<u8")[0])
    table = json.loads(bytes(raw[8:start]))
    table.pop("__metadata__", None)
    return {name: as_float32(raw[start:], **entry) for name, entry in table.items()}


def as_float32(numbers, dtype, shape, data_offsets):
    """Cut one array from the bytes; bfloat16 is the upper half of a float32."""
    cut = numbers[slice(*data_offsets)]
    if dtype == "BF16":
        return (cut.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return cut.view({"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32).reshape(shape)


def nested(flat):
    """Make a tree of names: "a.0.b" is [a][0][b], with a list wherever the names count 0, 1, 2, …"""
    if "" in flat:
        return flat[""]
    branches = {}
    for name, array in flat.items():
        first, _, rest = name.partition(".")
        branches.setdefault(first, {})[rest] = array
    tree = {name: nested(branch) for name, branch in branches.items()}
    counted = [str(i) for i in range(len(tree))]
    return [tree[i] for i in counted] if set(tree) == set(counted) else tree


def read_network(folder):
    """Read a network's sizes and its weights: (config, tree)."""
    files = [read_safetensors(path) for path in sorted(folder.glob("*.safetensors"))]
    return read_json(folder / "config.json"), nested({name: array for file in files for name, array in file.items()})


# == The prompt becomes ids ========================================================================================


def clip_ids(folder, prompt, length):
    """Cut a prompt into CLIP's pieces, with a mark at its start and marks to the end: (1, length)."""
    if (folder / "tokenizer.json").exists():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:  # FLUX.1's folder has the pieces and how they merge, and leaves the rest to the code
        tokenizer = clip_tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return padded(tokenizer, prompt, length, "<|endoftext|>")


def clip_tokenizer(vocab, merges):
    """Put CLIP's tokenizer together: lower case, words, bytes, merges of pairs, a mark at both ends."""
    model = tokenizers.models.BPE.from_file(vocab, merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(model)
    spaces = tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    steps = [tokenizers.normalizers.NFC(), spaces, tokenizers.normalizers.Lowercase()]
    tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    word = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    words = tokenizers.pre_tokenizers.Split(word, "removed", invert=True)
    in_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, in_bytes])
    start, end = ((mark, tokenizer.token_to_id(mark)) for mark in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(end, start, add_prefix_space=False)
    return tokenizer


def t5_ids(folder, prompt, length):
    """Cut a prompt into T5's pieces, with a mark at its end and padding after it: (1, length)."""
    return padded(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), prompt, length, "<pad>")


def padded(tokenizer, prompt, length, pad):
    """Return a prompt's ids, cut or padded to one length: (1, length)."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return np.array([tokenizer.encode(prompt).ids])


# == What the chapters build ======================================================================================

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


# == The ids become meaning: CLIP and T5 ===========================================================================


def quick_gelu(x):
    """Compute x · sigmoid(1.702 x), CLIP's stand-in for GELU."""
    return silu(1.702 * x) / 1.702


def projected(p, x, heads):
    """Make one head's width of each token, for each head: (B, L, D) -> (B, H, L, K)."""
    return split_heads(linear(x, **p), heads)


def clip(cfg, p, ids):
    """Read the whole prompt into one vector, `y`: (B, T) -> (B, P)."""
    p, heads = p["text_model"], cfg["num_attention_heads"]
    tokens, places = (p["embeddings"][name]["weight"] for name in ("token_embedding", "position_embedding"))
    x = tokens[ids] + places[: ids.shape[1]]  # (B, T, P)
    unseen = -30_000 * np.triu(np.ones(2 * ids.shape[1:], np.float32), 1)  # (T, T): what comes later
    for layer in p["encoder"]["layers"]:
        h, attn = clip_norm(layer["layer_norm1"], x), layer["self_attn"]
        q, k, v = (projected(attn[f"{name}_proj"], h, heads) for name in "qkv")  # (B, H, T, K)
        x = x + linear(merge_heads(attention(q, k, v, unseen)), **attn["out_proj"])
        h = clip_norm(layer["layer_norm2"], x)
        x = x + linear(quick_gelu(linear(h, **layer["mlp"]["fc1"])), **layer["mlp"]["fc2"])
    x = clip_norm(p["final_layer_norm"], x)
    return x[:, ids[0].argmax()]  # at the first end mark, which has the largest id and has seen all


def clip_norm(p, x):
    """Norm the tokens, with a scale and a bias that were learned."""
    return layer_norm(x, 1e-5) * p["weight"] + p["bias"]


def t5(cfg, p, ids):
    """Read the prompt into one vector for each piece, `txt`: (B, T) -> (B, T, E)."""
    heads, width, blocks = cfg["num_heads"], cfg["d_kv"], p["encoder"]["block"]
    table = blocks[0]["layer"][0]["SelfAttention"]["relative_attention_bias"]["weight"]  # (32, H)
    apart = np.arange(ids.shape[1]) - np.arange(ids.shape[1])[:, None]  # (T, T), key - query
    bias = table[distance_bucket(apart, len(table))].transpose(2, 0, 1)  # (H, T, T): all that T5 knows of places
    x = p["shared"]["weight"][ids]  # (B, T, E)
    for block in blocks:
        look, think = block["layer"]
        h, attn = rms_norm(x, look["layer_norm"]["weight"]), look["SelfAttention"]
        q, k, v = (projected(attn[name], h, heads) for name in "qkv")  # (B, H, T, K)
        x = x + linear(merge_heads(attention(q * math.sqrt(width), k, v, bias)), **attn["o"])  # T5 has no 1/√K
        h, gated = rms_norm(x, think["layer_norm"]["weight"]), think["DenseReluDense"]
        x = x + linear(gelu(linear(h, **gated["wi_0"])) * linear(h, **gated["wi_1"]), **gated["wo"])
    return rms_norm(x, p["encoder"]["final_layer_norm"]["weight"])


def distance_bucket(apart, buckets, farthest=128):
    """Number distances: one bucket each for the near, ever wider ones for the far, half of them for later keys."""
    half, exact = buckets // 2, buckets // 4
    far = np.log(np.maximum(abs(apart), exact) / exact) / math.log(farthest / exact)  # 0 at exact, 1 at farthest
    wide = np.minimum(exact + (far * (half - exact)).astype(int), half - 1)
    return np.where(abs(apart) < exact, abs(apart), wide) + half * (apart > 0)


# == One model, two spellings: diffusers' names become BFL's =======================================================


def joined(*layers):
    """Put linear maps of one input below each other, as one map."""
    return {name: np.concatenate([layer[name] for layer in layers]) for name in layers[0]}


def qk_scales(query, key):
    """Name the scales of QK-norm."""
    return {"query_norm": {"scale": query["weight"]}, "key_norm": {"scale": key["weight"]}}


def attention_names(q, k, v, query_norm, key_norm, out):
    """Name one stream's attention."""
    return {"qkv": joined(q, k, v), "norm": qk_scales(query_norm, key_norm), "proj": out}


def double_names(p):
    """Name a double-stream block's weights as BFL does."""
    a, ff, ff_txt = p["attn"], p["ff"]["net"], p["ff_context"]["net"]
    img = a["to_q"], a["to_k"], a["to_v"], a["norm_q"], a["norm_k"], a["to_out"][0]
    txt = a["add_q_proj"], a["add_k_proj"], a["add_v_proj"], a["norm_added_q"], a["norm_added_k"], a["to_add_out"]
    return {
        "img_mod": {"lin": p["norm1"]["linear"]},
        "txt_mod": {"lin": p["norm1_context"]["linear"]},
        "img_attn": attention_names(*img),
        "txt_attn": attention_names(*txt),
        "img_mlp": {"0": ff["0"]["proj"], "2": ff["2"]},
        "txt_mlp": {"0": ff_txt["0"]["proj"], "2": ff_txt["2"]},
    }


def single_names(p):
    """Name a single-stream block's weights as BFL does."""
    a = p["attn"]
    return {
        "modulation": {"lin": p["norm"]["linear"]},
        "linear1": joined(a["to_q"], a["to_k"], a["to_v"], p["proj_mlp"]),
        "norm": qk_scales(a["norm_q"], a["norm_k"]),
        "linear2": p["proj_out"],
    }


def flux_names(p):
    """Name a transformer's weights as BFL does; the last scale and shift change places, too."""
    embedders = {"time_in": "timestep", "guidance_in": "guidance", "vector_in": "text"}
    ins = {ours: p["time_text_embed"].get(f"{theirs}_embedder") for ours, theirs in embedders.items()}
    last = {name: np.roll(array, len(array) // 2, axis=0) for name, array in p["norm_out"]["linear"].items()}
    return {
        "img_in": p["x_embedder"],
        "txt_in": p["context_embedder"],
        **{name: {"in_layer": e["linear_1"], "out_layer": e["linear_2"]} for name, e in ins.items() if e},
        "double_blocks": [double_names(block) for block in p["transformer_blocks"]],
        "single_blocks": [single_names(block) for block in p["single_transformer_blocks"]],
        "final_layer": {"adaLN_modulation": {"1": last}, "linear": p["proj_out"]},
    }


# == Latents become an image: the VAE's decoder ====================================================================


def conv(x, weight, bias):
    """Convolve, keeping height and width: (B, H, W, C) -> (B, H, W, O), the weight being (O, C, side, side)."""
    (_, height, width, _), side = x.shape, weight.shape[-1]
    x = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)))
    shifts = [(i, j) for i in range(side) for j in range(side)]
    return sum(x[:, i : i + height, j : j + width] @ weight[:, :, i, j].T for i, j in shifts) + bias


def group_norm(x, weight, bias, groups):
    """Norm each group of channels over all pixels: (B, H, W, C) -> the same."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height * width, groups, channels // groups)
    x = x - x.mean(axis=(1, 3), keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=(1, 3), keepdims=True) + 1e-6)
    return x.reshape(batch, height, width, channels) * weight + bias


def resnet(p, x, groups):
    """Add what two convolutions make of x: (B, H, W, C) -> (B, H, W, O)."""
    h = conv(silu(group_norm(x, **p["norm1"], groups=groups)), **p["conv1"])
    h = conv(silu(group_norm(h, **p["norm2"], groups=groups)), **p["conv2"])
    return h + (conv(x, **p["conv_shortcut"]) if "conv_shortcut" in p else x)


def pixel_attention(p, x, groups):
    """Let every pixel look at every other: (B, H, W, C) -> the same."""
    h = group_norm(x, **p["group_norm"], groups=groups).reshape(len(x), 1, -1, x.shape[-1])  # one head
    q, k, v = (linear(h, **p[name]) for name in ("to_q", "to_k", "to_v"))
    return x + linear(attention(q, k, v), **p["to_out"][0]).reshape(x.shape)


def decode(cfg, p, latents):
    """Decode latents to pixels: (B, h, w, 16) -> (B, 8 h, 8 w, 3) in [-1, 1]."""
    groups, p = cfg["norm_num_groups"], p["decoder"]
    x = conv(latents / cfg["scaling_factor"] + cfg["shift_factor"], **p["conv_in"])
    first, second = p["mid_block"]["resnets"]
    x = pixel_attention(p["mid_block"]["attentions"][0], resnet(first, x, groups), groups)
    x = resnet(second, x, groups)
    for block in p["up_blocks"]:
        for each in block["resnets"]:
            x = resnet(each, x, groups)
        if "upsamplers" in block:  # all but the last
            x = x.repeat(2, axis=1).repeat(2, axis=2)  # (B, 2 H, 2 W, C)
            x = conv(x, **block["upsamplers"][0]["conv"])
    return conv(silu(group_norm(x, **p["conv_norm_out"], groups=groups)), **p["conv_out"])


# == Drawing =======================================================================================================


def noise(seed, shape):
    """Draw PyTorch's normal numbers: Box and Muller's formula, on uniforms that lie eight apart in blocks of 16."""
    twister = np.random.MT19937(0)
    np.random.RandomState(twister).seed(seed)
    u = (twister.random_raw(math.prod(shape)) & 0xFFFFFF).astype(np.float32).reshape(-1, 2, 8) * np.float32(2**-24)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, 0])), np.float32(2 * math.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(shape)


def shift_of(scheduler, tokens):
    """Say how far the steps lean towards the noise; in FLUX.1-dev larger images have more of them there."""
    if not scheduler.get("use_dynamic_shifting"):
        return scheduler.get("shift", 1.0)
    least, most = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
    share = (tokens - least) / (most - least)
    return math.exp(scheduler["base_shift"] + share * (scheduler["max_shift"] - scheduler["base_shift"]))


def settings_of(folder, knows_guidance):
    """Return how a model is usually sampled: as FLUX.1-dev or -schnell, unless its folder says otherwise."""
    usual = {"steps": 28, "guidance": 3.5, "text_length": 512} if knows_guidance else {}
    schnell = {"width": 1024, "height": 1024, "steps": 4, "guidance": 1.0, "text_length": 256}
    return schnell | usual | read_json(folder / "minflux.json")


def encode(folder, prompts, length):
    """Read prompts with both text encoders: CLIP's y (B, P) and T5's txt (B, T, E)."""
    cfg, p = read_network(folder / "text_encoder")
    y = [clip(cfg, p, clip_ids(folder / "tokenizer", each, cfg["max_position_embeddings"])) for each in prompts]
    cfg, p = read_network(folder / "text_encoder_2")
    txt = [t5(cfg, p, t5_ids(folder / "tokenizer_2", each, length)) for each in prompts]
    return np.concatenate(y), np.concatenate(txt)


def draw(folder, prompt, seed=0, **wanted):
    """Draw the image of a sentence, with other settings than the model's where they are given: (H, W, 3) uint8."""
    knows_guidance = read_json(folder / "transformer" / "config.json")["guidance_embeds"]
    settings = settings_of(folder, knows_guidance) | wanted
    height, width, strength = settings["height"] // 8, settings["width"] // 8, settings["guidance"]  # of the latents
    prompts = [prompt] if knows_guidance or strength == 1 else [prompt, ""]  # B is 1 or 2
    y, txt = encode(folder, prompts, settings["text_length"])  # (B, P), (B, T, E)
    cfg, p = read_network(folder / "transformer")
    p = flux_names(p)
    pe = rope(position_ids(txt.shape[1], height, width), cfg["axes_dims_rope"])  # two of (1, 1, L, K/2)

    def velocity(x, t):  # (1, h, w, 16) -> the same
        vec = condition(p, np.float32([t]), y, np.float32([strength]) if knows_guidance else None)  # (B, D)
        tokens = np.concatenate([pack(x)] * len(prompts))  # (B, I, 64)
        v = unpack(flux(p, tokens, txt, vec, pe), height, width)
        return v if len(prompts) == 1 else guided(v, strength)

    x = noise(seed, (1, cfg["in_channels"] // 4, height, width)).transpose(0, 2, 3, 1)  # (1, h, w, 16)
    shift = shift_of(read_json(folder / "scheduler" / "scheduler_config.json"), height * width // 4)
    x = euler(velocity, x, timesteps(settings["steps"], shift))
    pixels = decode(*read_network(folder / "vae"), x)[0]  # (H, W, 3) in [-1, 1]
    return np.round(np.clip(pixels, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def main():
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default="a large owl on a green background")
    parser.add_argument("--model", type=Path, default=TINY, help="a folder in the layout of diffusers")
    parser.add_argument("--out", default="onefile.png")
    for name, kind in {"seed": int, "steps": int, "guidance": float, "width": int, "height": int}.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    folder, prompt, out = (options.pop(name) for name in ("model", "prompt", "out"))
    Image.fromarray(draw(folder, prompt, **options)).save(out)
    print(f"{out}: {prompt}")


if __name__ == "__main__":
    main()
