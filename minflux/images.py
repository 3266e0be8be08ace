"""Pictures as arrays and as files."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def to_uint8(pictures: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to 0..255, rounding: (B, H, W, 3) float32 -> uint8. Values outside are clipped."""
    return np.round(np.clip(pictures, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def grid(pictures: Sequence[np.ndarray], columns: int, gap: int = 4, zoom: int = 1) -> Image.Image:
    """Lay uint8 pictures (H, W, 3) of one size side by side on white, `columns` to a row."""
    height, width = (n * zoom for n in pictures[0].shape[:2])
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        place = (i % columns * (width + gap), i // columns * (height + gap))
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), place)
    return sheet
