"""CLIP's text encoder: the whole prompt as one vector, `y`.

A plain causal transformer with learned positions. The state at the first end-of-text token has seen the whole prompt,
and stands for it. Source: Radford et al. 2021 (arXiv 2103.00020); transformers `modeling_clip.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import merge_heads, split_heads
from minflux.model.embeddings import embedding
from minflux.model.layers import nothing
from minflux.model.linear import linear


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a CLIP text encoder, under the names of its config.json. eos_token_id marks the end of the text."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


CLIP_L = CLIPConfig()


def quick_gelu(x: Array) -> Array:
    """x · sigmoid(1.702 x), CLIP's stand-in for GELU."""
    return x * backend_of(x).sigmoid(1.702 * x)


def causal_mask(like: Array, length: int) -> Array:
    """Make (1, 1, T, T) that is 0 where key <= query and a large negative number above: later tokens are unseen."""
    nx = backend_of(like)
    i = nx.arange(length)
    unseen = (i[None, :] > i[:, None]).astype(like.dtype)
    return (unseen * -30000.0)[None, None]


@shaped
def self_attention(p: Tree, x: Float[Array, "B T D"], mask: Array, heads: int) -> Float[Array, "B T D"]:
    """Causal multi-head attention with biases on all four projections."""
    head_dim = x.shape[-1] // heads
    q, k, v = (split_heads(linear(x, **p[f"{name}_proj"]), head_dim) for name in "qkv")
    return linear(merge_heads(backend_of(x).attention(q, k, v, bias=mask)), **p["out_proj"])


@shaped
def clip_encoder(
    p: Tree, cfg: CLIPConfig, ids: Int[Array, "B T"], after_block: Callable = nothing
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
    """Encode token ids to (states, pooled): (B, T, D), and (B, D) at each row's first end-of-text token.

    after_block is called with what each layer gave (see `velocity`).
    """
    nx = backend_of(ids)
    p = p["text_model"]

    def norm(x, weights):
        return nx.layer_norm(x, weights["weight"], weights["bias"], cfg.layer_norm_eps)

    x = embedding(ids, p["embeddings"]["token_embedding"]["weight"])
    x = x + p["embeddings"]["position_embedding"]["weight"][: ids.shape[1]]
    mask = causal_mask(x, ids.shape[1])
    for layer in p["encoder"]["layers"]:
        h = norm(x, layer["layer_norm1"])
        x = x + self_attention(layer["self_attn"], h, mask, cfg.num_attention_heads)
        h = norm(x, layer["layer_norm2"])
        x = x + linear(quick_gelu(linear(h, **layer["mlp"]["fc1"])), **layer["mlp"]["fc2"])
        after_block(x)
    x = norm(x, p["final_layer_norm"])
    end = nx.argmax((ids == cfg.eos_token_id).astype(nx.int32), axis=1)
    return x, x[nx.arange(ids.shape[0]), end]
