"""From the images of a call to the edit that they ask for.

How a model was trained decides which images it takes: any FLUX.1 begins with an image, Fill needs a mask, Canny and
Depth need a control image, and ControlNets are shown theirs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from minflux.arrays import Array
from minflux.backend import Backend
from minflux.edit.base import Edit, TextToImage
from minflux.edit.beside import Beside, mask_channels, masked_image
from minflux.edit.canny import check_thresholds
from minflux.edit.canvas import Canvas
from minflux.edit.controlnet import Control, Use, mode_of, numbers_of, spread_modes
from minflux.edit.image_to_image import ImageToImage, check_share
from minflux.edit.inpaint import Inpaint, latent_mask
from minflux.errors import ArgumentError, check_choice
from minflux.images import from_uint8
from minflux.inference.arguments import check_part, check_strength, one_for_each
from minflux.model.controlnet import ControlNetConfig

Encode = Callable[[np.ndarray, int], Array]  # pixels (1, H, W, 3) in [-1, 1], and which of a seed's draws, to latents
POSTERIORS = ("mode", "sample")
STRENGTH = 0.6  # unless given, as in diffusers
CONTROL = ("control_scale", "control_start", "control_end", "control_mode")  # how ControlNets use control images
NEEDS = {  # what a model takes beside the latents: which one it is, and what has to be given
    "mask": ("FLUX.1 Fill, which redraws what a mask shows", "image and mask"),
    "control": ("FLUX.1 Canny or Depth, which draws along a control image", "control"),
}


@dataclass(frozen=True)
class ImageInput:
    """The images of a call, and how they are taken; the names and meanings are `Pipeline.__call__`'s."""

    image: Any = None
    strength: float | None = None
    mask: Any = None
    mask_blur: float = 0
    mask_crop: int | None = None
    paste: bool = True
    control: Any = None
    canny: tuple[float, float] | None = None
    posterior: str = "mode"
    control_scale: Any = None
    control_start: Any = None
    control_end: Any = None
    control_mode: Any = None

    @property
    def controls(self) -> list[Any]:
        """List the control images."""
        if isinstance(self.control, list | tuple):
            return list(self.control)
        return [] if self.control is None else [self.control]


def check_image_input(given: ImageInput) -> None:
    """Raise `ArgumentError` for settings of an image that have no effect without it, and for an unknown posterior."""
    check_choice("posterior", given.posterior, POSTERIORS)
    if given.canny is not None and given.control is None:
        raise ArgumentError("canny goes with control, the photo whose edges to draw along")
    if given.canny is not None:
        check_thresholds(given.canny)
    if given.canny is not None and len(given.controls) > 1:
        raise ArgumentError("canny goes with one control image; make edges of others by minflux.edit.canny.canny")
    if given.image is None:
        allowed = CONTROL if given.control is None else ("control", "canny", "posterior", *CONTROL)
        asked = [field.name for field in fields(given) if not is_equal(getattr(given, field.name), field.default)]
        alone = [name for name in asked if name not in allowed]
        if alone:
            raise ArgumentError(f"{', '.join(alone)} without an image: give image, or leave out {alone[0]}")


def is_equal(given: Any, default: Any) -> bool:
    """Return whether a setting is its default, be it an array, which has no one answer to ==."""
    return given is default or (isinstance(given, int | float | str) and given == default)


def check_taken(given: ImageInput, takes: str, controlnets: int = 0) -> None:
    """Raise `ArgumentError` unless a call gives what the model takes beside the latents: "mask", "control" or "".

    A mask is good for any model, a control image for one that was trained with it, or beside which there are
    ControlNets.
    """
    if takes and getattr(given, takes) is None:
        title, inputs = NEEDS[takes]
        raise ArgumentError(f"the model is {title}: give {inputs}, or take one that needs none, such as dev")
    if given.control is not None and takes != "control" and not controlnets:
        raise ArgumentError(
            "control: the model takes no control image; FLUX.1 Canny and Depth do, such as "
            "black-forest-labs/FLUX.1-Canny-dev, and any that is loaded with a ControlNet (controlnet, --controlnet)"
        )
    if takes == "control" and len(given.controls) > 1:
        raise ArgumentError(f"control: FLUX.1 Canny and Depth take one image, got {len(given.controls)}")


