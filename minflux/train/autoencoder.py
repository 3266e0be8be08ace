"""Training the VAE of the world's images, in stages: crops, then sharper crops, then whole images.

A VAE is convolutional, so most of what it must learn can be learnt from pieces: a crop of 64×64 pixels around
a thing costs a quarter of an image of 128×128, most of which is flat colour. What crops can't teach are the means and
variances of whole images, which its norms see, and attention over more than 64 places; so the last stage shows
whole images of every size. Each section [vae.NAME.training] of a recipe is a stage, in the file's order; with
`adversarial` above 0 a judge takes part (`adversarial.py`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Float, Int, Tree, shaped
from minflux.backend import Backend
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.tree import tree_map
from minflux.images import to_uint8
from minflux.model.vae import VAEConfig, decode, encode, encode_moments
from minflux.train.adversarial import adversarial_step, begin
from minflux.train.discriminator import JudgeConfig, judge_shapes
from minflux.train.init_weights import init_weights
from minflux.train.loop import Batch, Plan, run, train
from minflux.train.optimizer import AdamW
from minflux.train.recipe import Training, optimizer, part, section, stages, workers
from minflux.train.vae import vae_loss
from minflux.train.workers import Team, assemble
from minflux.world import scenes
from minflux.world.render import render, render_batch


@shaped
def signed(images: Int[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B H W 3"]:
    """Map uint8 images to float32 in [-1, 1], as the VAE sees them."""
    return images.astype(np.float32) / 127.5 - 1


def draw_size(rng: np.random.Generator, least: int = 0) -> tuple[int, int]:
    """Draw a width and height: the default half of the time, else any two sides of the world of at least `least`."""
    if rng.random() < 0.5 and least <= scenes.DEFAULT_SIDE:
        return scenes.DEFAULT_SIDE, scenes.DEFAULT_SIDE
    width, height = rng.choice([side for side in scenes.SIDES if side >= least], 2)
    return int(width), int(height)


@shaped
def whole_images(rng: np.random.Generator, count: int) -> Int[np.ndarray, "B H W 3"]:
    """Draw `count` images of one random size: (B, H, W, 3) uint8."""
    size = draw_size(rng)
    return render_batch([scenes.sample(rng, *size) for _ in range(count)])


@shaped
def crops(rng: np.random.Generator, count: int, side: int) -> Int[np.ndarray, "B H H 3"]:
    """Draw `count` squares out of images of any size, each around one of the image's items: (B, side, side, 3)."""
    return np.stack([_crop(rng, scenes.sample(rng, *draw_size(rng, side)), side) for _ in range(count)])


def _crop(rng: np.random.Generator, scene: scenes.Scene, side: int) -> np.ndarray:
    places = scenes.boxes(scene)
    left, top, width, height = places[rng.integers(len(places))]
    x = grid_place(left + int(rng.integers(width)) - side // 2, scene.width - side)
    y = grid_place(top + int(rng.integers(height)) - side // 2, scene.height - side)
    return render(scene)[y : y + side, x : x + side]


def grid_place(place: int, last: int) -> int:
    """Return where a crop begins, at most at `last`: on the grid of tokens, as things lie in whole images."""
    return int(np.clip(place, 0, last)) // scenes.GRID * scenes.GRID


def train_autoencoder(recipe: dict[str, Any], folder: Path, nx: Backend, on_sample=None) -> tuple[VAEConfig, Tree]:
    """Train the recipe's VAE stage by stage, each in a folder of its own, or go on; return config and weights.

    A stage starts from the averaged weights of the one before. The config comes back with the shift and scale that
    bring its latents to mean 0 and deviation 1.
    """
    cfg = section(VAEConfig, part(recipe, "vae.model"))
    weights = tree_map(nx.array, init_weights(vae_shapes(cfg), part(recipe, "vae")["seed"]))
    with assemble(workers(recipe, "vae")) as team:
        for name in stages(recipe, "vae"):
            how = section(Training, part(recipe, f"vae.{name}.training"))
            opt = optimizer(part(recipe, f"vae.{name}.optimizer"))
            sample = on_sample and (lambda p, step, name=name: on_sample(cfg, p, name, step))
            weights = train_stage(nx, team, cfg, how, opt, weights, folder / name, sample)
    return normalised(cfg, weights, nx), weights


def train_stage(
    nx: Backend, team: Team, cfg: VAEConfig, how: Training, opt: AdamW, weights: Tree, folder: Path, on_sample
) -> Tree:
    """Train one stage in `folder` from `weights`, or go on with it; return the averaged weights."""
    plan = Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every)

    def batch(rng: np.random.Generator) -> Batch:
        image = crops(rng, how.batch, how.crop) if how.crop else whole_images(rng, how.batch)
        latents = (*(n // cfg.downscale for n in image.shape[1:3]), cfg.z_channels)
        return signed(image), rng.standard_normal((how.batch, *latents), np.float32)

    if not how.adversarial:
        return train(
            nx, team, plan, opt, weights, batch,
            lambda p, image, noise: vae_loss(p, cfg, image, noise, how.kl_weight), on_sample,
        )  # fmt: skip
    critic_cfg = JudgeConfig()
    critic = tree_map(nx.array, init_weights(judge_shapes(critic_cfg), how.seed))
    step = adversarial_step(nx, opt, cfg, critic_cfg, how.kl_weight, how.adversarial, team)
    return run(nx, team, plan, opt, begin(nx, weights, critic), step, batch, on_sample)


def normalised(cfg: VAEConfig, p: Tree, nx: Backend, count: int = 256) -> VAEConfig:
    """Measure mean and deviation of the raw latents over `count` scenes, as the config's shift and scale."""
    rng = np.random.default_rng(0)
    raw = []
    for _ in range(count // 16):
        images = render_batch([scenes.sample(rng) for _ in range(16)])
        raw.append(nx.to_numpy(encode_moments(p, cfg, nx.array(signed(images)))[0]))
    latents = np.concatenate(raw)
    return replace(cfg, shift_factor=float(latents.mean()), scale_factor=float(1 / latents.std()))


@shaped
def reconstruct(cfg: VAEConfig, p: Tree, nx: Backend, images: Int[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B H W 3"]:
    """Encode and decode uint8 images (B, H, W, 3): what the VAE alone makes of them."""
    return to_uint8(nx.to_numpy(decode(p, cfg, encode(p, cfg, nx.array(signed(images))))))
