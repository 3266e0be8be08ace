"""Adaptive layer norm: `vec`, which knows the time, the guidance and the prompt's gist, steers every layer.

For each place it yields a shift, a scale and a gate: the block sees (1 + scale) · LN(x) + shift, and what it computes
is added back times the gate. Source: Peebles & Xie 2022 (arXiv 2212.09748) §3.2; BFL `flux/modules/layers.py`.
"""

from minflux.backend import backend_of
from minflux.model.layers import linear
from minflux.shapes import Array, Float, Tree, shaped


@shaped
def modulation(p: Tree, vec: Float[Array, "B D"], chunks: int) -> list[Array]:
    """Compute `chunks` arrays (B, 1, D) from `vec`: shift, scale, gate for one place, or twice that for two."""
    nx = backend_of(vec)
    return nx.split(linear(nx.silu(vec), **p["lin"])[:, None], chunks, axis=-1)


@shaped
def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B L D"]:
    """(1 + scale) · LN(x) + shift, the norm without weights of its own (eps 1e-6)."""
    return (1 + scale) * backend_of(x).layer_norm(x) + shift
