"""`minflux train text`: T5 learns to read captions before there is any image, by saying where what a word names lies.

FLUX.1's T5 comes from elsewhere, and can read. A small one that starts with the flow learns names and colours, but not
on which side a thing stands or which place a letter has: its logits have no scale, and grow until its attention hardly
moves, before anything asks for order. Captions alone cost a tenth of the flow's steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Int, Tree, shaped
from minflux.backend import Backend
from minflux.checkpoints.components.shapes import under
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.tree import tree_map
from minflux.inference.text import Tokenizer
from minflux.model.t5 import T5Config, t5_encoder
from minflux.train.grounding import naming, place_loss, place_shapes, read_off
from minflux.train.init_weights import init_weights
from minflux.train.loop import Batch, Plan, train
from minflux.train.recipe import Training, optimizer, part, section
from minflux.train.workers import assemble
from minflux.world.captions import caption
from minflux.world.parts import image_parts, text_parts
from minflux.world.scenes import DEFAULT_SIDE, sample

SIZE = (DEFAULT_SIDE // 8, DEFAULT_SIDE // 8)  # of the latents that are never made
LENGTH = 32  # text tokens


def reading_shapes(cfg: T5Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of T5, under "t5", and of the layer that says a place."""
    return under("t5", t5_shapes(cfg)) | place_shapes(cfg.d_model)


@shaped
def reading_loss(
    p: Tree, cfg: T5Config, t5_ids: Int[Array, "B T"], image_parts: Int[Array, "B I"], text_parts: Int[Array, "B T"]
) -> Array:
    """mean ‖W txt + b - the middle of what the token names‖², over the tokens that name something."""
    where = read_off(p["places"], t5_encoder(p["t5"], cfg, t5_ids))  # (B, T, 2)
    return place_loss(where, naming(image_parts, text_parts), SIZE)


@dataclass(frozen=True)
class Captions:
    """Draws batches of captions, each of another scene."""

    how: Training
    t5: Tokenizer

    def batch(self, rng: np.random.Generator) -> Batch:
        """Draw one step's ids, and the parts that the tokens of images and captions stand for."""
        drawn = [sample(rng) for _ in range(self.how.batch)]
        texts = [caption(scene, rng, self.how.in_order) for scene in drawn]
        named = [text_parts(scene, text, self.t5, LENGTH) for scene, text in zip(drawn, texts, strict=True)]
        return self.t5(texts, LENGTH), np.stack([image_parts(scene) for scene in drawn]), np.stack(named)


def train_reading(recipe: dict[str, Any], folder: Path, t5: Tokenizer, nx: Backend) -> tuple[T5Config, Tree]:
    """Train T5 by the recipe's [text] in `folder`, or go on; return its config and averaged weights."""
    how = section(Training, part(recipe, "text.training"))
    cfg = section(T5Config, {**part(recipe, "flow.t5"), "vocab_size": t5.vocab_size})
    with assemble(how.workers) as team:
        weights = train(
            nx,
            team,
            Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every),
            optimizer(part(recipe, "text.optimizer")),
            tree_map(nx.array, init_weights(reading_shapes(cfg), how.seed)),
            Captions(how, t5).batch,
            lambda p, *arrays: reading_loss(p, cfg, *arrays),
        )
    return cfg, weights["t5"]
