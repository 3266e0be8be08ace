"""Images as arrays and as files."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minflux.errors import ArgumentError

MOST_PIXELS = 200_000_000  # of a file, which may be a stranger's: 600 MB once it is unpacked
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # what PIL reads without running another program


class ImageFitted(UserWarning):
    """An image was scaled, or its edges were cut off, to become what a model takes."""


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Map images in [-1, 1] to 0..255: (B, H, W, 3) float32 -> uint8, rounded; values outside are clipped."""
    levels = np.clip(images, -1, 1) * 127.5 + 127.5
    return np.round(levels).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """Map images in 0..255 to [-1, 1]: (B, H, W, 3) uint8 -> float32."""
    return images.astype(np.float32) / 127.5 - 1


@dataclass(frozen=True)
class Preprocessing:
    """How a vision encoder wants its images: scaled to width × height whatever their aspect, then (x - mean) / std.

    x is in [0, 1]. resample: by number, one of PIL's ways to scale; 3 is bicubic. The defaults are SigLIP's.
    """

    width: int
    height: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = int(Image.Resampling.BICUBIC)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as the encoder takes it: (1, H, W, 3) float32."""
        scaled = image.resize((self.width, self.height), Image.Resampling(self.resample))
        shares = np.asarray(scaled, np.float32) / 255
        mean, std = (np.asarray(numbers, np.float32) for numbers in (self.mean, self.std))
        return ((shares - mean) / std)[None]


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 4, zoom: int = 1) -> Image.Image:
    """Lay uint8 images (H, W, 3) of one size side by side on white, `columns` to a row."""
    height, width = (n * zoom for n in images[0].shape[:2])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        cell = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(cell, (column * (width + gap), row * (height + gap)))
    return sheet


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    """Return the file that PIL writes of an image, as "PNG" or "JPEG", with PIL's own settings `how`."""
    file = io.BytesIO()
    image.save(file, format=kind, **how)
    return file.getvalue()


def data_url(kind: str, file: bytes) -> str:
    """Return a file of an image as an address that holds it whole, for a page that is to load nothing.

    >>> data_url("PNG", b"...")
    'data:image/png;base64,Li4u'
    """
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file).decode()}"


# -- images as people have them --------------------------------------------------------------------------------


def read_image(image: Any, name: str = "image", background: str = "white") -> Image.Image:
    """Return an image in RGB, upright: from a path, a PIL image or an array, with transparency laid on `background`.

    Grey, palettes, CMYK and 16 bits are converted, and EXIF's orientation is applied. An array is (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4), of uint8, uint16, bool, or floats in [0, 1]. Raises `ArgumentError`, which calls the image
    `name`, for what is none and for a file of more than `MOST_PIXELS`.
    """
    opened = open_image(image, name)
    try:
        return opaque(eight_bits(opened, name), background)
    except (OSError, ValueError, SyntaxError) as error:  # PIL's for damaged data, and for a mode without RGB
        raise ArgumentError(f"{name}: {label(image)} can't be read as an image ({error})") from None


def read_mask(mask: Any, name: str = "mask") -> Image.Image:
    """Return a mask in 8-bit grey: white is redrawn. Raises `ArgumentError` as `read_image`, and for transparency."""
    opened = open_image(mask, name)
    alpha = np.asarray(opened.convert("RGBA").getchannel("A")) if is_transparent(opened) else np.array(255)
    if alpha.min() < 255:
        raise ArgumentError(f"{name}: {label(mask)} has transparent parts; make what is to be redrawn white on black")
    return read_image(opened, name).convert("L")


def label(image: Any) -> str:
    """Return how an error calls an image: by its path, or by its type."""
    return str(image) if isinstance(image, str | Path) else type(image).__name__


def open_image(image: Any, name: str) -> Image.Image:
    """Return an image upright, from a path, a PIL image or an array."""
    if isinstance(image, np.ndarray):
        return from_array(image, name)
    if isinstance(image, Image.Image):
        return upright(image, name, image)
    if isinstance(image, str | Path):
        return open_file(image, name)
    raise ArgumentError(f"{name} must be a path, a PIL image or an array, got {type(image).__name__}")


def open_file(path: str | Path, name: str) -> Image.Image:
    """Read an image file and close it; raises `ArgumentError` for what is no image, or is too large."""
    try:
        with warnings.catch_warnings(action="ignore"):  # PIL's of many pixels: they are counted here
            file = Image.open(path, formats=FORMATS)
        with file:
            return upright(file, name, path)
    except UnidentifiedImageError:
        raise ArgumentError(f"{name}: {path} is no image that minflux reads ({', '.join(FORMATS)})") from None
    except ArgumentError:
        raise
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise ArgumentError(f"{name}: {path} can't be read as an image ({error})") from None


def upright(image: Image.Image, name: str, given: Any) -> Image.Image:
    """Return an image turned as its EXIF says; its size is checked before its pixels are read."""
    if image.width * image.height > MOST_PIXELS:
        raise ArgumentError(
            f"{name}: {label(given)} has {image.width} × {image.height} pixels, more than {MOST_PIXELS:,}; shrink it"
        )
    return ImageOps.exif_transpose(image)


def from_array(array: np.ndarray, name: str) -> Image.Image:
    """Return an array as a PIL image of 8 bits; raises `ArgumentError` for another shape, type or range."""
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    good_shape = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if not good_shape or pixels.size == 0 or pixels.dtype.kind not in "ufb":
        raise ArgumentError(
            f"{name} must be an array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16, bool or floats, got "
            f"{array.dtype} {array.shape}"
        )
    return Image.fromarray(levels_of(pixels, name))


def levels_of(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return numbers of any type as levels 0 … 255: the largest of an unsigned type, True and 1.0 are white."""
    most = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    if pixels.dtype == np.uint8:
        return pixels
    shares = pixels.astype(np.float64) / most
    if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1):
        raise ArgumentError(f"{name}: an array of floats must lie in [0, 1], where 1 is white")
    return np.round(255 * shares).astype(np.uint8)


def eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Return an image with 8 bits a channel; 16-bit grey is scaled, which PIL's own conversion would clip."""
    if image.mode not in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        return image
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ArgumentError(f"{name}: an image of 32 bits a pixel has no one white; save it with 8 or 16 bits")
    return Image.fromarray(levels_of(levels.astype(np.uint16), name))


def is_transparent(image: Image.Image) -> bool:
    """Return whether an image may have transparent parts."""
    return image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info


def opaque(image: Image.Image, background: str) -> Image.Image:
    """Return an image in RGB, what is transparent laid on a colour."""
    if not is_transparent(image):
        return image.convert("RGB")
    sheet = Image.new("RGBA", image.size, background)
    sheet.alpha_composite(image.convert("RGBA"))
    return sheet.convert("RGB")
