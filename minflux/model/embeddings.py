"""A number becomes a vector: a token by a table, a scalar by sinusoids of many wavelengths and a two-layer network.

The scalars are the timestep t (1 is noise, 0 the image) and, on guidance-distilled models, the guidance strength.
"""

import math
from ctypes import c_float

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.linear import linear


@shaped
def embedding(ids: Int[Array, "*S"], weight: Float[Array, "V D"]) -> Float[Array, "*S D"]:
    """Look up row `ids` of the table. MLX does not check that 0 <= ids < V; the tokenizers see to it."""
    return weight[ids]


def wave_frequencies(count: int, max_period: float) -> list[float]:
    """Return ωᵢ = max_period^(-i / count), i < count, the exponent in float32 as PyTorch has it.

    The angle 1000 t ω makes ω's error a thousand times larger: an exact ω would be farther from what models saw.
    """
    rate = c_float(-math.log(max_period)).value
    exponents = [c_float(rate * i / count).value for i in range(count)]
    return [math.exp(exponent) for exponent in exponents]


@shaped
def timestep_embedding(
    t: Float[Array, "B"], dim: int, max_period: float = 10000.0, time_factor: float = 1000.0
) -> Float[Array, "B D"]:
    """Embed each number of `t` as `dim` sinusoids: cos(1000 t ωᵢ) for all i, then sin(1000 t ωᵢ).

    ωᵢ = 10000^(-i / (dim/2)), i < dim/2. (B,) float32 -> (B, dim) float32. The factor 1000 brings t from [0, 1] to the
    range that the wavelengths were chosen for. Source: arXiv 1706.03762 §3.5; BFL `flux/modules/layers.py`.
    """
    nx = backend_of(t)
    frequencies = nx.array(wave_frequencies(dim // 2, max_period), dtype=nx.float32)  # (D/2,)
    time = time_factor * nx.as_float32(t)
    angles = time[:, None] * frequencies  # (B, D/2)
    return nx.concatenate([nx.cos(angles), nx.sin(angles)], axis=-1)


@shaped
def mlp_embedder(p: Tree, x: Float[Array, "B I"]) -> Float[Array, "B D"]:
    """Apply Linear, SiLU, Linear, into the model's width."""
    x = linear(x, **p["in_layer"])  # (B, D)
    x = backend_of(x).silu(x)
    return linear(x, **p["out_layer"])
