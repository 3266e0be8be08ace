"""Where each thing and letter of a scene lies, on the grid of a transformer's image tokens."""

from string import ascii_uppercase

import numpy as np

from minflux.arrays import Float, shaped
from minflux.world.scenes import THINGS, Box, Scene, Sign, boxes, letter_boxes

TOKEN = 16  # pixels a side
CLASSES = (*THINGS, *ascii_uppercase)


@shaped
def token_shares(scene: Scene) -> Float[np.ndarray, "I K"]:
    """Return the share of each image token (row by row) that each of `CLASSES` covers, float32 in 0..1.

    A thing covers all of its box, a letter all of its own.
    """
    rows, columns = scene.height // TOKEN, scene.width // TOKEN
    shares = np.zeros((rows, columns, len(CLASSES)), np.float32)
    for name, box in named_boxes(scene):
        shares[..., CLASSES.index(name)] += coverage(box, rows, columns)
    return np.minimum(shares, 1).reshape(rows * columns, -1)


def named_boxes(scene: Scene) -> list[tuple[str, Box]]:
    """List what a scene shows, things and single letters, each with its box in pixels."""
    found: list[tuple[str, Box]] = []
    for item, box in zip(scene.items, boxes(scene), strict=True):
        if isinstance(item, Sign):
            found += zip(item.word, letter_boxes(item, box, scene.short), strict=True)
        else:
            found.append((item.name, box))
    return found


@shaped
def coverage(box: Box, rows: int, columns: int) -> Float[np.ndarray, "R C"]:
    """Return the share of each token that a box covers: what it covers down, times what it covers across."""
    left, top, width, height = box
    return np.outer(overlap(top, height, rows), overlap(left, width, columns))


@shaped
def overlap(start: int, length: int, tokens: int) -> Float[np.ndarray, "N"]:
    """Return the share of each of `tokens` stretches of `TOKEN` pixels that lies in start .. start + length."""
    edges = TOKEN * np.arange(tokens + 1)
    inside = np.clip(edges, start, start + length)
    return (np.diff(inside) / TOKEN).astype(np.float32)
