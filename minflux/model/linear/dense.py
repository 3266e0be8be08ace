"""A matrix of floats: nothing lies beside it."""

from minflux.arrays import Array, Float, shaped
from minflux.backend import backend_of


@shaped
def dense_matmul(
    x: Float[Array, "*S I"], weight: Float[Array, "O I"], bias: Float[Array, "O"] | None = None
) -> Float[Array, "*S O"]:
    """Compute x Wᵀ + b for a float matrix W."""
    return backend_of(x).linear(x, weight, bias)
