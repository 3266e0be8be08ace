"""From a prompt to an image: encode, sample, decode, in one loop that all models share.

    prompts -> conditioning -> (noise -> velocity, step by step -> latents) -> images

A model is a subclass that says how its prompts are encoded, what its velocity is, and how its latents become images:
`minflux/inference/flux1.py` for FLUX.1. An edit wraps a velocity, or starts from other latents or at another timestep.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from minflux.arrays import Array
from minflux.backend import Backend
from minflux.edit.base import TEXT_TO_IMAGE, Edit
from minflux.edit.canvas import Canvas, open_canvas, tell_stretched
from minflux.edit.controlnet import Control
from minflux.edit.flowedit import FlowEdit, check_counts
from minflux.edit.kontext import Place, Reference, Size, places, reference_size
from minflux.errors import ArgumentError, MinfluxError, quoted
from minflux.images import from_uint8, read_image
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
from minflux.inference.controlnets import ControlNet, check_controls, memory_of_controls
from minflux.inference.display import pipeline_html
from minflux.inference.edits import EditMaker, ImageInput, check_image_input, check_references, check_taken, uses_of
from minflux.inference.hints import (
    Trained,
    hint_at_guidance,
    hint_at_references,
    hint_at_size,
    hint_at_text_length,
    hint_at_words,
)
from minflux.inference.image_prompts import ImagePrompts, read_image_prompts, usual_guidance
from minflux.inference.step_cache import StepCache, check_step_cache, check_usable
from minflux.model.controlnet import ControlNetConfig
from minflux.model.hooks import OnBlock
from minflux.sampling.guidance import Guidance
from minflux.sampling.noise import noise
from minflux.sampling.solvers import SOLVERS, Solver, Step, Velocity, visited_timesteps
from minflux.sampling.timesteps import Stops

if TYPE_CHECKING:
    from minflux.explain.write import Explanation

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

    negative: the same of the negative prompt, B times, which classifier-free guidance leads away from. references: the
    images that FLUX.1 Kontext looks at beside its prompt. controls: the control images that ControlNets look at. bias:
    what is added to the logits of attention between all tokens, text first (see `minflux.inference.regions`).
    """

    txt: Array
    y: Array
    negative: "Conditioning | None" = None
    references: tuple[Reference, ...] = ()
    controls: tuple[Control, ...] = ()
    bias: Array | None = None


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
    image: Any
    strength: float | None
    mask: Any
    mask_blur: float
    mask_crop: int | None
    paste: bool
    control: Any
    control_scale: float | Sequence[float] | None
    control_start: float | Sequence[float] | None
    control_end: float | Sequence[float] | None
    control_mode: Any
    canny: tuple[float, float] | None
    reference: Any
    reference_layout: str
    image_prompt: Any
    image_prompt_strength: float | Sequence[float] | None
    image_prompt_mix: str
    posterior: str
    step_cache: str | StepCache | None
    on_step: OnStep | None
    on_block: OnBlock | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pipeline(ABC):
    """A model ready to generate images: call it, or take its steps `encode`, `sample` and `decode` one by one.

    nx: the backend that computes. schedule: how steps are spread over time. lora: the LoRAs added to the weights.
    controlnets: those that are shown control images. trained: what the model was trained on; a `Hint`, which is a
    warning, tells of anything else that is asked for.
    """

    nx: Backend
    schedule: Stops
    defaults: Defaults
    trained: Trained = field(default_factory=Trained)
    name: str = ""
    lora: tuple[str, ...] = ()
    controlnets: tuple[ControlNet, ...] = ()

    def __repr__(self) -> str:
        """Return one line: the model's name, its size and its backend."""
        return f'Pipeline("{self.name}", {self.count_numbers() / 1e6:,.1f}M numbers, {self.nx.name})'

    def _repr_html_(self) -> str:
        """Return the pipeline for Jupyter: its size, and what it draws unless told otherwise."""
        return pipeline_html(self)

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
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        mask_blur: float = 0,
        mask_crop: int | None = None,
        paste: bool = True,
        control: Any = None,
        control_scale: float | Sequence[float] | None = None,
        control_start: float | Sequence[float] | None = None,
        control_end: float | Sequence[float] | None = None,
        control_mode: Any = None,
        canny: tuple[float, float] | None = None,
        reference: Any = None,
        reference_layout: str = "offset",
        image_prompt: Any = None,
        image_prompt_strength: float | Sequence[float] | None = None,
        image_prompt_mix: str = "append",
        posterior: str = "mode",
        step_cache: str | StepCache | None = None,
        on_step: OnStep | None = None,
        on_block: OnBlock | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Generate an image of each prompt: a PIL image for a string, a list of them for a list.

        Settings that are not given are the model's own, `pipe.defaults`:

        seed: one number, or one for each prompt; a single number n stands for n, n + 1, … Each image depends on its own
        seed alone, not on the batch, but for rounding (a level of 255 here and there).
        steps: the denoising steps.
        guidance: how strongly to follow the prompt. Models like FLUX.1-dev take it as an input, and with an image
        prompt 2.5 of it unless given. On others it is the scale of classifier-free guidance away from
        `negative_prompt`; 0 and 1 are none.
        true_cfg_scale: the scale of classifier-free guidance on models like FLUX.1-dev, beside their `guidance`.
        negative_prompt: what classifier-free guidance leads away from, "" unless given.
        width, height: of the image in pixels, multiples of 16.
        solver: "euler", "heun", "midpoint" or "dpm++" (see `minflux.sampling.solvers`).
        latents: the initial noise (B, C, height/8, width/8), as diffusers takes it, in place of the seed's; for FLUX.2
        in patches, (B, 4 C, height/16, width/16).
        image: an image to begin with, a path, PIL image or array (see `minflux.images.read_image`). Unless width and
        height are given, the result has its size, shrunk to the model's own where it is larger; what is scaled or cut
        off is said in a warning, `ImageFitted`.
        strength: the share of the steps that is taken from the noised image on, 0.6 unless given, for Fill 1; 1 keeps
        nothing.
        mask: what to redraw of the image, white; elsewhere it stays.
        mask_blur: radius in pixels that softens the mask's edge.
        mask_crop: see the surroundings of the mask alone, with so many pixels around it, at the size of a whole image.
        paste: whether the result is the original image with what was redrawn pasted into it, rather than what the
        model made of all of it.
        control: an image to draw along, of edges for FLUX.1 Canny and of depth for Depth, or of what a ControlNet takes
        (`load(…, controlnet=…)`); where there is an image too, of its size. A list for several ControlNets, in their
        order, or for one that is shown several.
        control_scale: how strongly a ControlNet acts, 1 unless given; one number for all control images, or a list with
        one for each, as the next three.
        control_start, control_end: during which share of the steps it does, from 0 to 1 unless given.
        control_mode: what a Union ControlNet is shown, by its number or as "canny", "tile", "depth", "blur", "pose",
        "gray" or "lq".
        canny: two thresholds, (50, 200) for FLUX.1 Canny, where `control` is a photo along whose edges to draw (see
        `minflux.edit.canny`).
        reference: an image that FLUX.1 Kontext or FLUX.2 looks at, or a list of them; the result has the first one's
        aspect unless width or height is given.
        reference_layout: where several stand for Kontext, "offset" side by side, or "index" one behind the other.
        image_prompt: an image that Redux reads beside the prompt, or a list of them; goes with `load(…, redux=…)`.
        image_prompt_strength: how strongly, 1 unless given; one number for all of them, or one for each.
        image_prompt_mix: "append" several, or "sum" them as diffusers does (see `minflux.inference.image_prompts`).
        posterior: "mode" takes the middle of the VAE's distribution for the image's latents, "sample" draws them with
        the seed's first numbers, before the noise, as diffusers does.
        step_cache: "first-block" or "teacache", with ":THRESHOLD" after it or not, to skip what hardly changes from
        step to step, for one image at a time (see `minflux.inference.step_cache`); it changes the image.
        on_step: a function that is called with each `Step` after it.
        on_block: a function that is called after each block of the transformer with its name, "double_blocks.3", and a
        dict of its arrays: the streams "img" and "txt", its modulations "mod", and "q", "k", "v" (see
        `minflux.model.hooks`). With classifier-free guidance the rows of negative prompts come after the prompts'.

        Raises `ArgumentError` for a setting that can't be honoured, before anything is computed.
        """
        prompts = check_prompts(prompt)
        check_listener("on_step", on_step)
        check_listener("on_block", on_block)
        cache = check_step_cache(step_cache)
        check_usable(cache, solver, len(prompts), on_block is not None, bool(self.controlnets) and control is not None)
        given = ImageInput(
            image, strength, mask, mask_blur, mask_crop, paste, control, canny, posterior, control_scale, control_start,
            control_end, control_mode,
        )  # fmt: skip
        image_prompts = self.image_prompts(image_prompt, image_prompt_strength, image_prompt_mix)
        if guidance is None:
            is_dev_like = self.built_in_guidance and not self.takes
            guidance = usual_guidance(self.defaults.guidance, is_dev_like, image_prompts.images)
        references = self.encode_references(reference, reference_layout)
        canvas = self.open_canvas(given, width, height)
        width, height = self.size_of(canvas, references, width, height)
        plan = self.plan(len(prompts), seed, steps, guidance, true_cfg_scale, width, height, solver)
        negative = effective(negative_prompt, plan.guidance)
        start = None if latents is None else self._start_from(latents, plan)
        edit = self.edit_of(given, canvas, plan.seeds)
        edit.timesteps(plan.timesteps)  # which raises for a strength that leaves no step

        text = self.encode(prompts, negative, guidance=guidance, true_cfg_scale=true_cfg_scale)
        controls = self.controls_of(given, canvas, plan.seeds)
        text = replace(self.with_image_prompts(text, image_prompts), references=references, controls=controls)
        for step in self.sample(
            text, seed, steps, guidance=guidance, true_cfg_scale=true_cfg_scale, width=plan.width, height=plan.height,
            solver=solver, start=start, edit=edit, on_block=on_block, step_cache=cache,
        ):  # fmt: skip
            if on_step is not None:
                on_step(step)
        images = [finished(canvas, pixels) for pixels in self.decode(step.x)]
        return images[0] if isinstance(prompt, str) else images

    def explain(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        width: int | None = None,
        height: int | None = None,
        on_step: OnStep | None = None,
    ) -> "Explanation":
        """Draw an image of a prompt, and return a page of how: Jupyter shows it, and `save("cat.html")` writes it.

        It is one HTML file of at most 5 MB that loads nothing: each step, who looks at whom, what steers the blocks,
        and what all of it cost (see `minflux.explain`). Raises `ArgumentError` as a call does, and for another model
        than FLUX.1.
        """
        from minflux.explain.write import explain

        return explain(
            self, prompt, seed=seed, steps=steps, guidance=guidance, width=width, height=height, on_step=on_step
        )

    def edit(
        self,
        image: Any,
        source_prompt: str,
        prompt: str,
        *,
        seed: int = 0,
        steps: int = 28,
        source_guidance: float = 1.5,
        guidance: float = 5.5,
        n_max: int = 24,
        n_min: int = 0,
        n_avg: int = 1,
        width: int | None = None,
        height: int | None = None,
        on_step: OnStep | None = None,
    ) -> Image.Image:
        """Edit an image by FlowEdit: what `source_prompt` says of it becomes what `prompt` says.

        n_max of the steps are taken, and more of them change more; n_min, n_avg: see `minflux.edit.flowedit`. The
        guidances are those of each prompt. Defaults are the authors' for FLUX.1-dev. On a model without built-in
        guidance they are scales of classifier-free guidance away from "". Raises `ArgumentError` as a call does.
        """
        counts = check_counts(n_max, n_min, n_avg, check_steps(steps))
        check_listener("on_step", on_step)
        given = ImageInput(image)
        check_taken(given, self.takes)
        canvas = self._open_canvas(given, width, height)
        guidances = source_guidance, guidance
        texts = self.encode(source_prompt, guidance=source_guidance), self.encode(prompt, guidance=guidance)
        for step in self.sample_edit(canvas, texts, seed, steps, guidances=guidances, counts=counts):
            if on_step is not None:
                on_step(step)
        return canvas.finish(self.decode(step.x)[0])

    def sample_edit(
        self,
        canvas: Canvas,
        texts: tuple[Conditioning, Conditioning],
        seed: int,
        steps: int,
        *,
        guidances: tuple[float | None, float | None],
        counts: tuple[int, int, int],
    ) -> Iterator[Step]:
        """Yield FlowEdit's steps from the image on a canvas; the weights that they share are freed after the last.

        texts, guidances: of what the image shows, then of what it is to show. counts: n_max, n_min and n_avg.
        """
        latents = self.encode_image(canvas.pixels())
        pipe = self.held()
        source = partial(pipe.velocity, texts[0], latents.shape[1:3], self._guidance(guidances[0], None))
        edit = FlowEdit(latents, source, *counts)
        yield from pipe.sample(texts[1], seed, steps, guidance=guidances[1], edit=edit)

    # -- an image to begin with --------------------------------------------------------------------------------

    def open_canvas(self, given: ImageInput, width: int | None = None, height: int | None = None) -> Canvas | None:
        """Read the images of a call, None where there are none; raises `ArgumentError` for what is wrong."""
        check_image_input(given)
        check_taken(given, self.takes, controlnets=len(self.controlnets))
        uses_of(given, self._controlnet_configs)
        return None if given.image is None and given.control is None else self._open_canvas(given, width, height)

    def _open_canvas(self, given: ImageInput, width: int | None, height: int | None) -> Canvas:
        unit = 2 * self.downscale
        for name, side in (("width", width), ("height", height)):
            if side is not None:
                check_side(name, side, unit)
        return open_canvas(
            given.image, given.mask, wanted=(width, height), usual=(self.defaults.width, self.defaults.height),
            unit=unit, blur=given.mask_blur, crop=given.mask_crop, paste=given.paste, controls=given.controls,
            canny=given.canny,
        )  # fmt: skip

    def edit_of(self, given: ImageInput, canvas: Canvas | None, seeds: Sequence[int]) -> Edit:
        """Return the edit that a call asks for, which is text to image without a canvas."""
        return TEXT_TO_IMAGE if canvas is None else self._maker(given, canvas, seeds).make()

    def controls_of(self, given: ImageInput, canvas: Canvas | None, seeds: Sequence[int]) -> tuple[Control, ...]:
        """Return the control images of a call as its ControlNets see them, none for a model without."""
        if canvas is None or not self.controlnets:
            return ()
        return tuple(self._maker(given, canvas, seeds).controls())

    def _maker(self, given: ImageInput, canvas: Canvas, seeds: Sequence[int]) -> EditMaker:
        drawn_for = seeds if given.posterior == "sample" else None
        encode = partial(self._encode_image, drawn_for)
        return EditMaker(given, canvas, self.takes, self.nx, self.downscale, encode, self._controlnet_configs)

    @property
    def _controlnet_configs(self) -> list[ControlNetConfig]:
        return [net.config for net in self.controlnets]

    def encode_references(self, reference: Any, layout: str = "offset") -> tuple[Reference, ...]:
        """Encode the reference images of a call, one or a list, each at the size that the model sees it."""
        listed = list(reference) if isinstance(reference, list | tuple) else [reference]
        images = [read_image(image, "reference") for image in listed if image is not None]
        check_references(images, self.takes_references)
        if images:
            hint_at_references(self.trained)
        seen, unit = list(map(self._as_reference, images)), 2 * self.downscale
        begin = self._places_of([(image.width // unit, image.height // unit) for image in seen], layout)
        encoded = map(self.encode_image, seen)
        return tuple(Reference(latents, place) for latents, place in zip(encoded, begin, strict=True))

    def _as_reference(self, image: Image.Image) -> Image.Image:
        """Return a reference image as the model sees it: for FLUX.1 Kontext of a size that it was trained on."""
        size = reference_size(image.size, (self.defaults.width, self.defaults.height), 2 * self.downscale)
        tell_stretched("reference", image.size, size)
        return image.resize(size, Image.Resampling.LANCZOS)

    def _places_of(self, sizes: Sequence[Size], layout: str) -> list[Place]:
        """Return where the tokens of references begin, of `sizes` (columns, rows) in tokens; see `kontext.places`."""
        return places(sizes, layout)

    def image_prompts(self, image: Any, strength: Any = None, mix: str = "append") -> ImagePrompts:
        """Read the image prompts of a call; raises `ArgumentError` for what is none, and for a model without Redux."""
        prompts = read_image_prompts(image, strength, mix)
        if prompts.images:
            self._check_image_prompts(len(prompts.images))
        return prompts

    def with_image_prompts(self, text: Conditioning, prompts: ImagePrompts) -> Conditioning:
        """Return what prompts say with what image prompts say; a negative prompt stays without them."""
        return text

    def _check_image_prompts(self, count: int) -> None:
        """Raise `ArgumentError` for a model that takes no image prompts, and for more than the memory holds."""
        raise ArgumentError("image_prompt: this model takes none; FLUX.1 does, with Redux")

    def size_of(
        self, canvas: Canvas | None, references: Sequence[Reference], width: int | None, height: int | None
    ) -> tuple[int | None, int | None]:
        """Return a call's width and height: the canvas's, those given, or else the first reference's."""
        if canvas is not None:
            return canvas.size
        if references and width is None and height is None:
            rows, columns = references[0].latents.shape[1:3]
            return self.downscale * columns, self.downscale * rows
        return width, height

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
        edit: Edit = TEXT_TO_IMAGE,
        on_block: OnBlock | None = None,
        step_cache: str | StepCache | None = None,
    ) -> Iterator[Step]:
        """Return an iterator over the denoising steps, whose `x` and `denoised` are latents (B, h, w, C).

        The settings are those of a call. start: latents (B, h, w, C) to begin with, in place of the seed's noise; the
        image has their size unless told. timesteps: where to stop, falling, in place of the schedule's `steps`. edit:
        what becomes of an image (see `minflux.edit`); it begins with that image and takes `start` for its noise.
        Raises `ArgumentError` at once for a setting that can't be honoured.
        """
        check_conditioning(conditioning)
        check_listener("on_block", on_block)
        like = edit.image if start is None else start
        if like is not None and width is None and height is None:
            height, width = (self.downscale * n for n in self._size_of(like))
        count = len(conditioning.txt)
        cache = check_step_cache(step_cache)
        check_usable(cache, solver, count, on_block is not None, bool(conditioning.controls))
        if cache is not None and isinstance(edit, FlowEdit):
            raise ArgumentError("step_cache goes without FlowEdit, whose steps ask for several velocities")
        plan = self.plan(count, seed, steps, guidance, true_cfg_scale, width, height, solver, timesteps)
        self._check_edited(edit.image, plan)
        self._check_shown(edit.shown, plan)
        check_bias(conditioning, plan.height // (2 * self.downscale), plan.width // (2 * self.downscale))
        noises = self._noises(plan, edit.draws) if start is None else [self._checked_start(start, plan)]
        plan = replace(plan, timesteps=edit.timesteps(plan.timesteps))
        scale = true_cfg_scale if self.built_in_guidance or guidance is None else guidance
        text = matching(conditioning, plan.guidance, asked=scale is not None)
        self._check_controls(text.controls, plan)
        text = replace(text, controls=tuple(control.during(plan.timesteps) for control in text.controls))
        hint_at_size(self.trained, plan.width, plan.height)
        return self._follow(text, plan, edit, noises, on_block, cache)

    @abstractmethod
    def decode(self, latents: Array) -> np.ndarray:
        """Decode latents (B, h, w, C) to images, uint8 (B, H, W, 3)."""

    def encode_image(self, image: Image.Image | np.ndarray, seeds: Sequence[int] | None = None) -> Array:
        """Encode a PIL image, or uint8 images (H, W, 3) or (B, H, W, 3), to latents (B, h, w, C).

        They are the mean of the VAE's distribution. With `seeds`, of one image, they are drawn from it, for each seed
        by its first numbers.
        """
        return self._encode_image(seeds, from_uint8(check_image(image, 2 * self.downscale)))

    def _encode_image(self, seeds: Sequence[int] | None, pixels: np.ndarray, draw: int = 0) -> Array:
        """Encode float32 images in [-1, 1] to the mean of their latents, or to what each seed's draw `draw` gives."""
        count, height, width, _ = pixels.shape
        count = count if seeds is None else len(seeds)
        self._check_memory(f"{count} images of {width}x{height} pixels", self.memory_of_pixels(count, width, height))
        array = self.nx.array(pixels)
        if seeds is None:
            return self._encode_pixels(array)
        shape = self.channels, height // self.downscale, width // self.downscale
        noise = self._drawn(seeds, shape, draw + 1)[draw]
        return self._encode_pixels(self.nx.broadcast_to(array, (len(seeds), *array.shape[1:])), noise)

    @abstractmethod
    def velocity(
        self,
        text: Conditioning,
        size: tuple[int, int],
        guidance: Guidance,
        timesteps: Sequence[float] = (),
        on_block: OnBlock | None = None,
        step_cache: StepCache | None = None,
    ) -> Velocity:
        """Return v(x, t) on latents x (B, h, w, C) of `size` (h, w), defined for every t in [0, 1].

        What depends on t alone is computed for all `timesteps` at once. At another t it is computed when v is called.
        """

    @abstractmethod
    def held(self) -> Self:
        """Return the pipeline with the weights read that its steps use, so that several velocities share them."""

    # -- what a model says of itself ---------------------------------------------------------------------------

    @property
    def built_in_guidance(self) -> bool:
        """Whether the model takes its guidance as an input."""
        return False

    @property
    @abstractmethod
    def downscale(self) -> int:
        """Pixels a latent, along one side."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the latents."""

    @property
    def takes(self) -> str:
        """Return what the model takes beside the latents: "mask", "control" or ""."""
        return ""

    @property
    def takes_references(self) -> bool:
        """Whether the model can look at reference images beside its prompt."""
        return False

    @property
    def beside(self) -> int:
        """Channels that the model takes beside those of the latents."""
        return 0

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
    def _encode_pixels(self, pixels: Array, noise: Array | None = None) -> Array:
        """Encode float32 images in [-1, 1], (B, H, W, 3), to latents (B, h, w, C): the mean, or drawn by `noise`."""

    # -- settings ----------------------------------------------------------------------------------------------

    def plan(
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

    def _noises(self, plan: SamplingPlan, count: int) -> list[Array]:
        """Draw each image's noises from its own seed, as PyTorch does one after another: `count` of (B, h, w, C).

        Latents have a multiple of 16 numbers, of which PyTorch draws `count` arrays as it draws one that holds them.
        """
        return self._drawn(plan.seeds, self._shape(plan)[1:], count)

    def _drawn(self, seeds: Sequence[int], shape: tuple[int, ...], count: int) -> list[Array]:
        """Draw `count` arrays, each with an entry (C, h, w) for every seed, as (B, h, w, C)."""
        drawn = np.stack([noise(seed, (count, *shape)) for seed in seeds], axis=1)
        return [self._channels_last(channels_first) for channels_first in drawn]

    def _start_from(self, latents: Any, plan: SamplingPlan) -> Array:
        """Return latents that were given in diffusers' order of axes, as (B, h, w, C) float32."""
        order = "batch, channels, height, width"
        return self._channels_last(check_latents("latents", latents, self._shape(plan), order))

    def _check_edited(self, image: Array | None, plan: SamplingPlan) -> None:
        """Raise `ArgumentError` unless the latents of an image to edit are one, or one for each prompt, of the size."""
        if image is not None:
            count, channels, height, width = self._shape(plan)
            count = len(image) if len(image) in (1, count) else count
            check_latents("edit", image, (count, height, width, channels), "batch, height, width, channels")

    def _check_shown(self, shown: tuple[int, ...], plan: SamplingPlan) -> None:
        """Raise `ArgumentError` unless the model is shown what it takes beside the latents."""
        _, _, height, width = self._shape(plan)
        wanted = (height, width, self.beside) if self.beside else ()
        if shown != wanted:
            raise ArgumentError(
                f"edit must show {wanted or 'nothing'} (height, width, channels) beside the latents, got "
                f"{shown or 'nothing'}: see minflux.edit.beside"
            )

    def _check_controls(self, controls: Sequence[Control], plan: SamplingPlan) -> None:
        """Raise `ArgumentError` unless control images are of the size, and what is added of them fits the memory."""
        count, channels, height, width = self._shape(plan)
        check_controls(controls, self.controlnets, (count, channels, height, width), self.downscale)
        tokens = count * (2 if plan.guidance.needs_negative else 1) * height * width // 4
        needed = memory_of_controls(controls, self.controlnets, tokens, itemsize=2 if self.nx.on_gpu else 4)
        self._check_memory(f"{len(controls)} control images", needed)

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

    def _start(self, edit: Edit, noises: list[Array], t: float) -> Array:
        """Return the latents that an edit begins with at t."""
        return edit.start(noises, t)

    # -- the loop ----------------------------------------------------------------------------------------------

    def _follow(
        self,
        text: Conditioning,
        plan: SamplingPlan,
        edit: Edit,
        noises: list[Array],
        on_block: OnBlock | None,
        step_cache: StepCache | None,
    ) -> Iterator[Step]:
        """Follow an edit's velocity from its start; the weights it holds are freed with it, after the last step."""
        x = self._start(edit, noises, float(plan.timesteps[0]))
        ahead = visited_timesteps(plan.solver, plan.timesteps)
        model = self.velocity(text, x.shape[1:3], plan.guidance, ahead, on_block, step_cache)
        velocity = edit.velocity(model, noises, ahead)
        for number, step in enumerate(plan.solver(velocity, x, plan.timesteps), start=1):
            check_finite(self.nx, f"step {number} of {len(plan.timesteps) - 1}", step.x)
            yield step


def finished(canvas: Canvas | None, pixels: np.ndarray) -> Image.Image:
    """Return the image of generated pixels, pasted into the canvas where there is one."""
    return Image.fromarray(pixels) if canvas is None else canvas.finish(pixels)


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


def check_bias(text: Conditioning, rows: int, columns: int) -> None:
    """Raise `ArgumentError` for a bias of another number of tokens than text and image have, and with ControlNets."""
    if text.bias is not None and text.controls:
        raise ArgumentError("regions don't go with ControlNets, which would hear every region's prompt everywhere")
    length = text.txt.shape[1] + rows * columns
    if text.bias is not None and text.bias.shape[-2:] != (length, length):
        raise ArgumentError(
            f"the conditioning's bias is {quoted(tuple(text.bias.shape))}, for {length} tokens of text and image: make "
            f"it of regions of {rows} × {columns} image tokens, as this image has"
        )


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
