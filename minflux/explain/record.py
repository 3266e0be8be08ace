"""Draw an image, and keep of it what the page shows: the model is listened to, and draws what it draws anyway."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minflux.backend import backend_of
from minflux.errors import ArgumentError, quoted
from minflux.explain.choice import STEPS, Choice, choose, evenly, grid_of
from minflux.explain.cost import Part, operations, parts, seconds
from minflux.explain.groups import Groups, between, groups_of, text_groups
from minflux.explain.modulations import of_block, sizes, some_channels
from minflux.explain.motion import motion
from minflux.model.flux import FluxConfig
from minflux.sampling.noise import check_seed, noise
from minflux.sampling.solvers import Step

OnStep = Callable[[Step], None]


@dataclass(eq=False)
class Recorder:
    """An `on_block` that keeps what a page has room for, and how long each block took.

    attention: (step, block, head) -> (M, M), what each group takes of each other one. steered: (step, block) -> the
    sizes of its modulations and some of their channels. seconds: block -> those of each step.
    """

    choice: Choice
    groups: Groups
    shown: tuple[int, ...]
    step: int = -1
    clock: float = 0.0
    rest: float = 0.0  # seconds after the last block of each step
    attention: dict[tuple[int, str, int], np.ndarray] = field(default_factory=dict)
    steered: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def begin(self) -> None:
        """Begin a step."""
        self.step += 1
        self.clock = time.perf_counter()

    def end(self) -> None:
        """End a step."""
        self.rest += time.perf_counter() - self.clock

    def __call__(self, name: str, seen: dict[str, Any]) -> None:
        """Listen to a block; with classifier-free guidance to the prompt's row, which comes first."""
        self.seconds.setdefault(name, []).append(time.perf_counter() - self.clock)
        if self.step in self.shown:
            mod = of_block(seen["mod"])
            self.steered[self.step, name] = sizes(mod), some_channels(mod)
        if self.step in self.choice.steps and name in self.choice.blocks:
            for head in self.choice.heads:
                q, k = (seen[role][:1, head : head + 1] for role in "qk")
                self.attention[self.step, name, head] = between(self.groups, q, k)
        self.clock = time.perf_counter()


@dataclass(frozen=True, eq=False)
class Record:
    """A drawing as the page shows it: what was asked for, and what was seen on the way.

    guidance: built in, or a scale of `passes` = 2. timesteps: of all steps, and the end's. frames: uint8 images of x_t
    at each step that is shown, then of what each aimed at, then the image itself. moved: see `motion`.
    """

    prompt: str
    model: str
    seed: int
    guidance: float
    passes: int
    size: tuple[int, int]
    config: FluxConfig
    text_length: int
    timesteps: list[float]
    tokens: tuple[int, int]  # rows and columns
    seen: Recorder
    frames: list[np.ndarray]
    moved: dict[str, list[float]]
    cost: list[Part]


def check_explainable(pipe: Any, prompt: Any) -> None:
    """Raise `ArgumentError` for another model than FLUX.1, one that needs an image, and what is no single prompt."""
    if getattr(pipe, "flux", None) is None:
        raise ArgumentError(f"explain looks into FLUX.1 alone, and {pipe!r} is another model: generate with it instead")
    if pipe.takes:
        raise ArgumentError(f"explain draws from a prompt alone, and this model needs a {pipe.takes} image beside it")
    if not isinstance(prompt, str):
        raise ArgumentError(f"prompt must be one string, got {quoted(prompt)}")


def block_names(cfg: FluxConfig) -> list[str]:
    """List the blocks' names in the order in which they run."""
    double = [f"double_blocks.{i}" for i in range(cfg.depth)]
    return double + [f"single_blocks.{i}" for i in range(cfg.depth_single_blocks)]


def recorder_for(pipe: Any, prompt: str, tokens: tuple[int, int], steps: int) -> Recorder:
    """Return a recorder that keeps what a page has room for; tokens: the image's rows and columns of them."""
    cfg, length = pipe.flux[0], pipe.defaults.text_length
    shown = evenly(steps, STEPS)
    words = len(text_groups(pipe.t5_tokenizer, prompt, length)[0])
    choice = choose(shown, block_names(cfg), cfg.num_heads, words, tokens)
    grid = grid_of(*tokens, choice.cells)
    return Recorder(choice, groups_of(pipe.t5_tokenizer, prompt, length, tokens, grid), shown)


def followed(
    steps: Iterator[Step], start: np.ndarray, seen: Recorder, on_step: OnStep | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Take a drawing's steps under a recorder; return x at every timestep, and what each step aimed at."""
    x, clean = [start], []
    seen.begin()
    for step in steps:
        seen.end()
        nx = backend_of(step.x)
        x.append(nx.to_numpy(step.x))
        clean.append(nx.to_numpy(step.denoised))
        if on_step is not None:
            on_step(step)
        seen.begin()
    return x, clean


def record(
    pipe: Any,
    prompt: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    width: int | None = None,
    height: int | None = None,
    on_step: OnStep | None = None,
) -> Record:
    """Draw an image of a prompt by a FLUX.1, with the settings of a call, and return what was seen.

    Raises `ArgumentError` for another model, and for settings that can't be honoured.
    """
    check_explainable(pipe, prompt)
    check_seed(seed)
    plan = pipe.plan(1, seed, steps, guidance, None, width, height, "euler")
    rows, columns = (side // (2 * pipe.downscale) for side in (plan.height, plan.width))
    seen = recorder_for(pipe, prompt, (rows, columns), len(plan.timesteps) - 1)

    text, before = timed(lambda: pipe.encode(prompt, guidance=guidance))
    start = noise(seed, (1, pipe.channels, 2 * rows, 2 * columns)).transpose(0, 2, 3, 1)
    how = {"guidance": guidance, "width": plan.width, "height": plan.height, "on_block": seen}
    walk = pipe.sample(text, seed, steps, start=pipe.nx.array(np.ascontiguousarray(start)), **how)
    x, clean = followed(walk, start, seen, on_step)
    image, after = timed(lambda: pipe.decode(pipe.nx.array(x[-1]))[0])

    passes = 2 if plan.guidance.needs_negative else 1
    counted = operations(pipe, (2 * rows, 2 * columns), len(clean), passes)
    measured = seconds(before, seen.seconds, seen.rest, after)
    return Record(
        prompt=prompt,
        model=pipe.name,
        seed=seed,
        guidance=plan.guidance.embedded if pipe.built_in_guidance else plan.guidance.scale,
        passes=passes,
        size=(plan.width, plan.height),
        config=pipe.flux[0],
        text_length=pipe.defaults.text_length,
        timesteps=[float(t) for t in plan.timesteps],
        tokens=(rows, columns),
        seen=seen,
        frames=[*decoded(pipe, [of[i] for of in (x, clean) for i in seen.shown]), image],
        moved=motion(x, clean, plan.timesteps),
        cost=parts(counted, measured),
    )


def decoded(pipe: Any, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Decode latents (1, h, w, C) one by one to uint8 images (H, W, 3)."""
    return [pipe.decode(pipe.nx.array(x))[0] for x in latents]


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Run something, and return what it gives and the seconds that it took."""
    began = time.perf_counter()
    return run(), time.perf_counter() - began
