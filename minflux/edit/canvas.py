"""Which part of an image a model sees, at which size, and where its answer goes.

A model takes an image of its own size, W × H. It sees a *box* of the original, the largest one of this aspect or the
one around the mask, scaled to W × H. Its answer is scaled back and pasted into the original through the mask, where
that is given: outside the mask the result is the original, to the bit and at its full resolution.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from minflux.edit.canny import drawn, edges
from minflux.errors import ArgumentError, quoted
from minflux.images import MOST_PIXELS, ImageFitted, read_image, read_mask

Box = tuple[int, int, int, int]  # left, top, right, bottom
SMOOTH = Image.Resampling.LANCZOS


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image to edit: the original, the box that the model sees, its size there, its mask and control images."""

    original: Image.Image
    box: Box
    size: tuple[int, int]
    mask: Image.Image | None = None
    paste: bool = True
    controls: tuple[Image.Image, ...] = ()
    canny: tuple[float, float] | None = None  # thresholds, where a control image is a photo whose edges are seen

    def pixels(self) -> np.ndarray:
        """Return what the model sees: uint8 (H, W, 3)."""
        return np.asarray(self.original.resize(self.size, SMOOTH, box=self.box))

    def mask_pixels(self) -> np.ndarray:
        """Return the mask as the model sees it, bool (H, W): true where it is at least half white."""
        if self.mask is None:
            raise ArgumentError("mask: there is none on this canvas")
        return np.asarray(self.mask.resize(self.size, SMOOTH, box=self.box)) >= 128

    def control_pixels(self, number: int = 0) -> np.ndarray:
        """Return the control image of this number as the model sees it: uint8 (H, W, 3)."""
        if number >= len(self.controls):
            raise ArgumentError(f"control: there is no image {number} on this canvas")
        seen = np.asarray(self.controls[number].resize(self.size, SMOOTH, box=self.box))
        return seen if self.canny is None else drawn(edges(seen, *self.canny))

    def finish(self, generated: np.ndarray) -> Image.Image:
        """Return the model's answer, uint8 (H, W, 3), pasted into the original through the mask, or as it is."""
        answer = Image.fromarray(generated)
        if self.mask is None or not self.paste:
            return answer
        left, top, right, bottom = self.box
        result = self.original.copy()
        result.paste(answer.resize((right - left, bottom - top), SMOOTH), (left, top), self.mask.crop(self.box))
        return result


def open_canvas(
    image: Any,
    mask: Any = None,
    *,
    wanted: tuple[int | None, int | None],
    usual: tuple[int, int],
    unit: int,
    blur: float = 0,
    crop: int | None = None,
    paste: bool = True,
    controls: Sequence[Any] = (),
    canny: tuple[float, float] | None = None,
) -> Canvas:
    """Read an image and a mask, and choose the box and the size; warns with `ImageFitted` of what is scaled or cut.

    wanted: width and height asked for, each may be None (see `fitting_size`). usual: the model's own. unit: what both
    are multiples of. blur: radius in pixels by which the mask's edge is softened. crop: see the mask's surroundings
    alone, with so many pixels around it. paste: whether the answer goes back into the original. controls: images that
    lie over the original; where that is None, the first takes its place. canny: thresholds, to see their edges.
    """
    drawn_along = tuple(read_image(control, "control", "black") for control in controls)
    original = read_image(image) if image is not None or not drawn_along else drawn_along[0]
    for control in drawn_along:
        check_control_size(control, original, "the image's" if image is not None else "the first one's")
    size = fitting_size(original.size, wanted, usual, unit)
    box = centred_box(original.size, size)
    if mask is None:
        if blur or crop is not None:
            raise ArgumentError("mask_blur and mask_crop go with a mask")
    else:
        mask = fitted_mask(mask, original.size, blur)
        box = box_of(mask, box) if crop is None else box_around(mask, crop, size)
    tell(original.size, box, size, crop is None)
    return Canvas(original, box, size, mask, paste, drawn_along, canny)


def check_control_size(control: Image.Image, original: Image.Image, whose: str) -> None:
    """Raise `ArgumentError` for a control image of another size than what it lies over."""
    if control.size != original.size:
        raise ArgumentError(f"control must have {whose} {label(original)} pixels, got {label(control)}")


def label(image: Image.Image) -> str:
    """Return an image's size in words."""
    return f"{image.width} × {image.height}"


