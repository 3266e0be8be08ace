"""Guidance distilled into an input, as FLUX.1-dev has it: the student gives in one pass what its teacher gives in two.

The teacher is a trained model that is guided by a second pass with an empty prompt. The student is a copy of it with
one more input, the guidance; it learns to predict the guided velocity for any guidance of a range. The text encoders
stay as they are. Sources: Meng et al. 2023 (arXiv 2210.03142) §3.1; for the transformer's input, BFL's FLUX.1-dev.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.tree import leaves, tree
from minflux.inference.flux1 import Flux1
from minflux.model.flux import FluxConfig
from minflux.sampling.guidance import guided
from minflux.train.flow import read_text
from minflux.train.init_weights import init_weights
from minflux.train.loop import Batch, Plan, train
from minflux.train.objective import noised, velocity
from minflux.train.recipe import Training, optimizer, part, section
from minflux.train.velocity import CLIP_TOKENS, Data, Mixture, data_of
from minflux.train.workers import assemble

LAST = "guidance_in.out_layer.weight"  # zero at first: the student begins as its teacher without guidance


@dataclass(frozen=True)
class Range:
    """The guidance that the student learns to follow: any from `least` to `most`."""

    least: float = 1.0
    most: float = 5.0


@dataclass(frozen=True)
class Teacher:
    """A trained model: configs and weights of "transformer", "clip" and "t5"."""

    configs: tuple  # FluxConfig, CLIPConfig, T5Config
    p: Tree

    def text(self, clip_ids: Int[Array, "B S"], t5_ids: Int[Array, "B T"]) -> tuple[Array, Array]:
        """Return T5's hidden states txt (B, T, E) and CLIP's pooled output y (B, P)."""
        return read_text(self.p, self.configs, clip_ids, t5_ids)

    def velocity(self, x_t: Array, t: Array, txt: Array, y: Array) -> Array:
        """Return the velocity (B, I, C) of latents x_t (B, H, W, C) at times t (B,)."""
        return velocity(self.p["transformer"], self.configs[0], x_t, t, txt, y)


def teacher_of(pipe: Flux1) -> Teacher:
    """Return a loaded model as a teacher."""
    parts = {"transformer": pipe.flux, "clip": pipe.clip, "t5": pipe.t5}
    return Teacher(tuple(cfg for cfg, _ in parts.values()), {name: p for name, (_, p) in parts.items()})


@shaped
def guidance_loss(
    p: Tree,
    cfg: FluxConfig,
    teacher: Teacher,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    empty_clip: Int[Array, "B S"],
    empty_t5: Int[Array, "B T"],
    scale: Float[Array, "B"],
) -> Array:
    """mean ‖v(x_t, t, text, s) - (u + s (c - u))‖², where c and u are the teacher's velocities with and without text.

    x_t = (1 - t) x₀ + t noise; p and cfg are the student's transformer; s is `scale`.
    """
    nx = backend_of(x0, noise, t)
    x_t = noised(x0, noise, t)
    txt, y = teacher.text(clip_ids, t5_ids)
    no_txt, no_y = teacher.text(empty_clip, empty_t5)
    both = teacher.velocity(
        nx.concatenate([x_t, x_t]), nx.concatenate([t, t]), nx.concatenate([txt, no_txt]), nx.concatenate([y, no_y])
    )
    target = guided(both, scale[:, None, None])
    error = velocity(p, cfg, x_t, t, txt, y, scale) - target
    return nx.mean(error * error)


def student_of(cfg: FluxConfig, p: Tree, nx: Backend, seed: int) -> tuple[FluxConfig, Tree]:
    """Return a copy of the transformer with an input for the guidance, which has no effect yet.

    A compiled step can't have one array among its arguments and, as the teacher's, among what it closes over.
    """
    cfg = replace(cfg, guidance_embed=True)
    known = {name: nx.array(nx.to_numpy(x)) for name, x in leaves(p)}
    fresh = dict(leaves(init_weights(flux_shapes(cfg), seed)))
    fresh[LAST] = np.zeros_like(fresh[LAST])
    return cfg, tree({name: known.get(name, nx.array(fresh[name])) for name in flux_shapes(cfg)})


def guidance_batch(data: Data, scales: Range) -> Callable[[np.random.Generator], Batch]:
    """Make batch(rng): what the flow's batch has, the ids of as many empty prompts, and the guidance of each sample."""

    def batch(rng: np.random.Generator) -> Batch:
        x0, noise, t, clip_ids, t5_ids, _ = data.batch(rng)
        empty = [""] * len(x0)
        guidance = rng.uniform(scales.least, scales.most, len(x0)).astype(np.float32)
        return x0, noise, t, clip_ids, t5_ids, data.clip(empty, CLIP_TOKENS), data.t5(empty, t5_ids.shape[1]), guidance

    return batch


def distill_guidance(
    recipe: dict[str, Any], folder: Path, base: Flux1, nx: Backend, on_sample: Callable[..., None] | None = None
) -> tuple[FluxConfig, Tree]:
    """Train a student of `base` by the recipe's [guidance] in `folder`, or go on; return its transformer.

    `on_sample(cfg, ema, step)` may draw images on the way.
    """
    how = section(Training, part(recipe, "guidance.training"))
    mixture = section(Mixture, part(recipe, "guidance.mixture"))
    scales = section(Range, part(recipe, "guidance.range"))
    tokenizers = base.clip_tokenizer, base.t5_tokenizer
    teacher = teacher_of(base)
    cfg, p = student_of(*base.flux, nx, how.seed)
    with assemble(how.workers) as team:
        data = data_of(how, mixture, base.vae, tokenizers, base.schedule.shift, folder / "latents", nx, team)
        weights = train(
            nx,
            team,
            Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every),
            optimizer(part(recipe, "guidance.optimizer")),
            p,
            guidance_batch(data, scales),
            lambda p, *arrays: guidance_loss(p, cfg, teacher, *arrays),
            on_sample and (lambda p, step: on_sample(cfg, p, step)),
        )
    return cfg, weights
