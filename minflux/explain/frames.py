"""What latents look like, step by step, as images that a page can hold: PNG where there is room, else JPEG, shrunk."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from minflux.images import data_url, encoded

BYTES = 750_000  # of all frames together; a third more as text
SIDES = (512, 384, 256, 192, 128, 96, 64)  # of a frame in JPEG, the first that fits


def encode_frames(frames: Sequence[np.ndarray], most: int = BYTES) -> list[str]:
    """Return uint8 images (H, W, 3) as data URLs that take at most about `most` bytes together."""
    if sum(frame.nbytes for frame in frames) <= 4 * most:  # noise takes nearly as much as PNG
        exact = [encoded(Image.fromarray(frame), "PNG", optimize=True) for frame in frames]
        if total(exact) <= most:
            return [data_url("PNG", file) for file in exact]
    for side in SIDES:
        smaller = [as_jpeg(frame, side) for frame in frames]
        if total(smaller) <= most:
            break
    return [data_url("JPEG", file) for file in smaller]


def as_jpeg(frame: np.ndarray, side: int) -> bytes:
    """Return an image as a JPEG file, its longer side at most `side`."""
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encoded(image, "JPEG", quality=88, subsampling=0)


def total(files: Sequence[bytes]) -> int:
    """Return the size of files together."""
    return sum(map(len, files))
