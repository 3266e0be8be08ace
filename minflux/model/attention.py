"""Attention as FLUX.1 does it: queries and keys normalised per head, then rotated by their positions."""

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.linear import linear
from minflux.model.rope import apply_rope


@shaped
def split_heads(x: Float[Array, "B L C"], head_dim: int) -> Float[Array, "B H L K"]:
    """Cut the channels into heads of `head_dim`: (B, L, H·K) -> (B, H, L, K)."""
    batch, length, channels = x.shape
    heads = x.reshape(batch, length, channels // head_dim, head_dim)
    return heads.swapaxes(1, 2)


@shaped
def project_heads(p: Tree, x: Float[Array, "B L D"], head_dim: int) -> Float[Array, "B H L K"]:
    """Project x by the linear layer `p`, and cut the result into heads of `head_dim`."""
    y = linear(x, **p)  # (B, L, H·K)
    return split_heads(y, head_dim)


@shaped
def merge_heads(x: Float[Array, "B H L K"]) -> Float[Array, "B L C"]:
    """Put the heads side by side again, and so undo `split_heads`: (B, H, L, K) -> (B, L, H·K)."""
    batch, heads, length, head_dim = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * head_dim)


@shaped
def qk_norm(p: Tree, q: Float[Array, "B H L K"], k: Float[Array, "B H L K"]) -> tuple[Array, Array]:
    """Normalise each head's queries and keys by RMSNorm, so that their products stay bounded (eps 1e-6)."""
    nx = backend_of(q)
    q = nx.rms_norm(q, p["query_norm"]["scale"])
    k = nx.rms_norm(k, p["key_norm"]["scale"])
    return q, k


@shaped
def split_qkv(qkv: Float[Array, "B L C"], head_dim: int) -> tuple[Array, Array, Array]:
    """Cut a joint projection (B, L, 3·H·K) into q, k, v of (B, H, L, K), K being `head_dim`."""
    q, k, v = backend_of(qkv).split(qkv, 3, axis=-1)  # (B, L, H·K) each
    return split_heads(q, head_dim), split_heads(k, head_dim), split_heads(v, head_dim)


@shaped
def normed_qkv(norm: Tree, qkv: Float[Array, "B L C"]) -> tuple[Array, Array, Array]:
    """Cut a joint projection (B, L, 3·H·K) into q, k, v of (B, H, L, K), and normalise q and k.

    The head width K is the length of the norm's scale.
    """
    (head_dim,) = norm["query_norm"]["scale"].shape
    q, k, v = split_qkv(qkv, head_dim)
    q, k = qk_norm(norm, q, k)
    return q, k, v


@shaped
def attention(
    q: Float[Array, "B H L K"],
    k: Float[Array, "B H L K"],
    v: Float[Array, "B H L K"],
    pe: tuple | None,
    seen=None,
    bias=None,
) -> Float[Array, "B L C"]:
    """Rotate q and k by `pe`, unless it is None, attend, and put the heads side by side again.

    The rotated q and k, and v, are written into the dict `seen` if there is one. bias: what is added to the logits,
    broadcast to (B, H, L, L), or None.
    """
    if pe is not None:
        q, k = apply_rope(q, pe), apply_rope(k, pe)
    if seen is not None:
        seen.update(q=q, k=k, v=v)
    attended = backend_of(q).attention(q, k, v, bias=bias)  # (B, H, L, K)
    return merge_heads(attended)


@shaped
def attention_weights(q: Float[Array, "B H L K"], k: Float[Array, "B H M K"]) -> Float[Array, "B H L M"]:
    """Compute softmax(q kᵀ / √K), the share that each query (a row) takes of each key's value; rows sum to 1.

    The blocks themselves never hold these L² numbers a head. Take the q and k that `on_block` shows (see `velocity`);
    of a long sequence, some of the queries at a time.
    """
    nx = backend_of(q, k)
    scaled = q * q.shape[-1] ** -0.5
    logits = scaled @ k.swapaxes(-1, -2)
    return nx.softmax(logits)
