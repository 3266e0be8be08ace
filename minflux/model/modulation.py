"""Adaptive layer norm: `vec`, which knows the time, the guidance and the prompt's gist, steers every layer.

For each place it yields a shift, a scale and a gate: the block sees (1 + scale) · LN(x) + shift, and what it computes
is added back times the gate. Source: Peebles & Xie 2022 (arXiv 2212.09748) §3.2; BFL `flux/modules/layers.py`.
"""

from collections.abc import Iterator
from typing import Any

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.hooks import OnBlock, ignore
from minflux.model.linear import linear


@shaped
def modulations(p: Tree, vec: Float[Array, "B D"], on_block: OnBlock = ignore) -> Tree:
    """Compute all modulations of a transformer from `vec`, which is used for nothing else.

    Returns {"double": [{"img", "txt"}, …], "single": […], "final": …} with arrays (B, 6 D), (B, 3 D) and (B, 2 D);
    SD3 has no single blocks, and in some double ones other numbers of D.
    `vec` depends on time, guidance and prompt, all known before the first step: with the rows of all steps together,
    these matrices, more than a quarter of all weights, are read once an image in place of once a step. on_block: called
    with each block's {"mod": …} (see `hooks`), the final layer's too.
    """
    mod = block_modulations(p, vec, on_block)
    mod["final"] = modulation(p["final_layer"]["adaLN_modulation"], vec)
    on_block("final_layer", {"mod": mod["final"]})
    return mod


@shaped
def block_modulations(p: Tree, vec: Float[Array, "B D"], on_block: OnBlock = ignore) -> Tree:
    """Compute the modulations of the blocks alone, {"double": …, "single": …} as in `modulations`."""
    mod: dict[str, Any] = {"double": [], "single": []}
    for i, block in _without_prefetch(p.get("double_blocks", ())):
        img = modulation(block["img_mod"], vec)
        txt = modulation(block["txt_mod"], vec)
        mod["double"].append({"img": img, "txt": txt})
        on_block(f"double_blocks.{i}", {"mod": mod["double"][i]})
    for i, block in _without_prefetch(p.get("single_blocks", ())):
        mod["single"].append(modulation(block["modulation"], vec))
        on_block(f"single_blocks.{i}", {"mod": mod["single"][i]})
    return mod


def _without_prefetch(blocks: Tree) -> Iterator[tuple[int, Tree]]:
    """Yield (i, block) by asking for each number: a tree on disk fetches whole blocks ahead when it is iterated over.

    That is of use to `velocity`, which needs all of a block; modulation is a small part of it.
    """
    for i in range(len(blocks)):
        yield i, blocks[i]


@shaped
def modulation(p: Tree, vec: Float[Array, "B D"]) -> Float[Array, "B O"]:
    """Compute W · silu(vec) + b; the only layer in `p` is called "lin", or "1" in the final layer's list."""
    (layer,) = p.values()
    activated = backend_of(vec).silu(vec)
    return linear(activated, **layer)


@shaped
def chunks(mod: Float[Array, "B O"], count: int) -> list[Array]:
    """Cut a modulation into `count` arrays (B, 1, D): shift, scale, gate for one place, or twice that for two."""
    rows = mod[:, None]  # (B, 1, O): the same for every token
    return backend_of(mod).split(rows, count, axis=-1)


@shaped
def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B L D"]:
    """Compute (1 + scale) · LN(x) + shift, the norm without weights of its own (eps 1e-6)."""
    nx = backend_of(x)
    return nx.layer_norm(x, 1 + scale, shift)