def grow(image: Any, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> tuple[Image.Image, Image.Image]:
    """Return an image with so many pixels more at its sides, and the mask of what is new, to be drawn there.

    What is new has the colour of the image's edge next to it.
    """
    margins = {"left": left, "top": top, "right": right, "bottom": bottom}
    for name, margin in margins.items():
        if not isinstance(margin, Integral) or margin < 0:
            raise ArgumentError(f"{name} must be a whole number of pixels of at least 0, got {quoted(margin)}")
    pixels = np.asarray(read_image(image))
    height, width = pixels.shape[0] + top + bottom, pixels.shape[1] + left + right
    if width * height > MOST_PIXELS:
        size = f"{quoted(width)} × {quoted(height)}"
        raise ArgumentError(f"grow: {size} pixels are more than {MOST_PIXELS:,}; grow it less")
    around = ((top, bottom), (left, right))
    grown = np.pad(pixels, (*around, (0, 0)), mode="edge")
    mask = np.pad(np.zeros(pixels.shape[:2], np.uint8), around, constant_values=255)
    return Image.fromarray(grown), Image.fromarray(mask)


def fitted_mask(mask: Any, size: tuple[int, int], blur: float) -> Image.Image:
    """Read a mask, which must have the image's size, and soften its edge."""
    grey = read_mask(mask)
    if grey.size != size:
        raise ArgumentError(f"mask must have the image's {size[0]} × {size[1]} pixels, got {label(grey)}")
    if not isinstance(blur, Real) or not 0 <= blur <= max(size):
        raise ArgumentError(
            f"mask_blur must be a number of pixels from 0 to the image's longer side, got {quoted(blur)}"
        )
    return grey.filter(ImageFilter.GaussianBlur(blur)) if blur else grey


def fitting_size(
    size: tuple[int, int], wanted: tuple[int | None, int | None], usual: tuple[int, int], unit: int
) -> tuple[int, int]:
    """Return the width and height that a model is to draw: those wanted, else the image's own in multiples of `unit`.

    An image of more pixels than the model's usual ones is shrunk to these, its aspect kept.

    >>> fitting_size((4000, 3000), (None, None), (1024, 1024), 16), fitting_size((70, 64), (None, 32), (64, 64), 16)
    ((1168, 880), (32, 32))
    """
    width, height = wanted
    if width is not None and height is not None:
        return width, height
    scale = min(1.0, (usual[0] * usual[1] / (size[0] * size[1])) ** 0.5)
    if height is not None:
        scale = height / size[1]
    if width is not None:
        scale = width / size[0]
    fitted = [max(unit, int(side * scale / unit + 1e-9) * unit) for side in size]
    return width or fitted[0], height or fitted[1]


def centred_box(size: tuple[int, int], aspect: tuple[int, int]) -> Box:
    """Return the largest box in the middle of an image that has an aspect.

    >>> centred_box((100, 50), (64, 64)), centred_box((50, 100), (64, 32))
    ((25, 0, 75, 50), (0, 37, 50, 62))
    """
    scale = min(side / part for side, part in zip(size, aspect, strict=True))
    width, height = (max(1, round(part * scale)) for part in aspect)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def box_of(mask: Image.Image, box: Box) -> Box:
    """Return the box if all of the mask is in it, or else the whole image, which is stretched: none is left undrawn."""
    left, top, right, bottom = mask.getbbox() or box
    is_inside = left >= box[0] and top >= box[1] and right <= box[2] and bottom <= box[3]
    return box if is_inside else (0, 0, *mask.size)


def box_around(mask: Image.Image, margin: Any, aspect: tuple[int, int]) -> Box:
    """Return the smallest box of an aspect that holds the mask and `margin` pixels around it, moved into the image.

    Where the image is too small for the aspect, the box is cut to it, and what is in it is stretched.
    """
    if not isinstance(margin, Integral) or isinstance(margin, bool) or margin < 0:
        raise ArgumentError(f"mask_crop must be a whole number of pixels of at least 0, got {quoted(margin)}")
    around = mask.getbbox()
    if around is None:
        raise ArgumentError("mask: nothing of it is white; paint white what is to be redrawn")
    sides = [around[2] - around[0] + 2 * int(margin), around[3] - around[1] + 2 * int(margin)]
    scale = max(side / part for side, part in zip(sides, aspect, strict=True))
    spans = [span(around[axis], around[axis + 2], round(aspect[axis] * scale), mask.size[axis]) for axis in (0, 1)]
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def span(first: int, last: int, length: int, limit: int) -> tuple[int, int]:
    """Return start and end of a stretch of `length` around the middle of first … last, moved into 0 … limit."""
    length = min(length, limit)
    start = min(max((first + last - length) // 2, 0), limit - length)
    return start, start + length


def tell(size: tuple[int, int], box: Box, wanted: tuple[int, int], is_whole: bool) -> None:
    """Warn of what is cut off, scaled and stretched, in one line; of a mask's surroundings, of what is stretched."""
    left, top, right, bottom = box
    seen = right - left, bottom - top
    words = []
    if is_whole and seen != size:
        words.append(f"its edges are cut off, {seen[0]} × {seen[1]} of {size[0]} × {size[1]} pixels are left")
    if is_whole and seen != wanted:
        words.append(f"it is scaled from {seen[0]} × {seen[1]} to {wanted[0]} × {wanted[1]} pixels")
    if is_stretched(seen, wanted):
        words.append(f"{seen[0]} × {seen[1]} pixels are stretched to {wanted[0]} × {wanted[1]}; give another width")
    if words:
        warnings.warn(f"image: {'; '.join(words)}", ImageFitted, stacklevel=6)  # a call's line


def tell_stretched(name: str, size: tuple[int, int], wanted: tuple[int, int], share: float = 0.1) -> None:
    """Warn where scaling changes an image's aspect by more than a share."""
    across, down = (after / before for before, after in zip(size, wanted, strict=True))
    if abs(across / down - 1) > share:
        line = f"{name}: {size[0]} × {size[1]} pixels are stretched to {wanted[0]} × {wanted[1]}; crop it first"
        warnings.warn(line, ImageFitted, stacklevel=5)


def is_stretched(seen: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Return whether scaling changes the aspect by more than rounding to whole pixels does.

    >>> is_stretched((33, 50), (64, 96)), is_stretched((40, 50), (64, 96))
    (False, True)
    """
    across, down = (after / before for before, after in zip(seen, wanted, strict=True))
    return abs(across / down - 1) > 1 / min(seen)
