"""Train a model on one's own images: a LoRA beside its transformer, or the transformer itself.

The text encoders and the VAE are frozen. So all that they say of the images is computed once, kept on disk, and read
back in each step; while the transformer trains, they take no memory. The loss is the one that FLUX.1 was trained by: a
rectified flow in the VAE's latents.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.components import CLIP, T5, TRANSFORMER, VAE
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.hashes import hash_model
from minflux.checkpoints.open import Checkpoint
from minflux.checkpoints.read import read_tree
from minflux.errors import ArgumentError
from minflux.images import grid
from minflux.inference.cache import identity
from minflux.inference.flux1 import Flux1
from minflux.inference.load import load_checkpoint
from minflux.inference.pipeline import Defaults
from minflux.model.flux import FluxConfig, flux
from minflux.model.hooks import RunBlock, run
from minflux.model.latents import image_ids, pack, text_ids
from minflux.sampling.timesteps import Schedule, shifted
from minflux.train.buckets import bucket_of, bucket_sizes, tokens_of
from minflux.train.captioned import Captioned, Size
from minflux.train.latents import LatentsCache
from minflux.train.loop import Batch, Plan, train
from minflux.train.optimizer import AdamW
from minflux.train.workers import Team

SETTINGS = "settings.json"
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


# -- the loss ------------------------------------------------------------------------------------------------


@shaped
def velocity_loss(
    p: Tree,
    cfg: FluxConfig,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    txt: Float[Array, "B T E"],
    y: Float[Array, "B P"],
    run_block: RunBlock = run,
) -> Array:
    """Compute mean ‖v(x_t, t, text) - (noise - x₀)‖² in float32, x_t = (1 - t) x₀ + t noise.

    Models with built-in guidance are given 1, at which it does nothing: what is trained is the velocity itself, and
    guidance stays what it was. Source: Esser et al. 2024 (arXiv 2403.03206) §2.
    """
    nx = backend_of(x0, noise, t)
    at = t[:, None, None, None]
    x_t = (1 - at) * x0 + at * noise
    ids = image_ids(x0, *x0.shape[1:3])
    guidance = nx.ones(t.shape, dtype=nx.float32) if cfg.guidance_embed else None
    v = flux(p, cfg, pack(x_t), ids, txt, text_ids(txt), t, y, guidance, run_block=run_block)
    error = nx.as_float32(v) - pack(noise - x0)
    return nx.mean(error * error)


def draw_times(rng: np.random.Generator, count: int, schedule: Schedule, tokens: int) -> np.ndarray:
    """Draw `count` times, float32: sigmoid of a standard normal, shifted as the steps of sampling are at this size."""
    shift = math.exp(schedule.mu(tokens)) if schedule.use_dynamic_shifting else schedule.shift
    return shifted(1 / (1 + np.exp(-rng.standard_normal(count))), shift).astype(np.float32)


# -- the images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """An image as a step needs it: its caption, its size, and the file of its latents."""

    caption: str
    size: Size
    latents: Path


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
        first = self.samples[rng.integers(len(self.samples))]
        alike = [sample for sample in self.samples if sample.size == first.size]
        chosen = rng.choice(len(alike), self.how.batch, replace=len(alike) < self.how.batch)
        return [alike[i] for i in chosen]

    def text(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Return what T5 and CLIP say of a caption: txt (1, T, E) and y (1, P)."""
        text = self.pipe.encode([caption], guidance=1.0)
        return self.pipe.nx.to_numpy(text.txt), self.pipe.nx.to_numpy(text.y)


