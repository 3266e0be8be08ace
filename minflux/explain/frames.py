"""What latents look like, step by step, as images that a page can hold: PNG where there is room, else JPEG, shrunk."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

BYTES = 750_000  # of all frames together; a third more as text
SIDES = (512, 384, 256, 192, 128, 96, 64)  # of a frame in JPEG, the first that fits


def encode_frames(frames: Sequence[np.ndarray], most: int = BYTES) -> list[str]:
    """Return uint8 images (H, W, 3) as data URLs that take at most about `most` bytes together."""
    exact = [as_png(frame) for frame in frames]
    if total(exact) <= most:
        return [url("png", data) for data in exact]
    for side in SIDES:
        smaller = [as_jpeg(frame, side) for frame in frames]
        if total(smaller) <= most:
            break
    return [url("jpeg", data) for data in smaller]


def as_png(frame: np.ndarray) -> bytes:
    """Return an image as a PNG file."""
    return written(Image.fromarray(frame), format="PNG", optimize=True)


def as_jpeg(frame: np.ndarray, side: int) -> bytes:
    """Return an image as a JPEG file, its longer side at most `side`."""
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return written(image, format="JPEG", quality=88, subsampling=0)


def written(image: Image.Image, **how) -> bytes:
    """Return the file that PIL writes of an image."""
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


def total(files: Sequence[bytes]) -> int:
    """Return the size of files together."""
    return sum(map(len, files))


def url(kind: str, data: bytes) -> str:
    """Return a file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
