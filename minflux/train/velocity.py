"""Training the transformer and both text encoders in stages: any size of image, any length of text.

A rectified flow in the VAE's latents (`flow`), and:

- Beside the flow's loss words are tied to what they stand for (`grounding`).
- Each section [flow.NAME.training] of a recipe is a stage, in the file's order: first small images, which show
  twice as many captions in the same time and so teach the names, then images of all sizes.
- Each step draws images of one size. The batch is as large as a step's budget of tokens allows, so that a step always
  costs about the same.
- The text is padded to one of several lengths, so that the padding a pipeline adds changes nothing.
- The pooled text is hidden from most samples. It names the things in one vector, a short cut by which the model would
  never learn to look at the words (docs/log.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.components.shapes import Shapes
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import leaves, tree
from minflux.errors import CheckpointError
from minflux.inference.text import Tokenizer
from minflux.model.vae import VAEConfig
from minflux.sampling.timesteps import Schedule
from minflux.train.encoded import Encoded, Size, encode_all
from minflux.train.flow import CLIP_TOKENIZER, T5_TOKENIZER, configs_of, shapes_of
from minflux.train.grounding import Grounding, grounded_loss, layers_shapes
from minflux.train.init_weights import init_weights
from minflux.train.loop import Batch, Plan, train
from minflux.train.objective import logit_normal
from minflux.train.recipe import Training, optimizer, part, section, stages, workers
from minflux.train.workers import Team, assemble
from minflux.world.captions import caption
from minflux.world.parts import image_labels, image_parts, text_parts
from minflux.world.scenes import DEFAULT_SIDE, SIDES, Scene

CLIP_TOKENS = 48  # longer than any caption; CLIP's pooled output is the same for any padding
LEAST = 4  # samples a step


@dataclass(frozen=True)
class Mixture:
    """What a step is drawn from: sizes of image, lengths of text and kinds of scene, with their shares; and its times.

    kinds: without any, those of the world. shift: of the times; 0 for that of sampling. A larger one shows more noise,
    where words alone say what is there.
    """

    sizes: tuple[tuple[int, int, float], ...]  # (width, height, share); all other sizes share what is left
    text: tuple[tuple[int, float], ...]  # (tokens, share)
    hide_pooled: float  # share of samples
    kinds: tuple[tuple[str, float], ...] = ()  # (name, share)
    shift: float = 0.0

    def size_shares(self) -> dict[Size, float]:
        """Give every size of the world its share."""
        named = {(int(w), int(h)): share for w, h, share in self.sizes}
        others = [(w, h) for w in SIDES for h in SIDES if (w, h) not in named]
        rest = (1 - sum(named.values())) / len(others)
        return named | dict.fromkeys(others, rest)


def counts_of(mixture: Mixture, scenes: int) -> dict[Size, int]:
    """Share `scenes` out among the sizes, at least one for each that is drawn at all."""
    return {size: max(1, round(share * scenes)) for size, share in mixture.size_shares().items() if share > 1e-9}


def batch_size(how: Training, size: Size, text: int, usual_text: int) -> int:
    """Give how many samples cost as many tokens as `how.batch` of the default size and usual text: an even number."""
    budget = how.batch * (tokens_of((DEFAULT_SIDE, DEFAULT_SIDE)) + usual_text)
    return max(LEAST, 2 * round(budget / (tokens_of(size) + text) / 2))


def tokens_of(size: Size) -> int:
    """Give the image tokens of an image: one for each 16×16 pixels."""
    return (size[0] // 16) * (size[1] // 16)


def draw_shape(
    how: Training, mixture: Mixture, sizes: Sequence[Size], rng: np.random.Generator
) -> tuple[Size, int, int]:
    """Draw a step's size of image and length of text, and count its samples."""
    shares = mixture.size_shares()
    size = sizes[rng.choice(len(sizes), p=normalised([shares[s] for s in sizes]))]
    lengths = [length for length, _ in mixture.text]
    length = int(lengths[rng.choice(len(lengths), p=normalised([share for _, share in mixture.text]))])
    return size, length, batch_size(how, size, length, int(lengths[0]))


@dataclass(frozen=True)
class Data:
    """All that a step's batch is made of."""

    how: Training
    mixture: Mixture
    encoded: dict[Size, Encoded]
    clip: Tokenizer
    t5: Tokenizer
    shift: float

    def batch(self, rng: np.random.Generator) -> Batch:
        """Draw one step's latents, noise, timesteps, ids of both tokenizers, and factors of the pooled text."""
        return self.with_captions(rng)[2]

    def grounded(self, rng: np.random.Generator) -> Batch:
        """Draw the same batch, and last each image token's label and part, and each text token's part."""
        drawn, texts, batch = self.with_captions(rng)
        length = batch[4].shape[1]
        named = [
            text_parts(scene, text, self.t5, length) if text else np.zeros(length, np.int32)
            for scene, text in zip(drawn, texts, strict=True)
        ]
        labels, shown = ([of(scene) for scene in drawn] for of in (image_labels, image_parts))
        return *batch, np.stack(labels), np.stack(shown), np.stack(named)

    def with_captions(self, rng: np.random.Generator) -> tuple[list[Scene], list[str], Batch]:
        """Draw one step's batch, and tell its scenes and their captions."""
        size, length, count = draw_shape(self.how, self.mixture, list(self.encoded), rng)
        drawn = self.encoded[size]
        chosen = rng.integers(len(drawn.scenes), size=count)
        scenes = [drawn.scenes[i] for i in chosen]
        texts = [self.text(scene, rng) for scene in scenes]
        x0 = drawn.latents[chosen].astype(np.float32)
        noise = rng.standard_normal(x0.shape, np.float32)
        t = logit_normal(rng, count, self.shift)
        pooled = (rng.random(count) >= self.mixture.hide_pooled).astype(np.float32)
        return scenes, texts, (x0, noise, t, self.clip(texts, CLIP_TOKENS), self.t5(texts, length), pooled)

    def text(self, scene, rng: np.random.Generator) -> str:
        """Caption a scene, or leave the prompt empty, for guidance."""
        return "" if rng.random() < self.how.prompt_dropout else caption(scene, rng, self.how.in_order)


