"""Adaptive layer norm: `vec`, which knows the time, the guidance and the prompt's gist, steers every layer.

For each place it yields a shift, a scale and a gate: the block sees (1 + scale) · LN(x) + shift, and what it computes
is added back times the gate. Source: Peebles & Xie 2022 (arXiv 2212.09748) §3.2; BFL `flux/modules/layers.py`.
"""

from collections.abc import Callable

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.layers import nothing
from minflux.model.linear import linear


@shaped
def modulations(p: Tree, vec: Float[Array, "B D"], on_block: Callable = nothing) -> Tree:
    """Compute all modulations of a transformer from `vec`, which is used for nothing else.

    Returns {"double": [{"img", "txt"}, …], "single": […], "final": …} with arrays (B, 6 D), (B, 3 D) and (B, 2 D).
    `vec` depends on time, guidance and prompt, all known before the first step: with the rows of all steps together,
    these matrices, more than a quarter of all weights, are read once an image in place of once a step. `on_block` is
    called with each block's arrays, so that MLX can compute them, and a matrix that is read only for this be forgotten.
    """
    double, single = p["double_blocks"], p["single_blocks"]
    mod: Tree = {"double": [], "single": [], "final": None}
    for i in range(len(double)):  # by number: to iterate over a streamed tree would prefetch whole blocks
        mod["double"].append({name: modulation(double[i][f"{name}_mod"], vec) for name in ("img", "txt")})
        on_block(*mod["double"][-1].values())
    for i in range(len(single)):
        mod["single"].append(modulation(single[i]["modulation"], vec))
        on_block(mod["single"][-1])
    mod["final"] = modulation(p["final_layer"]["adaLN_modulation"], vec)
    on_block(mod["final"])
    return mod


@shaped
def modulation(p: Tree, vec: Float[Array, "B D"]) -> Float[Array, "B O"]:
    """W · silu(vec) + b; the only layer in `p` is called "lin", or "1" in the final layer's list."""
    (layer,) = p.values()
    return linear(backend_of(vec).silu(vec), **layer)


@shaped
def chunks(mod: Float[Array, "B O"], count: int) -> list[Array]:
    """Cut a modulation into `count` arrays (B, 1, D): shift, scale, gate for one place, or twice that for two."""
    return backend_of(mod).split(mod[:, None], count, axis=-1)


@shaped
def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B L D"]:
    """(1 + scale) · LN(x) + shift, the norm without weights of its own (eps 1e-6)."""
    return backend_of(x).layer_norm(x, 1 + scale, shift)
