"""What a block needs at least: each weight is read once, and each activation once by every op that is one kernel.

One kernel is taken to do what one does somewhere: a product with its bias; a norm with its scale and shift; the norms
of q and k with their rotation, writing q, k and v side by side; an attention, which never writes its logits; an
activation; a gated sum. Activations and weights have two bytes a number. Not counted as possible: an activation or a
gated sum inside a product's kernel, which MLX has not.
"""

from dataclasses import dataclass
from math import prod

from benchmarks.counts.blocks import CONFIG, IMAGE, TEXT

ITEMSIZE, FLOAT32 = 2, 4


@dataclass(frozen=True)
class Op:
    """A kernel at the limit: how many arrays of tokens, the model's width, it reads and writes; and its weights."""

    name: str
    tokens: int
    inputs: int
    outputs: int
    weights: int = 0

    @property
    def read(self) -> int:
        """Bytes that it reads."""
        return ITEMSIZE * (self.tokens * CONFIG.hidden_size * self.inputs + self.weights)

    @property
    def written(self) -> int:
        """Bytes that it writes."""
        return ITEMSIZE * self.tokens * CONFIG.hidden_size * self.outputs


def product(name: str, tokens: int, inputs: int, outputs: int) -> Op:
    """Return a product with its bias, from and to so many times the model's width."""
    width = CONFIG.hidden_size
    return Op(name, tokens, inputs, outputs, prod((inputs, outputs, width, width)) + outputs * width)


def double_stream(tokens: int) -> list[Op]:
    """List what a double block does with one stream alone."""
    ratio = int(CONFIG.mlp_ratio)
    return [
        Op("norm", tokens, 1, 1),
        product("qkv", tokens, 1, 3),
        product("proj", tokens, 1, 1),
        Op("gated sum", tokens, 2, 1),
        Op("norm", tokens, 1, 1),
        product("mlp.0", tokens, 1, ratio),
        Op("gelu", tokens, ratio, ratio),
        product("mlp.2", tokens, ratio, 1),
        Op("gated sum", tokens, 2, 1),
    ]


def turned(tokens: int, arrays: int) -> Op:
    """Return the norms and rotations of q and k, with the angles' cosines and sines as weights, in float32."""
    angles = tokens * CONFIG.hidden_size // CONFIG.num_heads
    return Op("q, k", tokens, arrays, arrays, angles * FLOAT32 // ITEMSIZE)


def limits() -> dict[str, list[Op]]:
    """Return what each block needs at least."""
    both, ratio = TEXT + IMAGE, int(CONFIG.mlp_ratio)
    attention = Op("attention", both, 3, 1)
    return {
        "double": [*double_stream(TEXT), *double_stream(IMAGE), turned(both, 3), attention],
        "single": [
            Op("norm", both, 1, 1),
            product("linear1", both, 1, 3 + ratio),
            turned(both, 2),
            attention,
            Op("gelu", both, ratio, ratio),
            product("linear2", both, 1 + ratio, 1),
            Op("gated sum", both, 2, 1),
        ],
    }