def normalised(shares: list[float]) -> np.ndarray:
    """Scale shares to a sum of 1."""
    return np.array(shares) / sum(shares)


def tokenizers_of(model: Path) -> tuple[Tokenizer, Tokenizer]:
    """Return CLIP's and T5's tokenizers of a model's folder."""
    return Tokenizer.from_folder(model / CLIP_TOKENIZER), Tokenizer.from_folder(model / T5_TOKENIZER)


def train_velocity(
    recipe: dict[str, Any],
    folder: Path,
    model: Path,
    nx: Backend,
    on_sample: Callable[..., None] | None = None,
    start: Tree | None = None,
) -> tuple[tuple, Tree]:
    """Train transformer and text encoders stage by stage, or go on; return configs and averaged weights.

    With the weights come the two layers of `minflux.train.grounding`, "places" and "labels", which no model needs.
    `on_sample(configs, ema, stage, step)` may draw images on the way. For the rest see `train_stages`.
    """
    configs = configs_of(recipe, *tokenizers_of(model))
    grounding = section(Grounding, part(recipe, "flow.grounding"))
    weights = train_stages(
        recipe,
        folder,
        model,
        nx,
        shapes_of(configs) | layers_shapes(configs[0].context_in_dim, configs[0].hidden_size),
        lambda data: data.grounded,
        lambda p, *arrays: grounded_loss(p, configs, grounding, *arrays),
        on_sample and (lambda p, stage, step: on_sample(configs, p, stage, step)),
        start,
    )
    return configs, weights


def data_of(
    how: Training,
    mixture: Mixture,
    vae: tuple[VAEConfig, Tree],
    tokenizers: tuple[Tokenizer, Tokenizer],
    shift: float,
    folder: Path,
    nx: Backend,
    team: Team,
) -> Data:
    """Encode a mixture's scenes, or read back what is in `folder`; shift: of the times, where the mixture has none."""
    encoded = encode_all(vae, counts_of(mixture, how.scenes), how.seed, folder, nx, mixture.kinds, team)
    return Data(how, mixture, encoded, *tokenizers, mixture.shift or shift)


def train_stages(
    recipe: dict[str, Any],
    folder: Path,
    model: Path,
    nx: Backend,
    shapes: Shapes,
    batch_of: Callable[[Data], Callable[[np.random.Generator], Batch]],
    loss: Callable[..., Array],
    on_sample: Callable[..., None] | None = None,
    start: Tree | None = None,
) -> Tree:
    """Train weights of these shapes by the stages of [flow], each in a folder of its own, or go on; return averages.

    `model` holds the trained VAE and both tokenizers. A stage starts from the averaged weights of the one before.
    `batch_of(data)` makes a stage's batch(rng), `loss(p, *batch)` their loss; `on_sample(ema, stage, step)` may draw
    images on the way. `start`: weights to begin with in place of random ones, as far as they go; see `begun`.
    """
    tokenizers = tokenizers_of(model)
    vae = load_component(model, "vae", nx, "float32")
    shift = section(Schedule, part(recipe, "schedule")).shift
    weights = begun(init_weights(shapes, part(recipe, "flow")["seed"]), start or {}, nx)
    with assemble(workers(recipe, "flow")) as team:
        for name in stages(recipe, "flow"):
            how = section(Training, part(recipe, f"flow.{name}.training"))
            mixture = section(Mixture, part(recipe, f"flow.{name}.mixture"))
            data = data_of(how, mixture, vae, tokenizers, shift, folder / "latents", nx, team)
            weights = train(
                nx,
                team,
                Plan(folder / name, how.steps, how.seed, how.checkpoint_every, how.sample_every),
                optimizer(part(recipe, f"flow.{name}.optimizer")),
                weights,
                batch_of(data),
                loss,
                on_sample and (lambda p, step, name=name: on_sample(p, name, step)),
            )
    return weights


def begun(fresh: Tree, start: Tree, nx: Backend) -> Tree:
    """Return fresh weights with those of `start` in their places; raises `CheckpointError` for one that doesn't fit."""
    random, known = dict(leaves(fresh)), dict(leaves(start))
    for name, x in known.items():
        wanted = random[name].shape if name in random else "no such weight"
        if wanted != x.shape:
            raise CheckpointError(f"{name} is {x.shape} in what training starts from, and the recipe has {wanted}")
    return tree({name: nx.array(known.get(name, x)) for name, x in random.items()})
