"""Read an image back into what is in it, by comparing it with everything that could be there.

The world of `scenes` is small enough for that. Let D be the image minus its background colour, and Δ a
sprite minus the background, at one place and zero elsewhere. Drawing that sprite changes the squared error
between an empty background and the image from |D|² to |D − Δ|², so it explains

    gain = |D|² − |D − Δ|² = 2 ⟨D, Δ⟩ − |Δ|².

A perfect match explains all there is in its square; a wrong sprite explains little, or adds error. ⟨D, Δ⟩ at
*every* place is a cross-correlation, which the Fourier transform turns into a product: one transform of the
image, and one back for each thing and size. The best sprite at its best place is accepted, the places it
covers are closed, and so on until no sprite explains enough of what is left.

A small model smears the finest detail, so D and Δ are both blurred slightly before they are compared: a
smeared cat is still a cat. `score` marks an image against the scene wanted, one attribute at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from minflux.errors import ArgumentError
from minflux.train.scenes import BACKGROUNDS, MIDDLE, SIDE, SIZES, THINGS, Scene, Thing, patch

CHECKS = ("background", "things", "where", "size", "count", "all")
ENOUGH = 0.7  # share of the squared error in its square that a thing must explain; a blurred one reaches 0.9
MAY_OVERLAP = 4  # pixels by which two things' squares may overlap both ways
NEAR = 6  # pixels that a single thing may be off the middle, each way
MOST_THINGS = 6  # reading stops there: this many is wrong anyway
Z_95 = 1.959964  # 95% of a normal distribution lies within this many standard deviations

NAMES = tuple(THINGS)
SIDES = np.array(list(SIZES.values()))  # (S,) pixels


@dataclass(frozen=True)
class Found:
    """A thing found: name, size, centre (x, y) in pixels, and the share of its square that it explains."""

    name: str
    size: str
    x: int
    y: int
    share: float


@dataclass(frozen=True)
class Reading:
    """What an image shows: the name of its background, and the things found, most error explained first."""

    background: str
    found: tuple[Found, ...]


# -------------------------------------------------------------------------------------------- the templates


@dataclass(frozen=True)
class Bank:
    """Every Δ on one background, for N things in S sizes: 24 x 3 templates."""

    spectra: np.ndarray  # (N, S, 3, 64, 33) complex64, the conjugate Fourier transform of each Δ
    energy: np.ndarray  # (N, S, 1, 1) float32, |Δ|²


@cache
def bank(background: str) -> Bank:
    """Build the templates for a background's name, once."""
    deltas = np.array([[_delta(name, size, background) for size in SIZES] for name in NAMES])
    spectra = np.fft.rfft2(deltas).conj().astype(np.complex64)
    return Bank(spectra, (deltas**2).sum(axis=2).sum(axis=(-2, -1), keepdims=True))


def _delta(name: str, size: str, background: str) -> np.ndarray:
    """Put a sprite minus the background into the top-left corner of zeros, softened: (3, 64, 64) float32."""
    difference = patch(name, size, background) - np.array(BACKGROUNDS[background], np.float32)
    canvas = np.zeros((3, SIDE, SIDE), np.float32)
    canvas[:, : SIZES[size], : SIZES[size]] = difference.transpose(2, 0, 1)
    return soften(canvas)


def soften(planes: np.ndarray) -> np.ndarray:
    """Blur (..., 64, 64) by (1 2 1)/4 each way, wrapping at the edges as the Fourier transform does."""
    for axis in (-2, -1):
        planes = (np.roll(planes, -1, axis) + 2 * planes + np.roll(planes, 1, axis)) / 4
    return planes


# ------------------------------------------------------------------------------------------------- reading


def read(image: np.ndarray) -> Reading:
    """Read a (64, 64, 3) uint8 image; raises `ArgumentError` for any other array."""
    if image.shape != (SIDE, SIDE, 3) or image.dtype != np.uint8:
        raise ArgumentError(f"image: {image.dtype} {image.shape} should be uint8 {(SIDE, SIDE, 3)}")
    colour = border_colour(image)
    background = nearest_background(colour)
    difference = soften((image - colour).transpose(2, 0, 1))
    return Reading(background, _find_things(difference, bank(background)))


def read_batch(images: Iterable[np.ndarray]) -> list[Reading]:
    """Read each of N images, (N, 64, 64, 3) uint8; raises `ArgumentError` as `read` does."""
    return [read(image) for image in images]


def border_colour(image: np.ndarray) -> np.ndarray:
    """Take the median colour of the two outermost pixels all round: (64, 64, 3) -> (3,) float32."""
    ring = np.ones((SIDE, SIDE), bool)
    ring[2:-2, 2:-2] = False
    return np.median(image[ring], axis=0).astype(np.float32)


def nearest_background(colour: np.ndarray) -> str:
    """Name the background colour nearest to an RGB colour, (3,) in 0..255."""
    return min(BACKGROUNDS, key=lambda name: float(((colour - BACKGROUNDS[name]) ** 2).sum()))


def gains(difference: np.ndarray, templates: Bank) -> np.ndarray:
    """Compute 2⟨D, Δ⟩ − |Δ|² with each Δ's corner at each pixel: (3, 64, 64) -> (N, S, 64, 64) float32."""
    spectrum = np.fft.rfft2(difference).astype(np.complex64)
    correlation = np.fft.irfft2((templates.spectra * spectrum).sum(axis=2), s=(SIDE, SIDE))
    return 2 * correlation - templates.energy


