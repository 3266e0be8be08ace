"""Images as arrays and as files."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Map images in [-1, 1] to 0..255: (B, H, W, 3) float32 -> uint8, rounded; values outside are clipped."""
    levels = np.clip(images, -1, 1) * 127.5 + 127.5
    return np.round(levels).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """Map images in 0..255 to [-1, 1]: (B, H, W, 3) uint8 -> float32."""
    return images.astype(np.float32) / 127.5 - 1


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
