"""Grounding: while the flow is trained, words are tied to what they stand for, by three losses beside its own.

At much noise the velocity asks above all for the background. Which thing stands where, and which letter, is a small
part of the squared error, and two unknowns wait for each other: the text encoder has no reason to say on which side a
thing stands until somebody looks for that, and nobody can look for what isn't said. FLUX.1 has billions of images to
learn it from, and a text encoder that can read. Here it was not learned in hours and is in minutes (docs/log.md),
because a scene of this world knows its own answers:

- **places**: a linear layer reads the text encoder's output, and each token that names a part says where that lies;
- **looks**: a head of a block sends each image token that shows a part to the words that name it;
- **labels**: a linear layer reads the image stream after a block, and each image token says what it will show.

Both layers are dropped when training ends. Near to these are, of looks, TokenCompose (Wang et al. 2023,
arXiv 2312.03626); of labels, REPA (Yu et al. 2024, arXiv 2410.06940), which asks the image stream for the features of
another model.
"""

from dataclasses import dataclass

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import backend_of
from minflux.model.attention import attention_weights
from minflux.model.latents import image_ids
from minflux.model.linear import linear
from minflux.train.flow import read_text, velocity_loss
from minflux.world.parts import LABELS


@dataclass(frozen=True)
class Grounding:
    """How much each loss weighs; the blocks whose first head looks, and the one after which labels are read."""

    places: float
    looks: float
    labels: float
    look_in: tuple[str, ...]
    label_after: str


def place_shapes(context_dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layer that says a place."""
    return {"places.weight": (2, context_dim), "places.bias": (2,)}


def layers_shapes(context_dim: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the two layers that are dropped in the end."""
    return {**place_shapes(context_dim), "labels.weight": (len(LABELS), hidden_size), "labels.bias": (len(LABELS),)}


@shaped
def grounded_loss(
    p: Tree,
    configs: tuple,
    grounding: Grounding,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"],
    labels: Int[Array, "B I"],
    image_parts: Int[Array, "B I"],
    text_parts: Int[Array, "B T"],
) -> Array:
    """`flow_loss`, and the weighted sum of the three losses; labels and parts are those of `minflux.world.parts`."""
    streams: dict[str, dict[str, Array]] = {}  # of each block, what `on_block` is shown
    txt, y = read_text(p, configs, clip_ids, t5_ids, pooled)
    loss = velocity_loss(p, configs, x0, noise, t, txt, y, on_block=streams.__setitem__, keep_qkv=True)
    names = naming(image_parts, text_parts)
    where = read_off(p["places"], txt)  # (B, T, 2)
    what = read_off(p["labels"], streams[grounding.label_after]["img"])  # (B, I, L)
    looks = [look_loss(streams[block]["q"], streams[block]["k"], names) for block in grounding.look_in]
    return (
        loss
        + grounding.places * place_loss(where, names, x0.shape[1:3])
        + grounding.looks * sum(looks)
        + grounding.labels * cross_entropy(what, labels)
    )


def read_off(p: Tree, x: Array) -> Array:
    """Read a stream (B, L, D) by a linear layer, each token normalised first: (B, L, what is asked)."""
    return linear(backend_of(x).layer_norm(x), **p)


@shaped
def naming(image_parts: Int[Array, "B I"], text_parts: Int[Array, "B T"]) -> Float[Array, "B I T"]:
    """Return 1 where a text token names what an image token shows, and 0 elsewhere."""
    nx = backend_of(image_parts)
    same = (image_parts[:, :, None] == text_parts[:, None, :]) & (image_parts > 0)[:, :, None]
    return same.astype(nx.float32)


@shaped
def place_loss(where: Float[Array, "B T 2"], names: Float[Array, "B I T"], size: tuple[int, int]) -> Array:
    """mean ‖where - the middle of what the token names‖², in sides of the image; size: of the latents, (H, W)."""
    nx, (rows, columns) = backend_of(where), (side // 2 for side in size)
    ids = image_ids(where, *size)  # (B, I, 3): reference, row, column
    tokens = nx.stack([(ids[..., 2] + 0.5) / columns, (ids[..., 1] + 0.5) / rows], axis=-1).astype(nx.float32)
    shown = nx.sum(names, axis=1)  # (B, T): tokens that show it
    middle = names.swapaxes(1, 2) @ tokens / nx.maximum(shown, 1.0)[..., None]  # (B, T, 2)
    error = nx.sum((where - middle) * (where - middle), axis=-1)  # (B, T)
    known = (shown > 0).astype(nx.float32)
    return nx.sum(known * error) / nx.maximum(nx.sum(known), 1.0)


@shaped
def look_loss(q: Float[Array, "B H L K"], k: Float[Array, "B H L K"], names: Float[Array, "B I T"]) -> Array:
    """mean of -log(the share of its attention that an image token gives its names), in the first head.

    The text's tokens come first in q and k; only image tokens that are named count.
    """
    nx, text = backend_of(q), names.shape[2]
    weights = attention_weights(q[:, :1, text:], k[:, :1])[:, 0]  # (B, I, T + I)
    share = nx.sum(weights[:, :, :text] * names, axis=-1)  # (B, I)
    named = nx.max(names, axis=-1)
    return -nx.sum(named * nx.log(share + 1e-6)) / nx.maximum(nx.sum(named), 1.0)


@shaped
def cross_entropy(logits: Float[Array, "B I L"], labels: Int[Array, "B I"]) -> Array:
    """mean of -log softmax(logits)[label] over all tokens."""
    nx = backend_of(logits, labels)
    highest = nx.max(logits, axis=-1, keepdims=True)
    total = nx.log(nx.sum(nx.exp(logits - highest), axis=-1, keepdims=True)) + highest
    asked = labels[..., None] == nx.arange(logits.shape[-1])
    return nx.mean(nx.sum(nx.where(asked, total - logits, 0.0), axis=-1))
