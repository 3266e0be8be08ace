"""A second lesson beside the flow: to say, in the middle of the transformer, what will lie on each image token.

The flow's own loss hardly tells the model to read names: a blob of the right size in the right place already explains
most of the velocity. So a linear layer reads the hidden image tokens after one of the blocks and must name the things
and letters there. Through much noise they can be known from the text alone, so the blocks before learn to look it up.
The layer serves in training only, as the aligned layer of REPA does (Yu et al. 2024, arXiv 2410.06940), whose targets
are the features of another vision model; here the world itself knows the answer.
"""

from dataclasses import dataclass
from typing import Any

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.linear import linear
from minflux.world.labels import CLASSES

RARE = -4.0  # the logit to start from: nearly all classes are absent from nearly all tokens


@dataclass(frozen=True)
class Labels:
    """How much the second loss weighs, and the block after which hidden tokens are read."""

    weight: float
    after: str  # "single_blocks.1"


def label_shapes(hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layer that reads hidden tokens."""
    return {"weight": (len(CLASSES), hidden_size), "bias": (len(CLASSES),)}


@dataclass
class Listener:
    """Keep the hidden image tokens after one block: an `on_block` for `flux`."""

    after: str
    img: Any = None  # (B, I, D)

    def __call__(self, name: str, seen: dict[str, Any]) -> None:
        """Take what is seen after the block that is listened to."""
        if name == self.after:
            self.img = seen["img"]


@shaped
def label_loss(p: Tree, img: Float[Array, "B I D"], shares: Float[Array, "B I K"]) -> Array:
    """Return the binary cross-entropy of each class's share of each token, summed over classes, mean over tokens.

    With logits z = W img + b + RARE and shares s: max(z, 0) - z s + log(1 + e^(-|z|)), which never overflows.
    """
    nx = backend_of(img, shares)
    z = linear(img, **p) + RARE
    entropy = nx.maximum(z, nx.array(0.0, dtype=z.dtype)) - z * shares + nx.log(1 + nx.exp(-nx.abs(z)))
    return nx.mean(nx.sum(entropy, axis=-1))
