"""The road not taken, on the same world: a U-Net or the transformer, trained to predict the noise or the velocity.

Data, captions, T5 and stages are those of the flow (`velocity.py`). The recipe's section [prediction] says which of the
two networks is trained, and which of the two questions it is asked, so that one sees which makes the difference:

    noise      x = √ᾱ x₀ + √(1 - ᾱ) ε at a step n that is drawn evenly, and the answer is ε
    velocity   x = (1 - t) x₀ + t ε at a time t that is drawn as the flow's are, and the answer is ε - x₀

The loss is the mean of |answer - target| to the power 1 or 2. The U-Net is shown T5's hidden states alone: it has no
input for CLIP's pooled text, which is then not trained. Source: Ho et al. 2020 (arXiv 2006.11239), algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.components.shapes import Shapes, under
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.unet import check_divisors, unet_shapes
from minflux.errors import ArgumentError, quoted
from minflux.model.clip import clip_encoder
from minflux.model.latents import unpack
from minflux.model.t5 import t5_encoder
from minflux.model.unet import UNetConfig, unet
from minflux.sampling.ddpm import NoiseSchedule, noise_as_velocity, radius
from minflux.sampling.guidance import guided
from minflux.sampling.solvers import Solver, Velocity, euler
from minflux.sampling.timesteps import Schedule
from minflux.train.flow import configs_of, shapes_of
from minflux.train.loop import Batch
from minflux.train.objective import velocity
from minflux.train.recipe import part, section
from minflux.train.velocity import Data, tokenizers_of, train_stages

NETWORKS, OBJECTIVES = ("unet", "transformer"), ("noise", "velocity")


@dataclass(frozen=True)
class Prediction:
    """What is trained and what it is asked: a network, an objective, and the power of the error in the loss.

    clip: in sampling, the image that a predicted noise aims at is kept within ±clip; 0 for as it is. Raises
    `ArgumentError` for other words.
    """

    network: str = "unet"
    objective: str = "noise"
    power: int = 2
    clip: float = 0.0

    def __post_init__(self):
        for name, found, known in (
            ("network", self.network, NETWORKS),
            ("objective", self.objective, OBJECTIVES),
            ("power", self.power, (1, 2)),
        ):
            if found not in known:
                raise ArgumentError(f"{name} must be one of {', '.join(map(str, known))}, got {quoted(found)}")


@dataclass(frozen=True)
class Task:
    """All that a run depends on beside its data: what is asked, where sampling stops for each answer, the configs."""

    asked: Prediction
    noise: NoiseSchedule
    schedule: Schedule
    unet: UNetConfig
    flow: tuple  # FluxConfig, CLIPConfig, T5Config

    @property
    def shapes(self) -> Shapes:
        """Return the shapes of all that is trained: "unet" and "t5", or "transformer", "clip" and "t5"."""
        if self.asked.network == "transformer":
            return shapes_of(self.flow)
        return under("unet", unet_shapes(self.unet)) | under("t5", t5_shapes(self.flow[2]))

    def timesteps(self, steps: int, tokens: int) -> np.ndarray:
        """Return the flow's times at which sampling stops, falling to 0."""
        schedule: Any = self.noise if self.asked.objective == "noise" else self.schedule
        return schedule.timesteps(steps, tokens)


def task_of(recipe: dict[str, Any], model: Path) -> Task:
    """Read a recipe's [prediction], with its [prediction.noise] and [prediction.unet]; `model` holds the tokenizers."""
    values = part(recipe, "prediction")
    sections = ("noise", "unet")
    asked = section(Prediction, {key: value for key, value in values.items() if key not in sections})
    noise = section(NoiseSchedule, part(recipe, "prediction.noise"))
    flow = configs_of(recipe, *tokenizers_of(model))
    unet_cfg = section(UNetConfig, part(recipe, "prediction.unet") | {"cross_attention_dim": flow[2].d_model})
    check_divisors(unet_cfg)
    return Task(asked, noise, section(Schedule, part(recipe, "schedule")), unet_cfg, flow)


# -- the question and its answer -------------------------------------------------------------------------------


def batches(task: Task, data: Data) -> Callable[[np.random.Generator], Batch]:
    """Make batch(rng): the network's input, its target and its time in [0, 1], the ids, and factors of the pooled text.

    Images, captions, noise and the flow's times are those that the flow's own run draws from the same rng.
    """

    def batch(rng: np.random.Generator) -> Batch:
        x0, noise, t, *text = data.batch(rng)
        if task.asked.objective == "velocity":
            return mixed(x0, noise, 1 - t, t), noise - x0, t, *text
        n = rng.integers(task.noise.num_train_timesteps, size=len(t))
        level = task.noise.levels[n]
        x = mixed(x0, noise, np.sqrt(level), np.sqrt(1 - level))
        return x, noise, (n / task.noise.num_train_timesteps).astype(np.float32), *text

    return batch


