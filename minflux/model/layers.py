"""The two layers that everything else is made of. A component takes its weights by name: `linear(x, **p["proj"])`."""

from minflux.shapes import Array, Float, Int, shaped


@shaped
def linear(x: Float[Array, "*S I"], weight: Float[Array, "O I"], bias=None) -> Float[Array, "*S O"]:
    """x Wᵀ + b, the weight stored as PyTorch stores it: (out, in)."""
    y = x @ weight.T
    return y if bias is None else y + bias


@shaped
def embedding(ids: Int[Array, "*S"], weight: Float[Array, "V D"]) -> Float[Array, "*S D"]:
    """Look up row `ids` of the table. MLX does not check that 0 <= ids < V; the tokenizers see to it."""
    return weight[ids]