def uses_of(given: ImageInput, controlnets: Sequence[ControlNetConfig]) -> list[Use]:
    """Return how each control image is used; raises `ArgumentError` for settings without a ControlNet, or unfit ones.

    A single setting is for all control images, of modes for those whose ControlNet has any.
    """
    asked = [name for name in CONTROL if getattr(given, name) is not None]
    if asked and not (controlnets and given.controls):
        raise ArgumentError(f"{asked[0]} goes with a ControlNet and its control image")
    count = len(given.controls)
    if not controlnets or not count:
        return []
    numbers = numbers_of(count, len(controlnets))
    counts = [controlnets[number].modes for number in numbers]
    scales = one_for_each("control_scale", given.control_scale, count, 1.0, check_strength)
    starts = one_for_each("control_start", given.control_start, count, 0.0, check_part)
    ends = one_for_each("control_end", given.control_end, count, 1.0, check_part)
    chosen = one_for_each("control_mode", spread_modes(given.control_mode, counts), count, None, lambda _, mode: mode)
    modes = map(mode_of, chosen, counts)
    return [Use(*setting) for setting in zip(numbers, scales, modes, starts, ends, strict=True)]


def check_references(references: Sequence[Any], takes_references: bool) -> None:
    """Raise `ArgumentError` for references on a model that takes none.

    Whether a FLUX.1 was trained with references, as Kontext was, can't be seen: its weights look like dev's.
    """
    if references and not takes_references:
        raise ArgumentError(
            "reference: the model takes none; FLUX.1 Kontext does, black-forest-labs/FLUX.1-Kontext-dev, and so does "
            "FLUX.2"
        )


def strength_of(given: ImageInput, takes: str) -> float:
    """Return the strength of a call; Fill sees the image, and begins with noise alone unless told otherwise."""
    usual = 1.0 if takes == "mask" else STRENGTH
    return check_share("strength", usual if given.strength is None else given.strength)


@dataclass(frozen=True)
class EditMaker:
    """Makes the edit that the images of a call ask for.

    Where latents are drawn from the VAE's distribution, a seed's numbers go to the control image, the image, the noise
    and the masked image, in this order, as in diffusers.
    """

    given: ImageInput
    canvas: Canvas
    takes: str
    nx: Backend
    downscale: int
    encode: Encode
    controlnets: Sequence[ControlNetConfig] = ()

    def make(self) -> Edit:
        """Return the edit, showing the model what it takes beside the latents."""
        if self.takes == "control":
            control = self.encode(self.control_pixels(0), 0)
            return Beside(self.begin(before=1), control)
        return Beside(self.begin(), self.masked()) if self.takes == "mask" else self.begin(self.draws_of_controls)

    def controls(self) -> Iterator[Control]:
        """Yield each control image as its ControlNet sees it, as pixels or encoded."""
        draw = 0
        for i, use in enumerate(self.uses):
            pixels = self.control_pixels(i)
            if self.controlnets[use.number].sees_pixels:
                yield Control(self.nx.array(pixels), use)
            else:
                yield Control(self.encode(pixels, draw), use)
                draw += 1

    @property
    def uses(self) -> list[Use]:
        """How the control images are used."""
        return uses_of(self.given, self.controlnets)

    @property
    def draws_of_controls(self) -> int:
        """How many control images are encoded, each with one of a seed's draws."""
        return sum(not self.controlnets[use.number].sees_pixels for use in self.uses)

    def control_pixels(self, number: int) -> np.ndarray:
        """Return a control image (1, H, W, 3) in [-1, 1]."""
        return from_uint8(self.canvas.control_pixels(number))[None]

    def begin(self, before: int = 0) -> Edit:
        """Return text to image, image-to-image or inpainting; `before` of a seed's draws are taken."""
        is_sampled = self.given.posterior == "sample"
        if self.given.image is None:
            return TextToImage(before + 1 if is_sampled else 1)
        latents = self.encode(from_uint8(self.canvas.pixels())[None], before)
        strength, draws = strength_of(self.given, self.takes), before + 2 if is_sampled else 1
        if self.given.mask is None or self.takes == "mask":
            return ImageToImage(latents, strength, draws)
        mask = self.nx.array(latent_mask(self.canvas.mask_pixels(), self.downscale))
        return Inpaint(latents, strength, draws, mask=mask)

    def masked(self) -> Array:
        """Return what Fill sees: the latents of the image without what is masked, and all pixels of the mask."""
        mask = self.canvas.mask_pixels()
        if not mask.any():
            raise ArgumentError("mask: nothing of it is white; paint white what is to be redrawn")
        seen = self.encode(masked_image(self.canvas.pixels(), mask), 2)
        channels = self.nx.array(mask_channels(mask, self.downscale))
        channels = self.nx.broadcast_to(channels, (len(seen), *channels.shape[1:]))
        return self.nx.concatenate([seen, channels], axis=-1)
