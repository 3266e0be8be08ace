"""Concept attention: where in the image is what a word means?

Concept tokens go through the double blocks beside the text, by the text's weights. They hear the image and one another,
and nobody hears them, so that the image stays what it is. What attention gives a concept c and an image token i, two
vectors of width D, is then compared, in every block:

    map[c, i] = softmax over c of (o_c · o_i),    averaged over blocks and steps

This is sharper than the attention of the image to a word. Source: Helbling et al. 2025 (arXiv 2502.04320); of its
authors' code it differs in that concepts have the prompt's modulation, not one of their own.
"""

from typing import Any

from minflux.arrays import Array, Float, Tree
from minflux.backend import backend_of
from minflux.model.attention import merge_heads
from minflux.model.blocks import finish_stream, stream_qkv
from minflux.model.linear import linear
from minflux.model.modulation import chunks


class Concepts:
    """An `on_block` that carries concept tokens (C, E), outputs of T5, along with a transformer `p`.

    scores: o_c · o_i of every double block and step so far, (B, C, I) each, float32. Tokens of references come after
    the image's own.
    """

    def __init__(self, p: Tree, tokens: Float[Array, "C E"]):
        self.p, self.tokens = p, tokens
        self.scores: list[Array] = []
        self.stream: Array | None = None

    def __call__(self, name: str, seen: dict[str, Any]) -> None:
        """Listen to a double block: take the concepts through it, and compare them with its image tokens."""
        kind, _, number = name.partition(".")
        if kind != "double_blocks":
            return
        block = self.p[kind][int(number)]
        stream = self.begun(seen) if number == "0" else self.stream
        self.stream, concepts = through(block, stream, seen)  # (B, C, D) each
        image = image_outputs(seen)  # (B, I, D)
        scores = compared(concepts, image)
        backend_of(scores).eval(self.stream, scores)
        self.scores.append(scores)

    def begun(self, seen: dict[str, Any]) -> Float[Array, "B C D"]:
        """Return the concepts as they enter the first block."""
        txt = seen["txt"]
        tokens = self.tokens.astype(txt.dtype)
        stream = linear(tokens, **self.p["txt_in"])  # (C, D)
        return backend_of(txt).broadcast_to(stream, (len(txt), *stream.shape))

    def maps(self) -> Float[Array, "B C I"]:
        """Return each concept's share of each image token, the mean of all blocks and steps; they sum to 1 over C."""
        nx = backend_of(self.scores[0])
        shares = nx.softmax(nx.stack(self.scores).swapaxes(-1, -2))  # (blocks and steps, B, I, C)
        return nx.mean(shares, axis=0).swapaxes(-1, -2)


def through(p: Tree, stream: Float[Array, "B C D"], seen: dict[str, Any]) -> tuple[Array, Array]:
    """Return concepts after a double block, and what attention gave them in it, (B, C, D) each.

    Text stands at position 0, which turns nothing, so that their queries and keys need no rotation.
    """
    nx, text = backend_of(stream), seen["txt"].shape[1]
    mod = chunks(seen["mod"]["txt"], 6)
    q, k, v = stream_qkv(p["txt_attn"], stream, mod)  # (B, H, C, K) each

    # one attention over the concepts and the image
    img_k, img_v = (seen[name][:, :, text:] for name in "kv")
    k = nx.concatenate([k, img_k], axis=2)  # (B, H, C + I, K)
    v = nx.concatenate([v, img_v], axis=2)
    attended = nx.attention(q, k, v)
    attended = merge_heads(attended)

    after = finish_stream(p["txt_attn"], p["txt_mlp"], stream, attended, mod)
    return after, attended


def image_outputs(seen: dict[str, Any]) -> Float[Array, "B I D"]:
    """Return what attention gives the image tokens of a block, from the q, k and v that it shows."""
    text = seen["txt"].shape[1]
    q = seen["q"][:, :, text:]
    attended = backend_of(q).attention(q, seen["k"], seen["v"])
    return merge_heads(attended)


def compared(concepts: Float[Array, "B C D"], image: Float[Array, "B I D"]) -> Float[Array, "B C I"]:
    """Return o_c · o_i of every concept and image token, float32."""
    nx = backend_of(concepts, image)
    concepts, image = nx.as_float32(concepts), nx.as_float32(image)
    return concepts @ image.swapaxes(-1, -2)
