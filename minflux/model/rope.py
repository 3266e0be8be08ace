"""Rotary position embedding in three axes: a token's position turns its queries and keys.

A head's D numbers are taken as D/2 points of the plane, and each is turned by position · frequency. The product q·k
of two turned vectors depends on the difference of their positions alone. FLUX.1 gives 16 of the 128 dimensions to
the first axis (0 for text and image, 1 for a reference image) and 56 each to row and column.
Source: Su et al. 2021 (arXiv 2104.09864); BFL `flux/math.py`.
"""

from minflux.arrays import Array, Float, Int, shaped
from minflux.backend import backend_of


def axis_frequencies(dim: int, theta: float) -> list[float]:
    """Return the dim/2 frequencies of an axis in radians a position: θ^(-2i/dim)."""
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


@shaped
def rope(
    ids: Int[Array, "B L A"], axes_dim: tuple[int, ...], theta: float = 10_000
) -> tuple[Float[Array, "B 1 L F"], Float[Array, "B 1 L F"]]:
    """Make `pe`, the rotation of every token: cos and sin, each (B, 1, L, D/2) float32.

    ids holds the token's integer position on each of the A axes; axes_dim says how many of the head's D dimensions
    each axis turns (they sum to D). The 1 is for the heads, which all turn alike.
    """
    nx = backend_of(ids)
    turns = [nx.cos_sin(ids[..., axis], axis_frequencies(dim, theta)) for axis, dim in enumerate(axes_dim)]
    cos = nx.concatenate([cos for cos, _ in turns], axis=-1)  # (B, L, D/2)
    sin = nx.concatenate([sin for _, sin in turns], axis=-1)
    return cos[:, None], sin[:, None]


@shaped
def apply_rope(x: Float[Array, "B H L D"], pe: tuple) -> Float[Array, "B H L D"]:
    """Turn the pairs (x₀, x₁), (x₂, x₃), … of every head by `pe`; computed in float32, returned in x's dtype."""
    cos, sin = pe
    return backend_of(x).rotate(x, cos, sin)
