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
        stream = self.begun(seen) if number == "0" else self.stream
        self.stream, concepts = self.block(self.p[kind][int(number)], stream, seen)
        nx = backend_of(concepts)
        scores = nx.as_float32(concepts) @ nx.as_float32(image_outputs(seen)).swapaxes(-1, -2)
        nx.eval(self.stream, scores)
        self.scores.append(scores)

    def begun(self, seen: dict[str, Any]) -> Float[Array, "B C D"]:
        """Return the concepts as they enter the first block."""
        txt = seen["txt"]
        stream = linear(self.tokens.astype(txt.dtype), **self.p["txt_in"])  # (C, D)
        return backend_of(txt).broadcast_to(stream, (len(txt), *stream.shape))

    def block(self, p: Tree, stream: Array, seen: dict[str, Any]) -> tuple[Array, Array]:
        """Return the concepts after a block, and what attention gives them in it, (B, C, D) each."""
        nx, text = backend_of(stream), seen["txt"].shape[1]
        mod = chunks(seen["mod"]["txt"], 6)
        q, k, v = stream_qkv(p["txt_attn"], stream, mod)  # (B, H, C, K); text stands at 0, which turns nothing
        k = nx.concatenate([k, seen["k"][:, :, text:]], axis=2)
        v = nx.concatenate([v, seen["v"][:, :, text:]], axis=2)
        attended = merge_heads(nx.attention(q, k, v))
        return finish_stream(p["txt_attn"], p["txt_mlp"], stream, attended, mod), attended

    def maps(self) -> Float[Array, "B C I"]:
        """Return each concept's share of each image token, the mean of all blocks and steps; they sum to 1 over C."""
        nx = backend_of(self.scores[0])
        shares = [nx.softmax(scores.swapaxes(-1, -2)) for scores in self.scores]
        return (sum(shares[1:], shares[0]) / len(shares)).swapaxes(-1, -2)


def image_outputs(seen: dict[str, Any]) -> Float[Array, "B I D"]:
    """Return what attention gives the image tokens of a block, from the q, k and v that it shows."""
    q, text = seen["q"], seen["txt"].shape[1]
    return merge_heads(backend_of(q).attention(q[:, :, text:], seen["k"], seen["v"]))
