"""One's own images as a step of training needs them: what the frozen encoders say of them, computed once and kept.

The text encoders and the VAE are read when something is not in the cache yet, and forgotten before training begins.
"""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minflux.arrays import Tree
from minflux.backend import Backend
from minflux.checkpoints.components import CLIP, COMPONENTS, T5, TRANSFORMER, VAE
from minflux.checkpoints.hashes import hash_model
from minflux.checkpoints.open import Checkpoint
from minflux.checkpoints.read import read_tree
from minflux.errors import ArgumentError
from minflux.inference.cache import identity
from minflux.inference.flux1 import Flux1
from minflux.inference.load import load_checkpoint
from minflux.inference.pipeline import Defaults
from minflux.inference.text import PromptTruncated
from minflux.sampling.timesteps import Schedule
from minflux.train.buckets import bucket_of, bucket_sizes, tokens_of
from minflux.train.captioned import Captioned, Size
from minflux.train.latents import LatentsCache
from minflux.train.loop import Batch
from minflux.train.objective import logit_normal
from minflux.train.optimizer import AdamW

Folders = Sequence[Sequence[Captioned]]
USUAL = 512  # pixels a side that large models are trained at


@dataclass(frozen=True)
class OwnTraining:
    """How a model is trained on one's own images: all that the result depends on, beside model and images.

    side: of the square that has as many pixels as each image; 0 for what suits the model. empty_captions: the share of
    samples whose caption is left out, for models that are guided away from an empty prompt.
    """

    steps: int
    lr: float
    batch: int = 1
    side: int = 0
    seed: int = 0
    empty_captions: float = 0.0

    def __post_init__(self):
        if min(self.steps, self.batch) < 1 or not 0 < self.lr < 1 or not 0 <= self.empty_captions < 1:
            raise ArgumentError("steps and batch must be at least 1, the learning rate and shares between 0 and 1")
        if self.side and (self.side < 32 or self.side % 16):
            raise ArgumentError(f"size must be a multiple of 16, at least 32, got {self.side}")

    def suiting(self, defaults: Defaults) -> "OwnTraining":
        """Return settings with a size: unless one was asked for, the model's own, but at most 512."""
        return self if self.side else replace(self, side=min(USUAL, defaults.width))

    @property
    def optimizer(self) -> AdamW:
        """Return AdamW with the constants that diffusers trains LoRAs with, and a warm-up of a tenth, at most 100."""
        warmup = min(100, self.steps // 10)
        return AdamW(self.lr, beta2=0.999, weight_decay=1e-4, clip=1.0, warmup=warmup, ema=0.0)


# -- the images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """An image as a step needs it: its caption, its size, the file of its latents, and how often it is drawn."""

    caption: str
    size: Size
    latents: Path
    weight: float


@dataclass(frozen=True)
class OwnData:
    """What a step's batch is drawn from; `pipe` recalls what its text encoders said of the captions."""

    pipe: Flux1
    samples: list[Sample]
    how: OwnTraining

    def batch(self, rng: np.random.Generator) -> Batch:
        """Draw one step's arrays: latents, noise, times, and what T5 and CLIP say of the captions."""
        chosen = self.choose(rng)
        x0 = np.stack([np.load(sample.latents) for sample in chosen])
        noise = rng.standard_normal(x0.shape, np.float32)
        t = draw_times(rng, len(chosen), self.pipe.schedule, tokens_of(chosen[0].size))
        is_empty = rng.random(len(chosen)) < self.how.empty_captions
        captions = ["" if empty else sample.caption for sample, empty in zip(chosen, is_empty, strict=True)]
        txt, y = zip(*map(self.text, captions), strict=True)
        return x0, noise, t, np.concatenate(txt), np.concatenate(y)

    def choose(self, rng: np.random.Generator) -> list[Sample]:
        """Choose the samples of a batch: one of all, and others of its size, none twice while there are enough."""
        (first,) = draw_samples(rng, self.samples, 1)
        return draw_samples(rng, [sample for sample in self.samples if sample.size == first.size], self.how.batch)

    def text(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what T5 and CLIP say of a caption: txt (1, T, E) and y (1, P)."""
        with warnings.catch_warnings():  # of a caption that is cut: `prepare` has told
            warnings.simplefilter("ignore", PromptTruncated)
            text = self.pipe.encode([caption], guidance=1.0)
        return self.pipe.nx.to_numpy(text.txt), self.pipe.nx.to_numpy(text.y)


def draw_samples(rng: np.random.Generator, samples: Sequence[Sample], count: int) -> list[Sample]:
    """Draw samples by their weights, none twice while there are enough."""
    weights = np.array([sample.weight for sample in samples])
    chosen = rng.choice(len(samples), count, replace=len(samples) < count, p=weights / weights.sum())
    return [samples[i] for i in chosen]


def draw_times(rng: np.random.Generator, count: int, schedule: Schedule, tokens: int) -> np.ndarray:
    """Draw `count` times, float32: sigmoid of a standard normal, shifted as the steps of sampling are at this size."""
    shift = math.exp(schedule.mu(tokens)) if schedule.use_dynamic_shifting else schedule.shift
    return logit_normal(rng, count, shift)


# -- the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model to be trained: its file, and a pipeline whose encoders stay in their files.

    The pipeline's transformer is to be put in; `kept` is the folder of what the encoders say.
    """

    checkpoint: Checkpoint
    pipe: Flux1
    kept: Path

    @property
    def dtype(self) -> str | None:
        """Return the dtype in which weights are computed with: the file's own on a GPU, float32 elsewhere."""
        return None if self.pipe.nx.on_gpu else "float32"

    def read(self, name: str, dtype: str | None = None) -> Tree:
        """Read a component's weights."""
        return read_tree(self.checkpoint.take(name), self.pipe.nx, dtype or self.dtype)

    def with_encoders(self) -> Flux1:
        """Return the pipeline with its text encoders in memory."""
        (clip_cfg, _), (t5_cfg, _) = self.pipe.clip, self.pipe.t5
        return replace(self.pipe, clip=(clip_cfg, self.read(CLIP.name)), t5=(t5_cfg, self.read(T5.name)))

    def latents_cache(self) -> LatentsCache:
        """Return the cache of this model's latents."""
        vae = identity([self.checkpoint.take(VAE.name)], [], self.pipe.nx, self.dtype)
        return LatentsCache(self.kept / "latents", vae)

    def hash(self) -> str:
        """Return a hash of the model, by which a run knows it again."""
        parts = {name: self.checkpoint.take(name) for name in (TRANSFORMER.name, VAE.name, CLIP.name, T5.name)}
        return hash_model(self.checkpoint.folder, parts)


def open_subject(checkpoint: Checkpoint, nx: Backend, name: str, kept: Path) -> Subject:
    """Open a model for training; for errors see `load_checkpoint`, and there is one for another model than a FLUX.1.

    Its cache has no limit: one caption must not push out another that the next step needs.
    """
    if checkpoint.family is not COMPONENTS:
        raise ArgumentError(f"model: minflux trains a FLUX.1 on images, and {name!r} is another model")
    pipe = load_checkpoint(checkpoint, nx, name, memory="staged", cache=kept)
    return Subject(checkpoint, replace(pipe, cache=pipe.cache and replace(pipe.cache, limit=sys.maxsize)), kept)


def prepare(subject: Subject, folders: Folders, how: OwnTraining) -> OwnData:
    """Encode the images and captions of several folders, or find what an earlier run has kept.

    Each folder is drawn from as often as any other.
    """
    encoders = cache(subject.with_encoders)  # read when first needed, forgotten on return
    latents, sizes = subject.latents_cache(), bucket_sizes(how.side)

    def encode(pixels: np.ndarray) -> np.ndarray:
        return subject.pipe.nx.to_numpy(subject.pipe.encode_image(pixels))[0]

    samples = []
    for image, weight in tqdm(weighted(folders), desc="encoding", unit="image"):
        size = bucket_of(image.size, sizes)
        samples.append(Sample(image.caption, size, latents.keep(image, size, encode), weight))
    for caption in dict.fromkeys(["", *(sample.caption for sample in samples)]):
        if not subject.pipe.is_kept(caption):  # warns of a caption that is cut
            encoders().encode([caption], guidance=1.0)
    return OwnData(subject.pipe, samples, how)


def weighted(folders: Folders) -> list[tuple[Captioned, float]]:
    """List all images, each with its share of its folder."""
    return [(image, 1 / len(images)) for images in folders for image in images]


def small_images(images: Sequence[Captioned], side: int) -> Iterator[Captioned]:
    """Yield the images that are enlarged to their bucket."""
    sizes = bucket_sizes(side)
    for image in images:
        width, height = bucket_of(image.size, sizes)
        if image.size[0] < width or image.size[1] < height:
            yield image