def mixed(x0: np.ndarray, noise: np.ndarray, image_share: np.ndarray, noise_share: np.ndarray) -> np.ndarray:
    """Return image_share · x₀ + noise_share · ε, a share for each sample (B,), in float32."""
    a, b = (share.astype(np.float32)[:, None, None, None] for share in (image_share, noise_share))
    return a * x0 + b * noise


@shaped
def predict(
    p: Tree, task: Task, x: Float[Array, "B H W C"], time: Float[Array, "B"], txt: Float[Array, "B T E"], y=None
) -> Float[Array, "B H W C"]:
    """Ask the network at times in [0, 1]; y: CLIP's pooled output (B, P), which the transformer alone takes."""
    if task.asked.network == "unet":
        return unet(p["unet"], task.unet, x, 1000 * time, txt)
    return unpack(velocity(p["transformer"], task.flow[0], x, time, txt, y), *x.shape[1:3])


@shaped
def encode_text(
    p: Tree, task: Task, clip_ids: Int[Array, "B S"], t5_ids: Int[Array, "B T"]
) -> tuple[Float[Array, "B T E"], Any]:
    """Return T5's hidden states, and CLIP's pooled output (B, P) where the network takes it, else None."""
    _, clip_cfg, t5_cfg = task.flow
    txt = t5_encoder(p["t5"], t5_cfg, t5_ids)
    return txt, clip_encoder(p["clip"], clip_cfg, clip_ids)[1] if task.asked.network == "transformer" else None


@shaped
def prediction_loss(
    p: Tree,
    task: Task,
    x: Float[Array, "B H W C"],
    target: Float[Array, "B H W C"],
    time: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"],
) -> Array:
    """Compute mean |network(x, time, text) - target|^power.

    p: what `Task.shapes` lists. pooled: by how much each sample's pooled text is multiplied, 0 to hide it.
    """
    nx = backend_of(x, target, time)
    txt, y = encode_text(p, task, clip_ids, t5_ids)
    y = None if y is None else y * pooled[:, None]
    error = predict(p, task, x, time, txt, y) - target
    return nx.mean(error * error if task.asked.power == 2 else nx.abs(error))


# -- sampling --------------------------------------------------------------------------------------------------


def velocity_of(p: Tree, task: Task, txt: Array, y: Any = None) -> Velocity:
    """Return the velocity of a trained network for given texts, whichever question it was asked, for any solver."""
    nx = backend_of(txt)

    def ask(x: Array, time: float) -> Array:
        return predict(p, task, x, nx.array(np.full(len(txt), time, np.float32)), txt, y)

    if task.asked.objective == "velocity":
        return ask
    count, clip = task.noise.num_train_timesteps, task.asked.clip or None
    return noise_as_velocity(lambda x, n: ask(x, n / count), task.noise, clip)


def sample_latents(
    p: Tree,
    task: Task,
    ids: tuple[Int[Array, "B S"], Int[Array, "B T"]],
    noise: Float[Array, "B H W C"],
    steps: int,
    guidance: float,
    solver: Solver = euler,
) -> Float[Array, "B H W C"]:
    """Sample latents from noise. The ids of both tokenizers are of the prompts, then of as many empty ones.

    Each step asks the network once, for both halves; on a U-Net that predicts noise, `euler` is DDIM (see `ddpm`).
    """
    nx = backend_of(noise)
    v = velocity_of(p, task, *encode_text(p, task, *ids))
    timesteps = task.timesteps(steps, noise.shape[1] * noise.shape[2] // 4)
    start = noise * radius(float(timesteps[0]))
    *_, last = solver(lambda x, t: guided(v(nx.concatenate([x, x]), t), guidance), start, timesteps)
    return last.x


# -- training --------------------------------------------------------------------------------------------------


def train_prediction(
    recipe: dict[str, Any], folder: Path, model: Path, nx: Backend, on_sample: Callable[..., None] | None = None
) -> tuple[Task, Tree]:
    """Train what the recipe's [prediction] says, stage by stage as `train_velocity` does, or go on.

    Returns the task and the averaged weights. `on_sample(task, ema, stage, step)` may draw images on the way.
    """
    task = task_of(recipe, model)
    weights = train_stages(
        recipe,
        folder,
        model,
        nx,
        task.shapes,
        lambda data: batches(task, data),
        lambda p, *arrays: prediction_loss(p, task, *arrays),
        on_sample and (lambda p, stage, step: on_sample(task, p, stage, step)),
    )
    return task, weights