def square_energy(difference: np.ndarray) -> np.ndarray:
    """Sum D² over the square of each size with its corner at each pixel: (3, 64, 64) -> (S, 64, 64).

    A square that would reach out of the image gets inf: nothing can explain enough of it. Sums come from
    running totals over both axes, as the difference of four corners.
    """
    totals = np.zeros((SIDE + 1, SIDE + 1))
    totals[1:, 1:] = (difference**2).sum(axis=0).cumsum(axis=0).cumsum(axis=1)
    energy = np.full((len(SIDES), SIDE, SIDE), np.inf)
    for one, side in zip(energy, SIDES, strict=True):
        n = SIDE + 1 - side
        one[:n, :n] = totals[side:, side:] - totals[:n, side:] - totals[side:, :n] + totals[:n, :n]
    return energy


def _find_things(difference: np.ndarray, templates: Bank) -> tuple[Found, ...]:
    """Accept the thing and place of most gain, close the places it covers, and repeat."""
    gain, energy = gains(difference, templates), square_energy(difference)
    gain[gain < ENOUGH * energy] = 0
    found: list[Found] = []
    while gain.max() > 0 and len(found) < MOST_THINGS:
        n, s, top, left = map(int, np.unravel_index(gain.argmax(), gain.shape))
        side, share = int(SIDES[s]), float(gain[n, s, top, left] / energy[s, top, left])
        found.append(Found(NAMES[n], tuple(SIZES)[s], left + side // 2, top + side // 2, share))
        gain[:, _covered(top, left, side)] = 0
    return tuple(found)


def _covered(top: int, left: int, side: int) -> np.ndarray:
    """Mark the places (S, 64, 64) whose squares overlap an accepted square by more than is allowed."""
    start = np.arange(SIDE)
    end = start + SIDES[:, None]  # (S, 64)
    rows = np.minimum(end, top + side) - np.maximum(start, top) > MAY_OVERLAP
    columns = np.minimum(end, left + side) - np.maximum(start, left) > MAY_OVERLAP
    return rows[:, :, None] & columns[:, None, :]


def as_scene(reading: Reading) -> Scene | None:
    """Turn a reading into the scene it shows, without jitter; None if this world has no such scene."""
    axis, found = None, reading.found
    if len(found) == 2:
        axis = _axis(found[0], found[1])
        found = tuple(sorted(found, key=lambda thing: thing.x if axis == "horizontal" else thing.y))
    try:
        return Scene(reading.background, tuple(Thing(thing.name, thing.size) for thing in found), axis)
    except ArgumentError:
        return None


def _axis(first: Found, second: Found) -> str:
    """Return the axis along which two things stand further apart."""
    return "horizontal" if abs(first.x - second.x) > abs(first.y - second.y) else "vertical"


# ------------------------------------------------------------------------------------------------- marking


def score(wanted: Scene, image: np.ndarray) -> dict[str, bool]:
    """Mark a (64, 64, 3) uint8 image against the scene wanted; raises `ArgumentError` as `read` does."""
    return score_reading(wanted, read(image))


def score_reading(wanted: Scene, reading: Reading) -> dict[str, bool]:
    """Mark a reading against the scene wanted, with one answer for each of `CHECKS`.

    `background`: its colour; `things`: exactly the wanted names; `where`: a single thing near the middle, or
    two in the wanted order along the wanted axis; `size`: each of the wanted size; `count`: as many as
    wanted; `all`: every one of these. A wanted thing that isn't there makes `where` and `size` false.
    """
    clearest = {thing.name: thing for thing in reversed(reading.found)}
    placed = [clearest[thing.name] for thing in wanted.things if thing.name in clearest]
    complete = len(placed) == len(wanted.things)
    marks = {
        "background": reading.background == wanted.background,
        "things": sorted(t.name for t in reading.found) == sorted(t.name for t in wanted.things),
        "where": complete and _in_place(wanted.axis, placed),
        "size": complete and [thing.size for thing in placed] == [thing.size for thing in wanted.things],
        "count": len(reading.found) == len(wanted.things),
    }
    return marks | {"all": all(marks.values())}


def _in_place(axis: str | None, placed: list[Found]) -> bool:
    """Return whether things, in the wanted order, stand where a scene with that axis puts them."""
    if axis is None:
        return abs(placed[0].x - MIDDLE) <= NEAR and abs(placed[0].y - MIDDLE) <= NEAR
    first, second = placed
    in_order = first.x < second.x if axis == "horizontal" else first.y < second.y
    return in_order and _axis(first, second) == axis


def confidence_interval(successes: int, trials: int) -> tuple[float, float]:
    """Bound a success rate k/n with 95% confidence by Wilson's score interval, as (low, high) in 0..1.

    With p = k/n and z = 1.96: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) (Wilson, 1927).
    Raises `ArgumentError` unless 0 ≤ k ≤ n and n ≥ 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ArgumentError(f"successes: {successes} of {trials} trials makes no rate")
    p, z2n = successes / trials, Z_95**2 / trials
    middle = p + z2n / 2
    reach = math.sqrt(z2n * (p * (1 - p) + z2n / 4))
    return max(0.0, (middle - reach) / (1 + z2n)), min(1.0, (middle + reach) / (1 + z2n))
