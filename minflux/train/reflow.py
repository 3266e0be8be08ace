"""Steps distilled, as FLUX.1-schnell has it: the student goes in a few straight steps where its teacher takes twenty.

A flow's paths are curved, because training pairs each image with any noise. Here each noise is paired with the image
that the teacher makes of it, and a copy of the teacher learns the straight line between the two: on straight lines
an Euler step is exact however long it is. The teacher's guidance is in its images, so the student needs none.

Source: Liu et al. 2022 (arXiv 2209.03003) §2.1 and §3.1, "reflow".
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.tree import leaves, tree
from minflux.inference.flux1 import Flux1
from minflux.model.embeddings import mlp_embedder, timestep_embedding
from minflux.model.flux import TIME_DIM, FluxConfig
from minflux.model.latents import pack
from minflux.train.encoded import Size, scenes_of, shards_of
from minflux.train.guidance import Teacher, teacher_of
from minflux.train.loop import Batch, Plan, train
from minflux.train.objective import noised, velocity
from minflux.train.recipe import Training, optimizer, part, section
from minflux.train.velocity import CLIP_TOKENS, Mixture, counts_of, draw_shape
from minflux.train.workers import ALONE, Team, assemble
from minflux.world.captions import caption

SHARD = 256  # pairs a file
CHUNK = 16  # images sampled at once
TIME_BIAS = "time_in.out_layer.bias"  # a part of `vec` that never changes


@dataclass(frozen=True)
class Pairs:
    """Prompts with their noise and the teacher's latents, both (N, h, w, C) float32."""

    prompts: list[str]
    noise: np.ndarray
    latents: np.ndarray


def prompts_and_noise(
    teacher: Flux1, size: Size, shard: int, count: int, how: Training
) -> tuple[list[str], np.ndarray]:
    """Draw a shard's captions and noise, the same for the same seed."""
    rng = np.random.default_rng([how.seed, *size, shard])
    prompts = [caption(scene, rng, how.in_order) for scene in scenes_of(size, shard, count, how.seed)]
    rows, columns = size[1] // teacher.downscale, size[0] // teacher.downscale
    return prompts, rng.standard_normal((count, rows, columns, teacher.channels), np.float32)


def write_sampled(teacher: Flux1, prompts: list[str], noise: np.ndarray, path: Path) -> None:
    """Sample the teacher's latents for a shard, and write them."""
    chunks = range(0, len(prompts), CHUNK)
    latents = np.concatenate([sampled(teacher, prompts[i : i + CHUNK], noise[i : i + CHUNK]) for i in chunks])
    with written_whole(path) as file:
        np.save(file, latents)


def sampled(teacher: Flux1, prompts: list[str], noise: np.ndarray) -> np.ndarray:
    """Return the latents (B, h, w, C) float32 that the teacher's own settings make of the noise."""
    *_, last = teacher.sample(teacher.encode(prompts), start=teacher.nx.array(noise))
    return teacher.nx.to_numpy(last.x)


def pair_all(
    teacher: Flux1, counts: dict[Size, int], how: Training, folder: Path, team: Team = ALONE
) -> dict[Size, Pairs]:
    """Sample `counts[size]` pairs of each size, or read back the shards that are there; each process its share."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [(size, *shard) for size, count in counts.items() for shard in shards_of(count, SHARD)]
    for size, number, count in tqdm(team.share(shards), desc="sampling pairs", unit="shard", disable=team.rank > 0):
        path = pairs_path(folder, size, number, count)
        if not path.exists():
            write_sampled(teacher, *prompts_and_noise(teacher, size, number, count, how), path)
    team.wait(teacher.nx)
    found: dict[Size, list[Pairs]] = {size: [] for size in counts}
    for size, number, count in shards:
        latents = np.load(pairs_path(folder, size, number, count))
        found[size].append(Pairs(*prompts_and_noise(teacher, size, number, count, how), latents))
    return {size: joined(parts) for size, parts in found.items()}


def pairs_path(folder: Path, size: Size, shard: int, count: int) -> Path:
    """Name the file of a shard's latents."""
    return folder / f"{size[0]}x{size[1]}-{shard}-{count}.npy"


