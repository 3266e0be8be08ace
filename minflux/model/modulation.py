"""Adaptive layer norm: `vec`, which knows the time, the guidance and the prompt's gist, steers every layer.

For each place it yields a shift, a scale and a gate: the block sees (1 + scale) · LN(x) + shift, and what it computes
is added back times the gate. Source: Peebles & Xie 2022 (arXiv 2212.09748) §3.2; BFL `flux/modules/layers.py`.
"""

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.layers import linear


@shaped
def modulation(p: Tree, vec: Float[Array, "B D"], chunks: int) -> list[Array]:
    """Compute `chunks` arrays (B, 1, D) from `vec`: shift, scale, gate for one place, or twice that for two."""
    product = p["product"] if "product" in p else modulation_product(p, vec)
    return backend_of(vec).split(product[:, None], chunks, axis=-1)


@shaped
def modulation_product(p: Tree, vec: Float[Array, "B D"]) -> Float[Array, "B O"]:
    """W · silu(vec) + b; the only layer in `p` is called "lin", or "1" in the final layer's list."""
    (layer,) = p.values()
    return linear(backend_of(vec).silu(vec), **layer)


# -- ahead of time -------------------------------------------------------------------------------------------


@shaped
def modulation_products(p: Tree, vec: Float[Array, "B D"]) -> Tree:
    """Multiply `vec` by every modulation's matrix in a transformer; the result has the form of the tree `p`.

    `vec` depends on time, guidance and prompt, all known before the first step. With the rows of all steps together,
    these matrices, more than a quarter of all weights, are read once a picture in place of once a step.
    """
    nx = backend_of(vec)

    def products(node: Tree, *names: str) -> Tree:
        found = {name: modulation_product(node[name], vec) for name in names}
        nx.eval(found)  # so that a matrix which is read only for this can be forgotten
        return found

    double, single = p["double_blocks"], p["single_blocks"]
    return {
        "double_blocks": [products(double[i], "img_mod", "txt_mod") for i in range(len(double))],
        "single_blocks": [products(single[i], "modulation") for i in range(len(single))],
        "final_layer": products(p["final_layer"], "adaLN_modulation"),
    }


def with_products(p: Tree, products: Tree) -> Tree:
    """Put products in the place of the matrices that they were made with; `p` itself stays as it is."""
    if isinstance(products, dict):
        return p | {name: with_products(p[name], product) for name, product in products.items()}
    if isinstance(products, list):
        return type(p)([with_products(p[i], product) for i, product in enumerate(products)])
    return {"product": products}


@shaped
def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]
) -> Float[Array, "B L D"]:
    """(1 + scale) · LN(x) + shift, the norm without weights of its own (eps 1e-6)."""
    return backend_of(x).layer_norm(x, 1 + scale, shift)
