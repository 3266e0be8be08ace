"""Attention as FLUX.1 does it: queries and keys normalised per head, then rotated by their positions."""

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.rope import apply_rope


@shaped
def split_heads(x: Float[Array, "B L C"], head_dim: int) -> Float[Array, "B H L K"]:
    """Cut the channels into heads of `head_dim`: (B, L, H·K) -> (B, H, L, K)."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


@shaped
def merge_heads(x: Float[Array, "B H L K"]) -> Float[Array, "B L C"]:
    """Undo `split_heads`: (B, H, L, K) -> (B, L, H·K)."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


@shaped
def qk_norm(p: Tree, q: Float[Array, "B H L K"], k: Float[Array, "B H L K"]) -> tuple[Array, Array]:
    """RMSNorm of each head's queries and keys, so that their products stay bounded (eps 1e-6)."""
    nx = backend_of(q)
    return nx.rms_norm(q, p["query_norm"]["scale"]), nx.rms_norm(k, p["key_norm"]["scale"])


@shaped
def normed_qkv(norm: Tree, qkv: Float[Array, "B L C"]) -> tuple[Array, Array, Array]:
    """Cut a joint projection (B, L, 3·H·K) into q, k, v of (B, H, L, K), and normalise q and k.

    The head width K is the length of the norm's scale.
    """
    head_dim = norm["query_norm"]["scale"].shape[0]
    q, k, v = (split_heads(x, head_dim) for x in backend_of(qkv).split(qkv, 3, axis=-1))
    return *qk_norm(norm, q, k), v


@shaped
def attention(
    q: Float[Array, "B H L K"], k: Float[Array, "B H L K"], v: Float[Array, "B H L K"], pe: tuple
) -> Float[Array, "B L C"]:
    """Rotate q and k by `pe`, attend, and put the heads side by side again."""
    nx = backend_of(q)
    return merge_heads(nx.attention(apply_rope(q, pe), apply_rope(k, pe), v))
