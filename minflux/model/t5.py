"""T5's encoder: the prompt, token by token, as `txt`.

An unusual transformer: no position embedding but a learned bias on the logits for each distance, no scaling of the
logits, RMSNorm, no linear biases, a gated MLP; and FLUX.1 runs it without a mask, so padding is attended to.
Source: Raffel et al. 2019 (arXiv 1910.10683), v1.1; transformers `modeling_t5.py`.
"""

import math
from dataclasses import dataclass

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import merge_heads, project_heads
from minflux.model.embeddings import embedding
from minflux.model.hooks import OnBlock, ignore
from minflux.model.linear import linear


@dataclass(frozen=True)
class T5Config:
    """The sizes of a T5 encoder, under the names of its config.json. d_kv is the width of a head."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


T5_XXL = T5Config()


def distance_bucket(distance: int, buckets: int, max_distance: int) -> int:
    """Number the bucket of a signed distance key - query: one each for the near, logarithmic for the far.

    Half of the buckets are for keys after the query. Of a half, the first half counts 0, 1, 2, …; the rest widen
    up to `max_distance`, and the last takes all beyond.

    >>> [distance_bucket(d, 32, 128) for d in (0, -1, -7, -8, -200, 1, 200)]
    [0, 1, 7, 8, 15, 17, 31]
    """
    half = buckets // 2
    offset = half if distance > 0 else 0
    distance = abs(distance)
    exact = half // 2
    if distance < exact:
        return offset + distance
    far = math.log(distance / exact) / math.log(max_distance / exact)  # 0 at `exact`, 1 at `max_distance`
    bucket = exact + int(far * (half - exact))
    return offset + min(bucket, half - 1)


@shaped
def position_bias(table: Float[Array, "N H"], length: int, cfg: T5Config) -> Float[Array, "1 H T T"]:
    """Look up each pair's bias for each head; every layer adds the same, though the table lies in the first."""
    nx = backend_of(table)
    sizes = cfg.relative_attention_num_buckets, cfg.relative_attention_max_distance
    distances = range(1 - length, length)
    buckets = nx.array([distance_bucket(distance, *sizes) for distance in distances], dtype=nx.int32)
    position = nx.arange(length)
    distance = position[None, :] - position[:, None]  # key - query, (T, T)
    bias = table[buckets[distance + length - 1]]  # (T, T, H)
    return bias.transpose(2, 0, 1)[None]


@shaped
def self_attention(p: Tree, x: Float[Array, "B T D"], bias: Array, head_dim: int) -> Float[Array, "B T D"]:
    """Compute softmax(q kᵀ + bias) v for every head: T5 has its scale folded into the weights."""
    nx = backend_of(x)
    q = project_heads(p["q"], x, head_dim)  # (B, H, T, K)
    k = project_heads(p["k"], x, head_dim)
    v = project_heads(p["v"], x, head_dim)
    attended = nx.attention(q, k, v, scale=1.0, bias=bias)
    attended = merge_heads(attended)  # (B, T, H·K)
    return linear(attended, **p["o"])


@shaped
def gated_mlp(p: Tree, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Compute wo(gelu(wi_0 x) · wi_1 x) (Shazeer 2020, arXiv 2002.05202).

    In a float16 model the weights of wo are float32, and so is the result, for T5-XXL's exceeds float16's 65504.
    """
    gate = linear(x, **p["wi_0"])  # (B, T, d_ff)
    gate = backend_of(x).gelu(gate)
    hidden = gate * linear(x, **p["wi_1"])
    return linear(hidden, **p["wo"])


@shaped
def t5_block(p: Tree, cfg: T5Config, x: Float[Array, "B T D"], bias: Array) -> Float[Array, "B T D"]:
    """Add self-attention, then the gated MLP, each of the normed x."""
    attn, mlp = p["layer"]
    h = norm(attn["layer_norm"], cfg, x)
    x = x + self_attention(attn["SelfAttention"], h, bias, cfg.d_kv)
    h = norm(mlp["layer_norm"], cfg, x)
    return x + gated_mlp(mlp["DenseReluDense"], h)


def norm(p: Tree, cfg: T5Config, x: Array) -> Array:
    """Apply RMSNorm, which T5's files call a layer norm; the result has its weight's dtype."""
    nx, weight = backend_of(x), p["weight"]
    return nx.rms_norm(x, weight, cfg.layer_norm_epsilon).astype(weight.dtype)


@shaped
def t5_encoder(p: Tree, cfg: T5Config, ids: Int[Array, "B T"], on_block: OnBlock = ignore) -> Float[Array, "B T D"]:
    """Encode token ids, padded with 0, to one vector a token: (B, T) -> (B, T, d_model).

    on_block: called after each block with its name and {"txt": (B, T, d_model)} (see `hooks`).
    """
    blocks = p["encoder"]["block"]
    first = blocks[0]["layer"][0]["SelfAttention"]
    bias = position_bias(first["relative_attention_bias"]["weight"], ids.shape[1], cfg)  # (1, H, T, T)
    x = embedding(ids, p["shared"]["weight"])  # (B, T, D)
    for i, block in enumerate(blocks):
        x = t5_block(block, cfg, x, bias)
        on_block(f"encoder.block.{i}", {"txt": x})
    return norm(p["encoder"]["final_layer_norm"], cfg, x)
