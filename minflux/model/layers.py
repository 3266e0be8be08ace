"""The two layers that everything else is made of. A component takes its weights by name: `linear(x, **p["proj"])`."""

from minflux.arrays import Array, Float, Int, shaped
from minflux.backend import backend_of


@shaped
def linear(
    x: Float[Array, "*S I"], weight: Float[Array, "O I"] | Int[Array, "O P"], bias=None, **packed: Array
) -> Float[Array, "*S O"]:
    """x Wᵀ + b, the weight stored as PyTorch stores it: (out, in); a quantised one has more arrays beside it."""
    if not packed:
        return backend_of(x).linear(x, weight, bias)
    y = quantised(x, weight, **packed)
    return y if bias is None else y + bias


@shaped
def quantised(
    x: Float[Array, "*S I"],
    weight: Int[Array, "O P"],
    scales: Float[Array, "O G"],
    biases: Float[Array, "O G"],
    lora_down: Float[Array, "R I"] | None = None,
    lora_up: Float[Array, "O R"] | None = None,
) -> Float[Array, "*S O"]:
    """x Wᵀ for W of 4 or 8 bits (checkpoints/quantise.py), and + (x Aᵀ) Bᵀ for LoRAs, whose W can't be changed."""
    y = backend_of(x).quantized_matmul(x, weight, scales, biases)
    return y if lora_down is None or lora_up is None else y + (x @ lora_down.T) @ lora_up.T


@shaped
def embedding(ids: Int[Array, "*S"], weight: Float[Array, "V D"]) -> Float[Array, "*S D"]:
    """Look up row `ids` of the table. MLX does not check that 0 <= ids < V; the tokenizers see to it."""
    return weight[ids]


def nothing(*x: Array) -> None:
    """Do nothing after a block."""
