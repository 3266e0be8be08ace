"""A matrix in 4 or 8 bits: "scales" and "biases" lie beside it, one of each for every 64 or 32 numbers of a row.

The layout is MLX's own (`minflux/checkpoints/quantise.py` has it, and makes such matrices; `relaid.py` beside it makes
them of GGUF's).
"""

from minflux.arrays import Array, Float, Int, shaped
from minflux.backend import backend_of


@shaped
def packed_matmul(
    x: Float[Array, "*S I"],
    weight: Int[Array, "O P"],
    scales: Float[Array, "O G"],
    biases: Float[Array, "O G"],
    bias: Float[Array, "O"] | None = None,
) -> Float[Array, "*S O"]:
    """Compute x Wᵀ + b for W = scale · q + base, whose numbers q lie side by side in the uint32 of `weight`.

    scales, biases: the scale and the base of each group; bias: b, the layer's own.
    """
    y = backend_of(x).quantized_matmul(x, weight, scales, biases)
    if bias is not None:
        y += bias
    return y
