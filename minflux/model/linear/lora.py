"""LoRA: a change of low rank to a matrix, computed beside it.

W + B A needs W as floats, and then A and B can't be trained any more. Beside it, x Wᵀ + (x Aᵀ) Bᵀ, W may be packed, and
stays as it is. Source: Hu et al. 2021 (arXiv 2106.09685).
"""

from minflux.arrays import Array, Float, shaped
from minflux.backend import backend_of


@shaped
def lora_delta(x: Float[Array, "*S I"], down: Float[Array, "R I"], up: Float[Array, "O R"]) -> Float[Array, "*S O"]:
    """Compute (x Aᵀ) Bᵀ for A = down and B = up; the LoRA's strength is in B already."""
    nx = backend_of(x)
    return nx.linear(nx.linear(x, down), up)
