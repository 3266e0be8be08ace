"""From a prompt to an image: encode, sample, decode, in one loop that all models share.

    prompts -> conditioning -> (noise -> velocity, step by step -> latents) -> images

A model is a subclass that says how its prompts are encoded, what its velocity is, and how its latents become images:
`minflux/inference/flux1.py` for FLUX.1. An edit wraps a velocity, or starts from other latents or at another timestep.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from minflux.arrays import Array
from minflux.backend import Backend
from minflux.errors import ArgumentError, MinfluxError, quoted
from minflux.images import from_uint8
from minflux.inference.arguments import (
    check_fits,
    check_guidance,
    check_image,
    check_latents,
    check_listener,
    check_negative_prompt,
    check_prompts,
    check_seeds,
    check_side,
    check_solver,
    check_steps,
    check_timesteps,
    effective,
    without_effect,
)
from minflux.inference.hints import Trained, hint_at_guidance, hint_at_size, hint_at_text_length, hint_at_words
from minflux.model.hooks import OnBlock
from minflux.sampling.guidance import Guidance
from minflux.sampling.noise import noise
from minflux.sampling.solvers import SOLVERS, Solver, Step, Velocity, visited_timesteps
from minflux.sampling.timesteps import Schedule

OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Defaults:
    """How a model is sampled unless told otherwise: image size, steps, guidance, and T5 tokens."""

    width: int = 1024
    height: int = 1024
    steps: int = 28
    guidance: float = 3.5
    text_length: int = 512


@dataclass(frozen=True)
class Conditioning:
    """What prompts say, ready for the transformer: `txt` (B, T, E) from T5, `y` (B, P) from CLIP.

    negative: the same of the negative prompt, B times, which classifier-free guidance leads away from.
    """

    txt: Array
    y: Array
    negative: "Conditioning | None" = None


@dataclass(frozen=True)
class SamplingPlan:
    """Settings of `sample`, checked and complete: seeds, image size in pixels, timesteps, guidance and solver."""

    seeds: list[int]
    width: int
    height: int
    timesteps: np.ndarray
    guidance: Guidance
    solver: Solver


class CallSettings(TypedDict, total=False):
    """The types of a call's settings, for type checkers; `Pipeline.__call__` has their defaults."""

    seed: int | Sequence[int]
    steps: int | None
    guidance: float | None
    true_cfg_scale: float | None
    negative_prompt: str | None
    width: int | None
    height: int | None
    solver: str
    latents: Array | None
    on_step: OnStep | None
    on_block: OnBlock | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pipeline(ABC):
    """A model ready to generate images: call it, or take its steps `encode`, `sample` and `decode` one by one.

    nx: the backend that computes. schedule: how steps are spread over time. lora: the LoRAs added to the weights.
    trained: what the model was trained on; a `Hint`, which is a warning, tells of anything else that is asked for.
    """

    nx: Backend
    schedule: Schedule
    defaults: Defaults
    trained: Trained = field(default_factory=Trained)
    name: str = ""
    lora: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return one line: the model's name, its size and its backend."""
        return f'Pipeline("{self.name}", {self.count_numbers() / 1e6:,.1f}M numbers, {self.nx.name})'

    # -- the whole way -----------------------------------------------------------------------------------------

    @overload
    def __call__(self, prompt: str, **settings: Unpack[CallSettings]) -> Image.Image: ...

    @overload
    def __call__(self, prompt: list[str], **settings: Unpack[CallSettings]) -> list[Image.Image]: ...

    def __call__(
        self,
        prompt: str | list[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        true_cfg_scale: float | None = None,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        solver: str = "euler",
        latents: Array | None = None,
        on_step: OnStep | None = None,
        on_block: OnBlock | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Generate an image of each prompt: a PIL image for a string, a list of them for a list.

        Settings that are not given are the model's own, `pipe.defaults`:

        seed: one number, or one for each prompt; a single number n stands for n, n + 1, … Each image depends on its own
        seed alone, not on the batch, but for rounding (a level of 255 here and there).
        steps: the denoising steps.
        guidance: how strongly to follow the prompt. Models like FLUX.1-dev take it as an input. On others it is the
        scale of classifier-free guidance away from `negative_prompt`; 0 and 1 are none.
        true_cfg_scale: the scale of classifier-free guidance on models like FLUX.1-dev, beside their `guidance`.
        negative_prompt: what classifier-free guidance leads away from, "" unless given.
        width, height: of the image in pixels, multiples of 16.
        solver: "euler", "heun", "midpoint" or "dpm++" (see `minflux.sampling.solvers`).
        latents: the initial noise (B, C, height/8, width/8), as diffusers takes it, in place of the seed's.
        on_step: a function that is called with each `Step` after it.
        on_block: a function that is called after each block of the transformer with its name, "double_blocks.3", and a
        dict of its arrays: the streams "img" and "txt", its modulations "mod", and "q", "k", "v" (see
        `minflux.model.hooks`). With classifier-free guidance the rows of negative prompts come after the prompts'.

        Raises `ArgumentError` for a setting that can't be honoured, before anything is computed.
        """
        prompts = check_prompts(prompt)
        check_listener("on_step", on_step)
        check_listener("on_block", on_block)
        plan = self._plan(len(prompts), seed, steps, guidance, true_cfg_scale, width, height, solver)
        negative = effective(negative_prompt, plan.guidance)
        start = None if latents is None else self._start_from(latents, plan)

        text = self.encode(prompts, negative, guidance=guidance, true_cfg_scale=true_cfg_scale)
        for step in self.sample(
            text, seed, steps, guidance=guidance, true_cfg_scale=true_cfg_scale, width=plan.width, height=plan.height,
            solver=solver, start=start, on_block=on_block,
        ):  # fmt: skip
            if on_step is not None:
                on_step(step)
        images = [Image.fromarray(pixels) for pixels in self.decode(step.x)]
        return images[0] if isinstance(prompt, str) else images

    # -- its steps ---------------------------------------------------------------------------------------------

    def encode(
        self,
        prompts: str | Sequence[str],
        negative_prompt: str | None = None,
        *,
        guidance: float | None = None,
        true_cfg_scale: float | None = None,
    ) -> Conditioning:
        """Encode prompts, and the negative prompt that guidance leads them away from, for `sample`.

        guidance, true_cfg_scale: those that `sample` will be given. A negative prompt that has no effect with them is
        refused. Where they need one and none is given, it is "".
        """
        listed, negative = check_prompts(prompts), check_negative_prompt(negative_prompt)
        asked = guidance is not None or true_cfg_scale is not None
        if asked or negative is None:
            negative = effective(negative, self._guidance(guidance, true_cfg_scale))
        hint_at_words(self.trained, listed + ([negative] if negative else []))
        hint_at_text_length(self.trained, self.defaults.text_length)
        hint_at_guidance(self._guidance(guidance, true_cfg_scale), listed, negative)
        return self._encode(listed, negative)

    def sample(
        self,
        conditioning: Conditioning,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        *,
        guidance: float | None = None,
        true_cfg_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        solver: str = "euler",
        start: Array | None = None,
        timesteps: Sequence[float] | np.ndarray | None = None,
        on_block: OnBlock | None = None,
    ) -> Iterator[Step]:
        """Return an iterator over the denoising steps, whose `x` and `denoised` are latents (B, h, w, C).

        The settings are those of a call. start: latents (B, h, w, C) to begin with, in place of the seed's noise; the
        image has their size unless told. timesteps: where to stop, falling, in place of the schedule's `steps`. Raises
        `ArgumentError` at once for a setting that can't be honoured.
        """
        check_conditioning(conditioning)
        check_listener("on_block", on_block)
        if start is not None and width is None and height is None:
            height, width = (self.downscale * n for n in self._size_of(start))
        count = len(conditioning.txt)
        plan = self._plan(count, seed, steps, guidance, true_cfg_scale, width, height, solver, timesteps)
        x = self._noise(plan) if start is None else self._checked_start(start, plan)
        scale = true_cfg_scale if self.built_in_guidance or guidance is None else guidance
        text = matching(conditioning, plan.guidance, asked=scale is not None)
        hint_at_size(self.trained, plan.width, plan.height)
        return self._follow(text, plan, x, on_block)

    @abstractmethod
    def decode(self, latents: Array) -> np.ndarray:
        """Decode latents (B, h, w, C) to images, uint8 (B, H, W, 3)."""

    def encode_image(self, image: Image.Image | np.ndarray) -> Array:
        """Encode a PIL image, or uint8 images (H, W, 3) or (B, H, W, 3), to latents (B, h, w, C)."""
        pixels = check_image(image, 2 * self.downscale)
        count, height, width, _ = pixels.shape
        self._check_memory(f"{count} images of {width}x{height} pixels", self.memory_of_pixels(count, width, height))
        return self._encode_pixels(self.nx.array(from_uint8(pixels)))

    @abstractmethod
    def velocity(
        self,
        text: Conditioning,
        size: tuple[int, int],
        guidance: Guidance,
        timesteps: Sequence[float] = (),
        on_block: OnBlock | None = None,
    ) -> Velocity:
        """Return v(x, t) on latents x (B, h, w, C) of `size` (h, w), defined for every t in [0, 1].

        What depends on t alone is computed for all `timesteps` at once. At another t it is computed when v is called.
        """

    # -- what a model says of itself ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def built_in_guidance(self) -> bool:
        """Whether the model takes its guidance as an input."""

    @property
    @abstractmethod
    def downscale(self) -> int:
        """Pixels a latent, along one side."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the latents."""

    @abstractmethod
    def count_numbers(self) -> int:
        """Count the numbers in all weights."""

    @abstractmethod
    def memory_of_images(self, count: int, width: int, height: int, guidance: Guidance) -> int:
        """Return about how many bytes the arrays of images take at a time in sampling, beside the weights."""

    @abstractmethod
    def memory_of_pixels(self, count: int, width: int, height: int) -> int:
        """Return about how many bytes the arrays of images take at a time in the VAE, beside the weights."""

    @abstractmethod
    def _encode(self, prompts: list[str], negative: str | None) -> Conditioning:
        """Encode prompts, and a negative prompt for each of them where there is one."""

    @abstractmethod
    def _encode_pixels(self, pixels: Array) -> Array:
        """Encode float32 images in [-1, 1], (B, H, W, 3), to latents (B, h, w, C)."""

    # -- settings ----------------------------------------------------------------------------------------------

    def _plan(
        self,
        count: int,
        seed: Any,
        steps: Any,
        guidance: Any,
        true_cfg_scale: Any,
        width: Any,
        height: Any,
        solver: Any,
        timesteps: Any = None,
    ) -> SamplingPlan:
        """Check the settings for `count` images, and complete them with the model's defaults."""
        width, height = self._size(width, height)
        strength = self._guidance(guidance, true_cfg_scale)
        self._check_memory(
            f"{count} images of {width}x{height} pixels", self.memory_of_images(count, width, height, strength)
        )
        return SamplingPlan(
            seeds=check_seeds(seed, count),
            width=width,
            height=height,
            timesteps=self._timesteps(steps, timesteps, width, height),
            guidance=strength,
            solver=SOLVERS[check_solver(solver)],
        )

    def _check_memory(self, what: str, needed: int) -> None:
        """Raise `ArgumentError` when the arrays of images don't fit; a GPU with memory of its own can't be asked."""
        if not self.nx.on_gpu or sys.platform == "darwin":
            check_fits(what, needed)

    def _size(self, width: Any, height: Any) -> tuple[int, int]:
        width = self.defaults.width if width is None else width
        height = self.defaults.height if height is None else height
        unit = 2 * self.downscale
        return check_side("width", width, unit), check_side("height", height, unit)

    def _timesteps(self, steps: Any, timesteps: Any, width: int, height: int) -> np.ndarray:
        """Return the given timesteps, or those of the schedule."""
        if timesteps is None:
            tokens = width * height // (2 * self.downscale) ** 2
            count = check_steps(self.defaults.steps if steps is None else steps)
            return check_timesteps(self.schedule.timesteps(count, tokens))
        if steps is not None:
            raise ArgumentError("timesteps take the place of steps; give one of them")
        return check_timesteps(timesteps)

    def _guidance(self, guidance: Any, true_cfg_scale: Any) -> Guidance:
        return check_guidance(guidance, true_cfg_scale, self.defaults.guidance, self.built_in_guidance)

    # -- latents -----------------------------------------------------------------------------------------------

    def _noise(self, plan: SamplingPlan) -> Array:
        """Make each image's noise from its own seed, as PyTorch does: (B, h, w, C) float32."""
        _, *shape = self._shape(plan)
        channels_first = np.stack([noise(seed, (1, *shape))[0] for seed in plan.seeds])
        return self._channels_last(channels_first)

    def _start_from(self, latents: Any, plan: SamplingPlan) -> Array:
        """Return latents that were given in diffusers' order of axes, as (B, h, w, C) float32."""
        order = "batch, channels, height, width"
        return self._channels_last(check_latents("latents", latents, self._shape(plan), order))

    def _size_of(self, start: Any) -> tuple[int, int]:
        """Return height and width of latents that are given to begin with."""
        shape: tuple[int, ...] = getattr(start, "shape", ())
        if len(shape) != 4:
            raise ArgumentError(f"start must be latents (B, h, w, {self.channels}), got {quoted(start)}")
        return shape[1], shape[2]

    def _checked_start(self, start: Any, plan: SamplingPlan) -> Array:
        count, channels, height, width = self._shape(plan)
        order = "batch, height, width, channels"
        return self.nx.array(check_latents("start", start, (count, height, width, channels), order))

    def _shape(self, plan: SamplingPlan) -> tuple[int, int, int, int]:
        return len(plan.seeds), self.channels, plan.height // self.downscale, plan.width // self.downscale

    def _channels_last(self, latents: np.ndarray) -> Array:
        return self.nx.array(np.ascontiguousarray(latents.transpose(0, 2, 3, 1)))

    # -- the loop ----------------------------------------------------------------------------------------------

    def _follow(self, text: Conditioning, plan: SamplingPlan, x: Array, on_block: OnBlock | None) -> Iterator[Step]:
        """Follow the velocity from `x`; the weights it holds are freed with it, when the last step is done."""
        ahead = visited_timesteps(plan.solver, plan.timesteps)
        velocity = self.velocity(text, x.shape[1:3], plan.guidance, ahead, on_block)
        for number, step in enumerate(plan.solver(velocity, x, plan.timesteps), start=1):
            check_finite(self.nx, f"step {number} of {len(plan.timesteps) - 1}", step.x)
            yield step


def check_finite(nx: Backend, where: str, *arrays: Array) -> None:
    """Raise `MinfluxError` that names the place where NaN or infinity first appears."""
    if not all(bool(nx.xp.isfinite(array).all()) for array in arrays):
        raise MinfluxError(
            f"{where}: the numbers came out as NaN or infinity; load with dtype float32, and use smaller scales of "
            "LoRAs and guidance"
        )


def check_conditioning(given: Any) -> None:
    """Raise `ArgumentError` for what `encode` can't have returned."""
    if not isinstance(given, Conditioning):
        raise ArgumentError(f"conditioning must be what pipe.encode(prompts) returns, got {quoted(given)}")


def matching(text: Conditioning, guidance: Guidance, asked: bool) -> Conditioning:
    """Return the conditioning that guidance needs: with a negative prompt, or without.

    asked: whether the scale was given; then 1 is taken at its word, and a negative prompt that was encoded is left out.
    Raises `ArgumentError` where one is lacking, or would have no effect though nobody asked for that.
    """
    if guidance.needs_negative and text.negative is None:
        raise ArgumentError(
            f"conditioning has no negative prompt, which a guidance scale of {guidance.scale:g} needs: "
            'encode(prompts, negative_prompt=""), or sample with guidance 1'
        )
    if not guidance.needs_negative and text.negative is not None:
        if not asked:
            raise ArgumentError(f"conditioning has a negative prompt, which has no effect {without_effect(guidance)}")
        return replace(text, negative=None)
    return text
