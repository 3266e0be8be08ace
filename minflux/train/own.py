"""Train a model on one's own images: a LoRA beside its transformer, or the transformer itself.

The text encoders and the VAE are frozen. So all that they say of the images is computed once, kept on disk, and read
back in each step; while the transformer trains, they take no memory. The loss is the one that FLUX.1 was trained by: a
rectified flow in the VAE's latents.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.hashes import hash_file
from minflux.errors import ArgumentError
from minflux.images import grid
from minflux.model.flux import FluxConfig
from minflux.model.hooks import RunBlock, run
from minflux.model.latents import pack
from minflux.train.loop import Plan, train
from minflux.train.objective import noised, velocity
from minflux.train.own_data import Folders, OwnData, OwnTraining, Subject, weighted
from minflux.train.workers import Team

SETTINGS = "settings.json"
HASHES = "model", "images"  # among the settings


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
    guidance = nx.ones(t.shape, dtype=nx.float32) if cfg.guidance_embed else None
    v = velocity(p, cfg, noised(x0, noise, t), t, txt, y, guidance, run_block=run_block)
    error = nx.as_float32(v) - pack(noise - x0)
    return nx.mean(error * error)


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
        was = ", ".join(f"other {key}" if key in HASHES else f"{key} {before.get(key)!r}" for key in others)
        raise ArgumentError(f"{folder}: is a run with {was}; go on with that, or choose another output")


def settings_of(subject: Subject, folders: Folders, how: OwnTraining, **others: object) -> dict:
    """Return all that a run depends on, as JSON has it."""
    described = [f"{hash_file(image.path)} {weight} {image.caption}" for image, weight in weighted(folders)]
    images = hashlib.sha256("\n".join(described).encode()).hexdigest()
    return {"model": subject.hash(), "images": images, **asdict(how), **others}