def joined(parts: list[Pairs]) -> Pairs:
    """Join shards into one."""
    prompts = [prompt for part in parts for prompt in part.prompts]
    return Pairs(prompts, np.concatenate([p.noise for p in parts]), np.concatenate([p.latents for p in parts]))


@shaped
def reflow_loss(
    p: Tree,
    cfg: FluxConfig,
    teacher: Teacher,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
) -> Array:
    """mean ‖v(x_t, t, text) - (noise - x₀)‖², with x_t = (1 - t) x₀ + t noise.

    x₀ is what the teacher makes of that noise. p and cfg are the student's transformer.
    """
    nx = backend_of(x0, noise, t)
    txt, y = teacher.text(clip_ids, t5_ids)
    error = velocity(p, cfg, noised(x0, noise, t), t, txt, y) - pack(noise - x0)
    return nx.mean(error * error)


@dataclass(frozen=True)
class Few:
    """The steps to be good at: half of the times in training are those that they visit, the others any in (0, 1)."""

    steps: tuple[int, ...] = (1, 2, 4)

    def times(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw `count` times, float32."""
        visited = [1 - i / n for n in self.steps for i in range(n)]
        return np.where(rng.random(count) < 0.5, rng.choice(visited, count), 1 - rng.random(count)).astype(np.float32)


def without_guidance(cfg: FluxConfig, p: Tree, guidance: float, nx: Backend) -> tuple[FluxConfig, Tree]:
    """Return the same transformer at one guidance, without an input for it: what it adds to `vec` goes into a bias."""
    strength = nx.array(np.array([guidance], np.float32))
    added = mlp_embedder(p["guidance_in"], timestep_embedding(strength, TIME_DIM))[0]
    flat = {name: x for name, x in leaves(p) if not name.startswith("guidance_in.")}
    flat[TIME_BIAS] = flat[TIME_BIAS] + added
    return replace(cfg, guidance_embed=False), tree(flat)


def pairs_batch(data: dict[Size, Pairs], teacher: Flux1, how: Training, mixture: Mixture, few: Few) -> Callable:
    """Make batch(rng): latents, noise, times and ids of both tokenizers, of one size and one length of text."""

    def batch(rng: np.random.Generator) -> Batch:
        size, length, count = draw_shape(how, mixture, list(data), rng)
        pairs = data[size]
        chosen = rng.integers(len(pairs.prompts), size=count)
        prompts = [pairs.prompts[i] for i in chosen]
        ids = teacher.clip_tokenizer(prompts, CLIP_TOKENS), teacher.t5_tokenizer(prompts, length)
        return pairs.latents[chosen], pairs.noise[chosen], few.times(rng, len(chosen)), *ids

    return batch


def distill_steps(
    recipe: dict[str, Any], folder: Path, base: Flux1, nx: Backend, on_sample: Callable[..., None] | None = None
) -> tuple[FluxConfig, Tree]:
    """Train a student of `base`, a model with guidance as an input, by the recipe's [steps] in `folder`, or go on.

    Returns the student's transformer. `on_sample(cfg, ema, step)` may draw images on the way.
    """
    how = section(Training, part(recipe, "steps.training"))
    mixture = section(Mixture, part(recipe, "steps.mixture"))
    few = section(Few, part(recipe, "steps.few"))
    cfg, p = without_guidance(*base.flux, base.defaults.guidance, nx)
    teacher = teacher_of(base)
    with assemble(how.workers) as team:
        pairs = pair_all(base, counts_of(mixture, how.scenes), how, folder / "pairs", team)
        weights = train(
            nx,
            team,
            Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every),
            optimizer(part(recipe, "steps.optimizer")),
            p,
            pairs_batch(pairs, base, how, mixture, few),
            lambda p, *arrays: reflow_loss(p, cfg, teacher, *arrays),
            on_sample and (lambda p, step: on_sample(cfg, p, step)),
        )
    return cfg, weights
