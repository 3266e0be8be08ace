"""The edges of an image, white on black: where its brightness or a colour changes most steeply, as lines 1 pixel wide.

FLUX.1 Canny was trained on what OpenCV's `Canny` makes of images, so this is the same, to the pixel: Sobel's gradient,
|dx| + |dy| for its magnitude, in each pixel of the channel where that is largest. A pixel is kept where its magnitude
is the largest across the edge; it belongs to an edge above the upper threshold, or above the lower one where a chain of
such pixels leads to it. OpenCV itself would be a dependency of 150 MB for these lines.

Sources: Canny 1986 (A Computational Approach to Edge Detection); OpenCV `modules/imgproc/src/canny.cpp`.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image

from minflux.errors import ArgumentError, quoted
from minflux.images import read_image

THRESHOLDS = (50, 200)  # those that FLUX.1 Canny was trained with, by BFL's code
LARGEST = 2040  # of a magnitude: Sobel's weights sum to 4, in both directions, of levels up to 255
TG22 = 13573  # tan 22.5° in units of 2⁻¹⁵; tan 67.5° is 2 more


def canny(image: Any, low: float = THRESHOLDS[0], high: float = THRESHOLDS[1]) -> Image.Image:
    """Return the edges of an image, a path, PIL image or array, as an image of its size, white on black.

    low, high: the thresholds of a gradient's magnitude, 0 to 2040. A smaller `high` begins more edges, a smaller `low`
    follows them farther. Raises `ArgumentError` for thresholds that are none.
    """
    check_thresholds((low, high))
    return Image.fromarray(drawn(edges(np.asarray(read_image(image, background="black")), low, high)))


def check_thresholds(thresholds: Any) -> tuple[float, float]:
    """Return two thresholds, the lower first; raises `ArgumentError` for anything else."""
    is_pair = isinstance(thresholds, Sequence) and len(thresholds) == 2
    if not is_pair or not all(isinstance(value, Real) for value in thresholds):
        raise ArgumentError(f"canny must be two thresholds, low and high, got {thresholds!a}")
    low, high = thresholds
    if not 0 <= low <= high <= LARGEST:
        raise ArgumentError(
            f"canny: thresholds must be 0 ≤ low ≤ high ≤ {LARGEST}, got {quoted(low)} and {quoted(high)}"
        )
    return low, high


def drawn(edges: np.ndarray) -> np.ndarray:
    """Return edges, bool (H, W), as an image in white on black: uint8 (H, W, 3)."""
    return np.repeat(edges[..., None] * np.uint8(255), 3, axis=2)


def edges(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return which pixels of an image, uint8 (H, W, 3), belong to an edge: bool (H, W)."""
    dx, dy = steepest(*sobel(pixels.astype(np.int32)))
    magnitude = abs(dx) + abs(dy)
    ridge = is_largest_across(magnitude, dx, dy)
    may_belong = ridge & (magnitude > np.floor(low))
    return followed(may_belong & (magnitude > np.floor(high)), may_belong)


def sobel(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient of each channel (H, W, C) to the right and downwards; at the border pixels are repeated."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down = padded[:-2] + 2 * padded[1:-1] + padded[2:]  # (H, W + 2, C), smoothed along y
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # (H + 2, W, C), along x
    return down[:, 2:] - down[:, :-2], across[2:] - across[:-2]


def steepest(dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradient (H, W) of each pixel's channel in which its magnitude is the largest, of several the first.

    dx, dy: (H, W, C).
    """
    channel = (abs(dx) + abs(dy)).argmax(axis=-1)[..., None]
    return np.take_along_axis(dx, channel, -1)[..., 0], np.take_along_axis(dy, channel, -1)[..., 0]


def is_largest_across(magnitude: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Return where the magnitude is larger than in the two pixels across the edge, (H, W); outside it counts as 0.

    The direction across is the nearest of four. Of two equal pixels the first in the order of reading stays, except on
    a diagonal, where neither does.
    """
    padded = np.pad(magnitude, 1)
    height, width = magnitude.shape

    def beside(down: int, right: int) -> np.ndarray:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = abs(dx) * TG22, abs(dy) * 2**15
    is_level, is_upright = y < x, y > x + abs(dx) * 2**16
    falls = (dx ^ dy) < 0
    level = (magnitude > beside(0, -1)) & (magnitude >= beside(0, 1))
    upright = (magnitude > beside(-1, 0)) & (magnitude >= beside(1, 0))
    rising = (magnitude > beside(-1, -1)) & (magnitude > beside(1, 1))
    falling = (magnitude > beside(-1, 1)) & (magnitude > beside(1, -1))
    return np.select([is_level, is_upright, falls], [level, upright, falling], rising)


def followed(begun: np.ndarray, may_belong: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) that a chain of those that may belong to an edge joins to one where it is begun."""
    found, open_ = np.pad(begun, 1), np.pad(may_belong, 1)
    row = found.shape[1]
    around = np.array([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1])
    front = np.flatnonzero(found)
    while front.size:
        near = np.unique(front[:, None] + around)
        front = near[open_.flat[near] & ~found.flat[near]]
        found.flat[front] = True
    return found[1:-1, 1:-1]
