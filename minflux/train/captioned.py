"""One's own images: a folder, and a caption for each image in it.

    cat.png  cat.txt      a caption beside each image, or
    metadata.jsonl        a line an image, {"file_name": "cat.png", "text": "a cat"}: Hugging Face's imagefolder

All is looked at before anything is trained, and whatever can't be used is named. Images are opened in one way: turned
as their EXIF says, transparent parts laid on white, and all else brought to RGB.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from minflux.checkpoints.formats.json_files import parse_json
from minflux.checkpoints.open import some_of
from minflux.errors import ArgumentError, MinfluxError

METADATA = "metadata.jsonl"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SMALLEST = 16  # pixels a side: one token
LONGEST = 1 << 16  # bytes of a caption
LARGEST = 1 << 26  # bytes of a metadata.jsonl
ROTATED = (5, 6, 7, 8)  # values of EXIF's orientation under which width and height change places
ORIENTATION = 0x0112

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class Captioned:
    """An image of the folder: its file, its caption, and its size as it is looked at."""

    path: Path
    caption: str
    size: Size


# -- the folder ----------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> list[Captioned]:
    """Find a folder's images and captions, sorted by path.

    Raises `ArgumentError` where there is no image, and one that names every image without a caption or that can't be
    used.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder}: expected a folder of images, found none")
    captions = captions_of(folder)
    if not captions:
        raise ArgumentError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    found, problems = sorted_out(lambda path: captioned(path, captions[path]), sorted(captions))
    if problems:
        raise ArgumentError(f"{len(problems)} of {len(captions)} images can't be used: {some_of(problems)}")
    return found


def captions_of(folder: Path) -> dict[Path, str | None]:
    """Return a folder's images with their captions, None for those in a .txt; warns of images that aren't listed."""
    images, listed = dict.fromkeys(images_of(folder)), folder / METADATA
    if not listed.exists():
        return images
    captions = read_metadata(listed)
    left = [path.name for path in images if path not in captions]
    if left:
        warnings.warn(f"{listed}: {len(left)} images are not in it and left out: {some_of(left)}", stacklevel=3)
    return dict(captions)


def sorted_out(make: Callable[[Path], Captioned], paths: list[Path]) -> tuple[list[Captioned], list[str]]:
    """Make an image of each path; return those that went well, and what was wrong with the others."""
    found, problems = [], []
    for path in paths:
        try:
            found.append(make(path))
        except MinfluxError as error:
            problems.append(str(error))
    return found, problems


def images_of(folder: Path) -> Iterator[Path]:
    """Yield the images of a folder and of the folders in it; hidden files are passed over."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield path


def captioned(path: Path, caption: str | None) -> Captioned:
    """Look at an image's header, and at its caption where none is given; raises `ArgumentError` for an empty one."""
    caption = read_caption(path) if caption is None else caption
    if not caption:
        raise ArgumentError(f"{path}: its caption is empty; write what the image shows")
    return Captioned(path, caption, size_of(path))


# -- captions ------------------------------------------------------------------------------------------------


def read_caption(path: Path) -> str:
    """Read the caption beside an image; raises `ArgumentError` where there is none."""
    beside = path.with_suffix(".txt")
    try:
        with beside.open("rb") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise ArgumentError(f"{beside}: expected a caption of at most {LONGEST} bytes")
        return " ".join(text.decode("utf-8-sig").split())
    except OSError as error:
        raise ArgumentError(f"{path}: expected its caption in {beside.name} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ArgumentError(f"{beside}: expected text in UTF-8") from None


def read_metadata(path: Path) -> dict[Path, str]:
    """Read captions from a metadata.jsonl, by their images; raises `ArgumentError` for a line that can't be used."""
    if path.stat().st_size > LARGEST:
        raise ArgumentError(f"{path}: expected at most {LARGEST} bytes")
    captions: dict[Path, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            image, text = read_line(path, number, line)
            if image in captions:
                raise ArgumentError(f"{path}, line {number}: {image.name} has a caption already")
            captions[image] = text
    return captions


def read_line(path: Path, number: int, line: bytes) -> tuple[Path, str]:
    """Read an image and its caption from a line of metadata.jsonl; the image must lie in the same folder or below."""
    try:
        values = parse_json(path, line)
    except MinfluxError as error:
        raise ArgumentError(f"{path}, line {number}: expected a JSON object") from error
    name, text = values.get("file_name"), values.get("text")
    if not isinstance(name, str) or not isinstance(text, str):
        raise ArgumentError(f'{path}, line {number}: expected "file_name" and "text", two strings')
    image = path.parent / name
    if not name.isprintable() or not image.resolve().is_relative_to(path.parent.resolve()):
        raise ArgumentError(f"{path}, line {number}: expected a file below this folder, found {name!a}")
    return image, " ".join(text.split())


# -- pixels --------------------------------------------------------------------------------------------------


def size_of(path: Path) -> Size:
    """Read an image's width and height from its header; raises `ArgumentError` for one that can't be used."""
    with opened_image(path) as image:
        width, height = image.size
        is_rotated = image.getexif().get(ORIENTATION) in ROTATED
    if min(width, height) < SMALLEST:
        raise ArgumentError(f"{path}: expected at least {SMALLEST} pixels a side, found {width}x{height}")
    return (height, width) if is_rotated else (width, height)


def read_pixels(path: Path, size: Size) -> np.ndarray:
    """Read an image as uint8 (height, width, 3), scaled to cover `size` and cut around its middle."""
    with opened_image(path) as image:
        upright = to_rgb(ImageOps.exif_transpose(image))
        return np.asarray(ImageOps.fit(upright, size, Image.Resampling.LANCZOS))


def to_rgb(image: Image.Image) -> Image.Image:
    """Bring an image of any kind to RGB: transparent parts on white, 16 bits of grey to 8."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ArgumentError("its numbers are no levels of 8 or 16 bits: save it as a PNG of 8 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong with it becomes an `ArgumentError` that names the file.

    Pillow refuses images of more than 89 million pixels, which may be small files that fill the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except ArgumentError as error:
        raise error if str(path) in str(error) else ArgumentError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise whatever they like
        raise ArgumentError(f"{path}: can't be read as an image ({error})") from None
