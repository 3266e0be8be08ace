"""Read an image back into what is in it, by comparing it with everything that could be there.

Let D be the image minus its background, and Δ an item minus the background, at one place and zero elsewhere. Drawing
that item changes the squared error between an empty background and the image from |D|² to |D − Δ|², so it explains

    gain = |D|² − |D − Δ|² = 2 ⟨D, Δ⟩ − |Δ|².

A perfect match explains all there is in its rectangle; a wrong item explains little, or adds error. With a sprite of
colours P (times opacity) and opacity A over a background b, Δ = P − A b, and so

    ⟨D, Δ⟩ = ⟨D, P⟩ − ⟨Σ D b, A⟩,    |Δ|² = |P|² − 2 ⟨b, P A⟩ + ⟨Σ b², A²⟩

at *every* place are cross-correlations, for a background of any colours, and the Fourier transform turns them into
products. The best item at its best place is accepted, the places it covers are closed, and so on until no item explains
enough of what is left.

A sign is looked for with the mean of all letters in each of its cells; then its letters are read one by one, each as
the one of 26 that fits best, and it counts with what it explains with them.

A small model smears the finest detail, so images and sprites are both blurred slightly before they are compared.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from string import ascii_uppercase

import numpy as np

from minflux.arrays import Float, Int, shaped
from minflux.errors import ArgumentError
from minflux.world import render
from minflux.world.layouts import overlap
from minflux.world.scenes import (
    BACKGROUNDS,
    FRAME,
    LETTER,
    SIDES,
    SIZES,
    THINGS,
    Scene,
    Sign,
    Thing,
    horizon,
    longest_word,
)

CHECKS = ("background", "things", "where", "size", "count", "letters", "all")
ENOUGH = 0.7  # share of the squared error in its rectangle that an item must explain; a blurred one reaches 0.9
LIKE_A_SIGN = 0.2  # the same for a sign before its letters are read
BESIDE = 4  # pixels, by which a sign may lie beside where all letters' mean fits best
MAY_OVERLAP = 1 / 16  # of the shorter side, by which two items' rectangles may overlap both ways
UNLIKE = 30.0  # of 255: how far a background's pixels may be from its colour
MOST_ITEMS = 6  # reading stops there: this many is wrong anyway


@dataclass(frozen=True)
class Found:
    """An item found: its name, a thing's size or a sign's word, its middle in pixels, and the share it explains."""

    name: str
    size: str
    word: str
    x: float
    y: float
    share: float


@dataclass(frozen=True)
class Reading:
    """What an image shows: the name of its background, and the items found, most error explained first."""

    background: str
    found: tuple[Found, ...]
    width: int
    height: int


# -------------------------------------------------------------------------------------------- the templates


@dataclass(frozen=True)
class Bank:
    """Every item of one kind at one size of image: T templates of one width and height."""

    names: tuple[str, ...]
    size: str
    width: int
    height: int
    spectra: np.ndarray  # (T, 4, H, W/2+1) complex64, conjugate transforms of P's three colours and of -A
    energy_spectra: np.ndarray  # (T, 4, H, W/2+1) complex64, of -2 P A and A²
    energy: np.ndarray  # (T, 1, 1) float32, |P|²


@lru_cache(maxsize=32)
def banks(width: int, height: int) -> tuple[Bank, ...]:
    """Build the templates of things for a size of image: one bank for each size of thing."""
    short = min(width, height)
    return tuple(
        _bank(tuple(THINGS), size, [render.sprite(Thing(name, size), short) for name in THINGS], width, height)
        for size in SIZES
    )


@lru_cache(maxsize=32)
def sign_banks(width: int, height: int) -> tuple[Bank, ...]:
    """Build the templates of signs that fit a size of image: one bank, of one template, for each length of word."""
    lengths = range(1, longest_word(width) + 1)
    signs = [np.mean([render.sign_sprite(a * n) for a in ascii_uppercase], axis=0) for n in lengths]
    return tuple(_bank(("sign",), str(n), [sign], width, height) for n, sign in enumerate(signs, start=1))


def _bank(names: tuple[str, ...], size: str, sprites: list[np.ndarray], width: int, height: int) -> Bank:
    h, w = sprites[0].shape[:2]
    canvas = np.zeros((len(sprites), 4, height, width), np.float32)
    canvas[:, :, :h, :w] = np.stack(sprites).transpose(0, 3, 1, 2)
    canvas = soften(canvas)
    colours, opacity = canvas[:, :3], canvas[:, 3:]
    spectra = spectrum(np.concatenate([colours, -opacity], axis=1)).conj()
    energy_spectra = spectrum(np.concatenate([-2 * colours * opacity, opacity**2], axis=1)).conj()
    return Bank(names, size, w, h, spectra, energy_spectra, (colours**2).sum(axis=(1, 2, 3))[:, None, None])


def spectrum(planes: np.ndarray) -> np.ndarray:
    """Transform (..., H, W) to (..., H, W/2+1) complex64."""
    return np.fft.rfft2(planes).astype(np.complex64)


@shaped
def soften(planes: Float[np.ndarray, "*S H W"]) -> Float[np.ndarray, "*S H W"]:
    """Blur (..., H, W) by (1 2 1)/4 each way, wrapping at the edges as the Fourier transform does."""
    for axis in (-2, -1):
        planes = (np.roll(planes, -1, axis) + 2 * planes + np.roll(planes, 1, axis)) / 4
    return planes


@lru_cache(maxsize=16)
def energies(background: str, width: int, height: int) -> tuple[np.ndarray, ...]:
    """Give |Δ|² of every thing at every place over a background: one (T, H, W) float32 for each of `banks`."""
    return tuple(_energy(bank, background, width, height) for bank in banks(width, height))


@lru_cache(maxsize=64)
def sign_energies(background: str, width: int, height: int) -> tuple[np.ndarray, ...]:
    """Give the same for signs."""
    return tuple(_energy(bank, background, width, height) for bank in sign_banks(width, height))


def _energy(bank: Bank, background: str, width: int, height: int) -> np.ndarray:
    b = ground(background, width, height)
    planes = spectrum(np.concatenate([b, (b * b).sum(axis=0, keepdims=True)]))
    return bank.energy + correlate(bank.energy_spectra, planes, width, height)


def correlate(spectra: np.ndarray, planes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Sum the correlations of 4 planes' spectra with T templates': (T, 4, H, F), (4, H, F) -> (T, H, W) float32."""
    return np.fft.irfft2((spectra * planes).sum(axis=1), s=(height, width)).astype(np.float32)


