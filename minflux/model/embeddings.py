"""A scalar becomes a vector: sinusoids of many wavelengths, then a two-layer network.

Used for the timestep t (1 is noise, 0 the picture) and, on guidance-distilled models, for the guidance strength.
"""

import math

from minflux.backend import backend_of
from minflux.model.layers import linear
from minflux.shapes import Float, Tree, shaped


@shaped
def timestep_embedding(t: Float["B"], dim: int, max_period: float = 10000.0, time_factor: float = 1000.0):
    """Embed each number of `t` as `dim` sinusoids: cos(1000 t ωᵢ) for all i, then sin(1000 t ωᵢ).

    ωᵢ = 10000^(-i / (dim/2)), i < dim/2. (B,) float32 -> (B, dim) float32. The factor 1000 brings t from [0, 1] to the
    range that the wavelengths were chosen for. Source: arXiv 1706.03762 §3.5; BFL `flux/modules/layers.py`.
    """
    nx = backend_of(t)
    half = dim // 2
    i = nx.arange(half, dtype=nx.float32)
    frequencies = nx.exp(i * (-math.log(max_period) / half))
    angles = (time_factor * nx.as_float32(t))[:, None] * frequencies
    return nx.concatenate([nx.cos(angles), nx.sin(angles)], axis=-1)


@shaped
def mlp_embedder(p: Tree, x: Float["B I"]) -> Float["B D"]:
    """Linear, SiLU, Linear: into the model's width."""
    nx = backend_of(x)
    return linear(nx.silu(linear(x, **p["in_layer"])), **p["out_layer"])
