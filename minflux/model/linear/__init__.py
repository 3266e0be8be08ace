"""Multiply by a matrix of the model: x Wᵀ + b, however W is stored, and with or without a LoRA beside it.

    linear(x, **p["proj"])        p["proj"] holds "weight", and "bias", "lora" and its packing's arrays if it has them,
                                  and "summed" or "gathered" where several processes share it

`dense`   W as floats
`packed`  W in 4 or 8 bits
`lora`    what a LoRA adds, beside a W of any packing

A component takes its weights by name, so a weight tree alone says how a matrix is stored. A new packing is a file here
and a row of `PACKINGS`.
"""

from collections.abc import Callable

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.linear.dense import dense_matmul
from minflux.model.linear.lora import lora_delta
from minflux.model.linear.packed import packed_matmul

__all__ = ["linear"]

# the names of the arrays that a packing puts beside the weight -> its product x Wᵀ + b
PACKINGS = {frozenset(): dense_matmul, frozenset({"scales", "biases"}): packed_matmul}


@shaped
def linear(
    x: Float[Array, "*S I"],
    weight: Float[Array, "O I"] | Int[Array, "O P"],
    bias: Float[Array, "O"] | None = None,
    lora: Tree | None = None,
    summed: int = 1,
    gathered: int = 1,
    **packing: Array,
) -> Float[Array, "*S N"]:
    """Compute x Wᵀ + b + x Aᵀ Bᵀ; b is there with a `bias`, and the last term with a `lora`.

    weight: W (O, I), outputs first, as PyTorch stores it. lora: {"down": A (R, I), "up": B (O, R)}. packing: the arrays
    that W is stored with, none for a float matrix (see `PACKINGS`). Raises `TypeError` for arrays of no packing.

    A matrix may be shared by several processes (see `minflux/checkpoints/shares.py`). summed: how many have its columns
    among them, and the inputs that these are for: W x = W₁ x₁ + W₂ x₂, the sum over all of them; one has the bias.
    gathered: how many have its rows: N = gathered · O outputs, put side by side.
    """
    product = product_for(frozenset(packing))
    y = product(x, weight, bias=bias, **packing)  # nobody else holds y: it is added to in place where that can be done
    if lora is not None:
        y += lora_delta(x, **lora)
    if summed > 1:
        y = backend_of(y).all_sum(y)
    return backend_of(y).all_gather(y) if gathered > 1 else y


def product_for(names: frozenset[str]) -> Callable[..., Array]:
    """Return the product for a weight with arrays of these names beside it; raises `TypeError` where there is none."""
    if names in PACKINGS:
        return PACKINGS[names]
    known = sorted({"bias", "lora", "summed", "gathered"}.union(*PACKINGS))
    for name in sorted(names.difference(known)):
        raise TypeError(f"linear: unexpected array {name!r} beside the weight; expected only {', '.join(known)}")
    packings = " or ".join(", ".join(sorted(packing)) or "nothing" for packing in PACKINGS)
    raise TypeError(f"linear: expected a whole packing beside the weight, {packings}; got {', '.join(sorted(names))}")