@lru_cache(maxsize=64)
def ground(background: str, width: int, height: int) -> np.ndarray:
    """Draw a background alone, softened: (3, H, W) float32."""
    return soften(render.background(background, width, height).astype(np.float32).transpose(2, 0, 1))


# ------------------------------------------------------------------------------------------------- reading


def read(image: np.ndarray) -> Reading:
    """Read a (H, W, 3) uint8 image of one of the world's sizes; raises `ArgumentError` for any other array."""
    _check(image)
    height, width = image.shape[:2]
    edges = edges_of(image)
    background = nearest_background(edges)
    colours = ring_colours(edges, background)
    softened = soften(image.astype(np.float32).transpose(2, 0, 1))
    difference = softened - soften(_two_colours(colours, width, height))
    return Reading(background, tuple(_find(softened, difference, background)), width, height)


def _check(image: np.ndarray) -> None:
    right = image.ndim == 3 and image.shape[2] == 3 and set(image.shape[:2]) <= set(SIDES)
    if not right or image.dtype != np.uint8:
        raise ArgumentError(f"image: {image.dtype} {image.shape} should be uint8 (H, W, 3), sides of {SIDES}")


def read_batch(images: Iterable[np.ndarray]) -> list[Reading]:
    """Read each of several images, (H, W, 3) uint8; raises `ArgumentError` as `read` does."""
    return [read(image) for image in images]


