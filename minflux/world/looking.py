"""Where the transformer looks for a word: heat maps, and how much of a name's heat lies where its thing is.

The heat of a word on an image token is the attention that the token pays to the word. On "a cat left of an apple" a
head that has learned what "cat" says sends the left half of the image to that word. Chance is one half.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minflux.arrays import Float, shaped
from minflux.errors import ArgumentError
from minflux.inference.flux1 import Flux1
from minflux.inference.text import Tokenizer
from minflux.model.attention import attention_weights
from minflux.world.captions import plain_caption
from minflux.world.parts import tokens_of
from minflux.world.scenes import DEFAULT_SIDE, sample


def word_tokens(tokenizer: Tokenizer, prompt: str, word: str) -> list[int]:
    """Return the places of a word's tokens in a prompt, where it first stands; raises `ArgumentError` without it."""
    found = re.search(rf"\b{re.escape(word)}\b", prompt)
    if found is None:
        raise ArgumentError(f"word: {word!r} is not in the prompt {prompt!r}")
    return tokens_of(tokenizer.backend.encode(prompt).offsets, found.span())


@dataclass
class Heat:
    """Add up the heat of one word a prompt, after every block: an `on_block` for a pipeline.

    words: the places of each prompt's word among the text tokens. sums: block -> (N, heads, image tokens).
    """

    words: Sequence[Sequence[int]]
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, name: str, seen: dict[str, Any]) -> None:
        """Add one block's heat at one step; with classifier-free guidance, of the prompts' rows alone."""
        length, count = seen["txt"].shape[1], len(self.words)
        weights = np.asarray(attention_weights(seen["q"][:count], seen["k"][:count]))  # (N, H, L, L), text first
        rows = weights[:, :, length:]
        heat = np.stack([rows[i][..., list(places)].sum(-1) for i, places in enumerate(self.words)])
        self.sums[name] = self.sums.get(name, 0) + heat


def heat_maps(
    pipe: Flux1, prompts: list[str], words: list[str], seed: int = 0, side: int = DEFAULT_SIDE, **how: Any
) -> dict[str, np.ndarray]:
    """Generate an image of each prompt and return each block's heat of its word: {block: (N, heads, rows, columns)}.

    The mean over all steps; a row of weights sums to 1 over all tokens of text and image.
    """
    heat = Heat([word_tokens(pipe.t5_tokenizer, *pair) for pair in zip(prompts, words, strict=True)])
    steps = how.pop("steps", pipe.defaults.steps)
    pipe(prompts, seed=seed, steps=steps, width=side, height=side, on_block=heat, **how)
    tokens = side // (2 * pipe.downscale)
    return {name: x.reshape(*x.shape[:2], tokens, tokens) / steps for name, x in heat.sums.items()}


@shaped
def half_share(heat: Float[np.ndarray, "H R C"], axis: str, second: bool) -> Float[np.ndarray, "H"]:
    """Return the share of each map that lies in the half of an item: the first or the second along the axis."""
    halves = np.split(heat, 2, axis=2 if axis == "horizontal" else 1)
    return halves[second].sum((1, 2)) / heat.sum((1, 2))


def looks(pipe: Flux1, count: int = 48, seed: int = 0, **how: Any) -> dict[tuple[str, int], float]:
    """Return the mean share of each head over the names of `count` pairs of things: {(block, head): share}."""
    rng = np.random.default_rng(seed)
    scenes = [sample(rng, kind="pair") for _ in range(count)]
    shares: dict[str, list[np.ndarray]] = {}
    for second in (False, True):
        names = [scene.items[second].name for scene in scenes]
        maps = heat_maps(pipe, [plain_caption(scene) for scene in scenes], names, seed, **how)
        for block, heat in maps.items():
            found = [half_share(h, str(scene.axis), second) for h, scene in zip(heat, scenes, strict=True)]
            shares.setdefault(block, []).extend(found)
    means = {block: np.mean(found, axis=0) for block, found in shares.items()}
    return {(block, head): float(share) for block, mean in means.items() for head, share in enumerate(mean)}
