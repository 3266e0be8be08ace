"""The VAE's loss: redraw the image, and keep the latents near a normal distribution."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.tree import tree_map
from minflux.images import to_uint8
from minflux.model.vae import VAEConfig, decode, encode, encode_moments
from minflux.train import scenes
from minflux.train.init_weights import init_weights
from minflux.train.loop import Batch, Plan, train
from minflux.train.recipe import Training, optimizer, part, section
from minflux.train.workers import assemble


@shaped
def vae_loss(
    p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"], noise: Float[Array, "B H8 W8 Z"], kl_weight: float
) -> Array:
    """mean |x - decode(z)| + kl_weight · mean KL(q(z|x) ‖ N(0, 1)), with z = mean + σ · noise.

    image in [-1, 1]; KL = (mean² + σ² - 1 - log σ²) / 2 a latent, in nats (Kingma & Welling 2013, arXiv 1312.6114).
    The shift and scale of the config are undone inside `decode`, so they have no part in training.
    """
    nx = backend_of(image, noise)
    mean, log_variance = encode_moments(p, cfg, image)
    log_variance = nx.maximum(log_variance, -20.0)
    z = mean + nx.exp(0.5 * log_variance) * noise
    drawn = decode(p, cfg, (z - cfg.shift_factor) * cfg.scale_factor)
    kl = 0.5 * nx.mean(mean * mean + nx.exp(log_variance) - 1 - log_variance)
    return nx.mean(nx.abs(image - drawn)) + kl_weight * kl


def images(scenes_drawn: list[scenes.Scene]) -> np.ndarray:
    """Render scenes as the VAE sees them: (B, 64, 64, 3) float32 in [-1, 1]."""
    return scenes.render_batch(scenes_drawn).astype(np.float32) / 127.5 - 1


def train_vae(recipe: dict[str, Any], folder: Path, nx: Backend, on_sample=None) -> tuple[VAEConfig, Tree]:
    """Train the recipe's VAE in `folder`, or go on with it; return its config and averaged weights.

    The config comes back with the shift and scale that bring its latents to mean 0 and deviation 1.
    """
    cfg = section(VAEConfig, part(recipe, "vae.model"))
    how = section(Training, part(recipe, "vae.training"))
    side = scenes.SIDE // cfg.downscale

    def batch(rng: np.random.Generator) -> Batch:
        drawn = images([scenes.sample(rng) for _ in range(how.batch)])
        return drawn, rng.standard_normal((how.batch, side, side, cfg.z_channels), np.float32)

    with assemble(how.workers) as team:
        weights = train(
            nx,
            team,
            Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every),
            optimizer(part(recipe, "vae.optimizer")),
            tree_map(nx.array, init_weights(vae_shapes(cfg), how.seed)),
            batch,
            lambda p, image, noise: vae_loss(p, cfg, image, noise, how.kl_weight),
            on_sample and (lambda p, step: on_sample(cfg, p, step)),
        )
    return normalised(cfg, weights, nx), weights


def normalised(cfg: VAEConfig, p: Tree, nx: Backend, count: int = 512) -> VAEConfig:
    """Measure mean and deviation of the raw latents over `count` scenes, as the config's shift and scale."""
    rng = np.random.default_rng(0)
    raw = []
    for _ in range(count // 32):
        mean, _ = encode_moments(p, cfg, nx.array(images([scenes.sample(rng) for _ in range(32)])))
        raw.append(nx.to_numpy(mean))
    latents = np.concatenate(raw)
    return replace(cfg, shift_factor=float(latents.mean()), scale_factor=float(1 / latents.std()))


def reconstruct(cfg: VAEConfig, p: Tree, nx: Backend, image: np.ndarray) -> np.ndarray:
    """Encode and decode uint8 images (B, 64, 64, 3): what the VAE alone makes of them."""
    x = nx.array(image.astype(np.float32) / 127.5 - 1)
    return to_uint8(nx.to_numpy(decode(p, cfg, encode(p, cfg, x))))