# -- the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model to be trained: its file, and a pipeline whose encoders stay in their files.

    The pipeline's transformer is to be put in; `cache` is the folder of what the encoders say.
    """

    checkpoint: Checkpoint
    pipe: Flux1
    cache: Path

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
        return LatentsCache(self.cache / "latents", vae)

    def hash(self) -> str:
        """Return a hash of the model, by which a run knows it again."""
        parts = {name: self.checkpoint.take(name) for name in (TRANSFORMER.name, VAE.name, CLIP.name, T5.name)}
        return hash_model(self.checkpoint.folder, parts)


def open_subject(checkpoint: Checkpoint, nx: Backend, name: str, cache: Path) -> Subject:
    """Open a model for training; for errors see `load_checkpoint`."""
    pipe = load_checkpoint(checkpoint, nx, name, memory="staged", cache=cache)
    return Subject(checkpoint, pipe, cache)


def prepare(subject: Subject, images: Sequence[Captioned], how: OwnTraining, prompts: Sequence[str] = ()) -> OwnData:
    """Encode all images and captions, or find what an earlier run has kept; the encoders are then forgotten.

    prompts: of the images that are generated on the way, which need no text encoder either after that.
    """
    pipe, cache = subject.with_encoders(), subject.latents_cache()
    sizes = bucket_sizes(how.side)

    def encode(pixels: np.ndarray) -> np.ndarray:
        return pipe.nx.to_numpy(pipe.encode_image(pixels))[0]

    samples = []
    for image in tqdm(images, desc="encoding images", unit="image"):
        size = bucket_of(image.size, sizes)
        samples.append(Sample(image.caption, size, cache.keep(image, size, encode)))
    data = OwnData(pipe, samples, how)
    for caption in {*(sample.caption for sample in samples), ""}:
        data.text(caption)
    if prompts:
        pipe.encode(list(prompts))
    return OwnData(subject.pipe, samples, how)


# -- the run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A training run: its folder, its data, and how trained weights act.

    weights: makes the transformer's tree of the trained weights. keep: called with the weights every so many steps, and
    with the path, without an ending, to write them to. prompts: images of these are generated then.
    """

    folder: Path
    data: OwnData
    weights: Callable[[Tree], Tree]
    keep: Callable[[Path, Tree], None] | None = None
    prompts: tuple[str, ...] = ()
    every: int = 200

    def train(self, start: Tree, run_block: RunBlock = run) -> Tree:
        """Train from `start`, or go on with the run in the folder; return the trained weights."""
        how, cfg, nx = self.data.how, self.data.pipe.flux[0], self.data.pipe.nx
        plan = Plan(self.folder, how.steps, how.seed, checkpoint_every=min(100, self.every), sample_every=self.every)

        def loss(p: Tree, *arrays: Array) -> Array:
            return velocity_loss(self.weights(p), cfg, *arrays, run_block=run_block)

        return train(nx, Team(), plan, how.optimizer, start, self.data.batch, loss, self.on_sample)

    def on_sample(self, p: Tree, step: int) -> None:
        """Write what is trained so far, and images of the prompts by it."""
        if self.keep:
            self.keep(self.folder / f"step-{step}", p)
        if self.prompts:
            cfg, side = self.data.pipe.flux[0], self.data.how.side
            pipe = replace(self.data.pipe, flux=(cfg, self.weights(p)))
            images = pipe(list(self.prompts), width=side, height=side)
            grid([np.asarray(image) for image in images], columns=4).save(self.folder / f"step-{step}.png")


def claim(folder: Path, settings: dict) -> None:
    """Write down a run's settings in its folder; raises `ArgumentError` where another run is there."""
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return write_json(path, settings)
    before = read_json(path)
    others = sorted(key for key in settings if settings[key] != before.get(key))
    if others:
        was = ", ".join(f"{key} {before.get(key)!r}" for key in others)
        raise ArgumentError(f"{folder}: is a run with {was}; go on with that, or choose another output")


def settings_of(subject: Subject, data: OwnData, **others: object) -> dict:
    """Return all that a run depends on, as JSON has it."""
    described = [f"{sample.latents.name} {sample.caption}" for sample in data.samples]
    images = hashlib.sha256("\n".join(described).encode()).hexdigest()
    return {"model": subject.hash(), "images": images, **asdict(data.how), **others}


def small_images(images: Sequence[Captioned], side: int) -> Iterator[Captioned]:
    """Yield the images that are enlarged to their bucket."""
    sizes = bucket_sizes(side)
    for image in images:
        width, height = bucket_of(image.size, sizes)
        if image.size[0] < width or image.size[1] < height:
            yield image