def edges_of(image: Int[np.ndarray, "H W 3"]) -> list[np.ndarray]:
    """Take the pixels of the image's edge above the horizon, and below: two of (N, 3) float32."""
    line, gap = horizon(len(image)), 3
    above, below = image[: line - gap].astype(np.float32), image[line + gap :].astype(np.float32)
    outer = ((above, above[0]), (below, below[-1]))
    return [np.concatenate([part[:, 0], part[:, -1], row]) for part, row in outer]


def nearest_background(edges: Sequence[np.ndarray]) -> str:
    """Name the background whose two colours most pixels of the edge are near to: an item may cover half of it."""

    def likeness(name: str) -> float:
        return sum(near(pixels, colour).sum() for pixels, colour in zip(edges, BACKGROUNDS[name], strict=True))

    return max(BACKGROUNDS, key=likeness)


def near(pixels: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """Tell how near pixels (N, 3) are to a colour: 1 for the same, falling to 0."""
    return np.exp(-np.square(pixels - np.array(colour, np.float32)).sum(axis=-1) / (2 * UNLIKE**2))


def ring_colours(edges: Sequence[np.ndarray], background: str) -> Float[np.ndarray, "2 3"]:
    """Take the median of those pixels of the edge that are near the background's colours: (2, 3) float32."""
    colours = []
    for pixels, colour in zip(edges, BACKGROUNDS[background], strict=True):
        own = pixels[near(pixels, colour) > 0.1]
        colours.append(np.median(own, axis=0) if len(own) else np.array(colour))
    return np.array(colours, np.float32)


def _two_colours(colours: np.ndarray, width: int, height: int) -> np.ndarray:
    planes = np.empty((3, height, width), np.float32)
    line = horizon(height)
    planes[:, :line], planes[:, line:] = colours[0][:, None, None], colours[1][:, None, None]
    return planes


@shaped
def gains(
    difference: Float[np.ndarray, "3 H W"], background: str, bank: Bank, energy: Float[np.ndarray, "T H W"]
) -> Float[np.ndarray, "T H W"]:
    """Give 2⟨D, Δ⟩ − |Δ|² of T templates at every place of their corner, (T, H, W); -1 where they don't fit."""
    _, height, width = difference.shape
    shaded = (difference * ground(background, width, height)).sum(axis=0, keepdims=True)
    planes = spectrum(np.concatenate([difference, shaded]))
    gain = 2 * correlate(bank.spectra, planes, width, height) - energy
    gain[:, height - bank.height + 1 :] = gain[:, :, width - bank.width + 1 :] = -1
    return gain


@shaped
def square_energy(difference: Float[np.ndarray, "3 H W"], width: int, height: int) -> Float[np.ndarray, "H W"]:
    """Sum |D|² over the rectangle at every place of its top left corner: (H, W), infinite where it doesn't fit."""
    sums = np.pad(np.square(difference, dtype=np.float64).sum(axis=0).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    whole = np.full(difference.shape[1:], np.inf)
    whole[: inside.shape[0], : inside.shape[1]] = inside
    return whole


# A candidate is what it explains, and the item with its place (left, top, width, height).
Place = tuple[int, int, int, int]
Candidate = tuple[float, Found, Place]


@dataclass(frozen=True)
class Map:
    """What each template of a bank explains at each place, zero where that isn't enough: a gain (T, H, W)."""

    bank: Bank
    gain: np.ndarray
    energy: np.ndarray  # (H, W), all that could be explained in the rectangle at each place

    def best(self) -> Candidate:
        """Return the template and place of most gain."""
        n, top, left = map(int, np.unravel_index(self.gain.argmax(), self.gain.shape))
        gain, bank = float(self.gain[n, top, left]), self.bank
        x, y = left + bank.width / 2, top + bank.height / 2
        share = gain / max(float(self.energy[top, left]), 1e-9)
        return gain, Found(bank.names[n], bank.size, "", x, y, share), (left, top, bank.width, bank.height)

    def close(self, place: Place) -> None:
        """Set to zero the gain of every place that would overlap a taken one."""
        self.gain[:, covered(place, self.bank, *self.gain.shape[1:])] = 0


def maps_of(difference: np.ndarray, background: str, kind: tuple[Bank, ...], energy: tuple, enough: float) -> list[Map]:
    """Make the map of each bank."""
    maps = []
    for bank, delta_energy in zip(kind, energy, strict=True):
        gain = gains(difference, background, bank, delta_energy)
        whole = square_energy(difference, bank.width, bank.height)
        gain[gain < enough * whole] = 0
        maps.append(Map(bank, gain, whole))
    return maps


def covered(place: Place, bank: Bank, height: int, width: int) -> np.ndarray:
    """Mark where a template's rectangle would overlap a taken one by more than is allowed: (H, W)."""
    left, top, w, h = place
    allowed = MAY_OVERLAP * min(width, height)
    across, down = np.arange(width), np.arange(height)
    columns = np.minimum(across + bank.width, left + w) - np.maximum(across, left) > allowed
    rows = np.minimum(down + bank.height, top + h) - np.maximum(down, top) > allowed
    return rows[:, None] & columns


def _find(softened: np.ndarray, difference: np.ndarray, background: str) -> list[Found]:
    """Accept the item and place of most gain, close the places it covers, and repeat."""
    _, height, width = difference.shape
    maps = maps_of(difference, background, banks(width, height), energies(background, width, height), ENOUGH)
    signs = sign_candidates(softened, difference, background)
    found: list[Found] = []
    while len(found) < MOST_ITEMS:
        gain, item, place = max([m.best() for m in maps] + signs, key=lambda candidate: candidate[0])
        if gain <= 0:
            break
        found.append(item)
        for m in maps:
            m.close(place)
        signs = [sign for sign in signs if not overlap(sign[2], place)]
    return found


# --------------------------------------------------------------------------------------------------- signs


def sign_candidates(softened: np.ndarray, difference: np.ndarray, background: str) -> list[Candidate]:
    """Find what could be signs, read their letters, and keep those that explain enough with them."""
    _, height, width = difference.shape
    energy = sign_energies(background, width, height)
    maps = maps_of(difference, background, sign_banks(width, height), energy, LIKE_A_SIGN)
    kept: list[Candidate] = []
    for _ in range(MOST_ITEMS):
        gain, _, place = max((m.best() for m in maps), key=lambda candidate: candidate[0])
        if gain <= 0:
            break
        sign = best_sign(softened, difference, place)
        if sign[1].share >= ENOUGH:
            kept.append(sign)
        for m in maps:
            m.close(sign[2])
    return kept


def best_sign(softened: np.ndarray, difference: np.ndarray, place: Place) -> Candidate:
    """Read a sign's letters at a place and beside it, and keep what explains most: thin letters mislead their mean."""
    left, top, width, height = place
    _, h, w = softened.shape
    columns = range(max(0, left - BESIDE), min(w - width, left + BESIDE) + 1)
    rows = range(max(0, top - 1), min(h - height, top + 1) + 1)
    return max(
        (sign_at(softened, difference, (x, y, width, height)) for x in columns for y in rows), key=lambda s: s[0]
    )


def sign_at(softened: np.ndarray, difference: np.ndarray, place: Place) -> Candidate:
    """Read a sign's letters at a place, and say what it explains with them."""
    left, top, width, height = place
    word = read_letters(softened, place)
    share, gain = explained_by_sign(softened, difference, word, place)
    return gain, Found("sign", "", word, left + width / 2, top + height / 2, share), place


@shaped
def read_letters(softened: Float[np.ndarray, "3 H W"], place: Place) -> str:
    """Read the letters of a sign at (left, top, width, height) in a softened image (3, H, W)."""
    left, top, width, _ = place
    w, h = LETTER
    rows = slice(top + FRAME, top + FRAME + h)
    return "".join(_read_letter(softened[:, rows, x + 1 : x + w - 1]) for x in range(left, left + width, w))


def _read_letter(patch: np.ndarray) -> str:
    errors = np.square(alphabet() - patch).sum(axis=(1, 2, 3))
    return ascii_uppercase[int(errors.argmin())]


@cache
def alphabet() -> np.ndarray:
    """Draw every letter on a board, softened, without its outermost columns: (26, 3, height, width - 2) float32."""
    signs = np.stack([render.sign_sprite(f"I{letter}I")[..., :3] for letter in ascii_uppercase]).transpose(0, 3, 1, 2)
    width, height = LETTER
    return soften(signs)[:, :, FRAME : FRAME + height, width + 1 : 2 * width - 1]


def explained_by_sign(softened: np.ndarray, difference: np.ndarray, word: str, place: Place) -> tuple[float, float]:
    """Give what a sign with that word explains of |D|² in its rectangle: as a share, and the gain itself."""
    left, top, width, height = place
    sign = render.sign_sprite(word)[..., :3].transpose(2, 0, 1)
    inner = (slice(None), slice(1, -1), slice(1, -1))  # the outermost pixels are blurred with what lies around
    here = (slice(None), slice(top, top + height), slice(left, left + width))
    whole = float(np.square(difference[here])[inner].sum())
    gain = whole - float(np.square(softened[here] - soften(sign))[inner].sum())
    return gain / max(whole, 1e-9), gain


# ------------------------------------------------------------------------------------------------- marking


def as_scene(reading: Reading) -> Scene | None:
    """Turn a reading into the scene it shows, without offsets; None if this world has no such scene."""
    axis, found = None, reading.found
    if len(found) > 1:
        axis = axis_of(reading.found, reading.width, reading.height)
        found = tuple(sorted(found, key=lambda item: item.x if axis == "horizontal" else item.y))
    try:
        items = tuple(Sign(item.word) if item.name == "sign" else Thing(item.name, item.size) for item in found)
        return Scene(reading.background, items, axis, reading.width, reading.height)
    except ArgumentError:
        return None


def axis_of(found: Iterable[Found], width: int, height: int) -> str:
    """Tell along which axis items are further apart, as a share of the image's sides."""
    places = np.array([(item.x / width, item.y / height) for item in found])
    across, down = np.ptp(places, axis=0)
    return "horizontal" if across > down else "vertical"


def score(wanted: Scene, image: np.ndarray) -> dict[str, bool]:
    """Mark a (H, W, 3) uint8 image against the scene wanted; raises `ArgumentError` as `read` does."""
    return score_reading(wanted, read(image))


def score_reading(wanted: Scene, reading: Reading) -> dict[str, bool]:
    """Mark a reading against the scene wanted, with one answer for each of `CHECKS`.

    `background`: its colours; `things`: exactly the wanted names, a sign among them; `where`: several in the wanted
    order along the wanted axis, a single item or a number of one thing anywhere; `size`: each thing of the wanted size;
    `count`: as many items as wanted; `letters`: the sign's word, if there is to be a sign;
    `all`: every one of these. A wanted item that isn't there makes `where`, `size` and its `letters` false.
    """
    placed = _placed(wanted, reading)
    sizes = [item.size for item in wanted.items if isinstance(item, Thing)]
    words = [item.word for item in wanted.items if isinstance(item, Sign)]
    marks = {
        "background": reading.background == wanted.background,
        "things": Counter(f.name for f in reading.found) == Counter(item.name for item in wanted.items),
        "where": bool(placed) and _in_place(wanted, placed),
        "size": bool(placed) and [f.size for f in placed if f.name != "sign"] == sizes,
        "count": len(reading.found) == len(wanted.items),
        "letters": not words or [f.word for f in placed if f.name == "sign"] == words,
    }
    return marks | {"all": all(marks.values())}


def _placed(wanted: Scene, reading: Reading) -> list[Found]:
    """Find the wanted items, in the wanted order, the clearest of each name; none if any is missing."""
    left = sorted(reading.found, key=lambda item: -item.share)
    placed = []
    for item in wanted.items:
        match = next((f for f in left if f.name == item.name), None)
        if match is None:
            return []
        left.remove(match)
        placed.append(match)
    return placed


def _in_place(wanted: Scene, placed: list[Found]) -> bool:
    """Tell whether items, in the wanted order, stand where the scene puts them."""
    if wanted.is_count or wanted.axis is None:
        return True  # no caption says where
    along = [item.x if wanted.axis == "horizontal" else item.y for item in placed]
    return along == sorted(along) and axis_of(placed, wanted.width, wanted.height) == wanted.axis
