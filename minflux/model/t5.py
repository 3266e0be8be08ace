"""T5's encoder: the prompt, token by token, as `txt`.

An unusual transformer: no position embedding but a learned bias on the logits for each distance, no scaling of the
logits, RMSNorm, no linear biases, a gated MLP; and FLUX.1 runs it without a mask, so padding is attended to.
Source: Raffel et al. 2019 (arXiv 1910.10683), v1.1; transformers `modeling_t5.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import merge_heads, split_heads
from minflux.model.embeddings import embedding
from minflux.model.layers import nothing
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
    offset, distance = (half if distance > 0 else 0), abs(distance)
    exact = half // 2
    if distance < exact:
        return offset + distance
    steps = math.log(distance / exact) / math.log(max_distance / exact) * (half - exact)
    return offset + min(exact + int(steps), half - 1)


@shaped
def position_bias(table: Float[Array, "N H"], length: int, cfg: T5Config) -> Float[Array, "1 H T T"]:
    """Look up each pair's bias for each head; every layer adds the same, though the table lies in the first."""
    nx = backend_of(table)
    sizes = cfg.relative_attention_num_buckets, cfg.relative_attention_max_distance
    by_distance = [distance_bucket(d, *sizes) for d in range(1 - length, length)]
    buckets = [by_distance[length - 1 - query : 2 * length - 1 - query] for query in range(length)]  # key - query
    return table[nx.array(buckets, dtype=nx.int32)].transpose(2, 0, 1)[None]


@shaped
def self_attention(p: Tree, x: Float[Array, "B T D"], bias: Array, head_dim: int) -> Float[Array, "B T D"]:
    """softmax(q kᵀ + bias) v: no scale, it is folded into the weights."""
    q, k, v = (split_heads(linear(x, **p[name]), head_dim) for name in "qkv")
    return linear(merge_heads(backend_of(x).attention(q, k, v, scale=1.0, bias=bias)), **p["o"])


@shaped
def gated_mlp(p: Tree, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """wo(gelu(wi_0 x) · wi_1 x) (Shazeer 2020, arXiv 2002.05202)."""
    return linear(backend_of(x).gelu(linear(x, **p["wi_0"])) * linear(x, **p["wi_1"]), **p["wo"])


@shaped
def t5_encoder(
    p: Tree, cfg: T5Config, ids: Int[Array, "B T"], after_block: Callable = nothing
) -> Float[Array, "B T D"]:
    """Encode token ids, padded with 0, to one vector a token: (B, T) -> (B, T, d_model).

    after_block is called with what each block gave (see `velocity`).
    """
    nx = backend_of(ids)
    blocks, eps = p["encoder"]["block"], cfg.layer_norm_epsilon
    table = blocks[0]["layer"][0]["SelfAttention"]["relative_attention_bias"]["weight"]
    bias = position_bias(table, ids.shape[1], cfg)
    x = embedding(ids, p["shared"]["weight"])
    for block in blocks:
        attn, ff = block["layer"]
        x = x + self_attention(attn["SelfAttention"], nx.rms_norm(x, attn["layer_norm"]["weight"], eps), bias, cfg.d_kv)
        x = x + gated_mlp(ff["DenseReluDense"], nx.rms_norm(x, ff["layer_norm"]["weight"], eps))
        after_block(x)
    return nx.rms_norm(x, p["encoder"]["final_layer_norm"]["weight"], eps)
