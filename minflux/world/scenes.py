"""A world to learn: emoji and signs on coloured backgrounds, in images of any shape from 64 to 160 pixels a side.

A `Scene` is a background and one to three items in a row or a column: things ("a cat"), or one sign with a word on it.
The image is divided into as many equal cells along the row or column as there are items; each item lies in its
cell, moved from the place nearest to the cell's middle by its offset. All places and sides are multiples of 16 pixels,
as large as a token, and a larger image has no larger things but more room: so a thing is the same few tokens wherever
it lies, and a small transformer has 36 × 30 of them to learn, not forty times as many (docs/log.md).

Items are always listed left to right, or top to bottom: "a cat left of an apple" and "an apple right of a cat" are the
same scene, and holding it out holds out both. Some combinations are never trained on (`is_held_out`): each thing on
one of the backgrounds, one in twelve of the ordered neighbours along each axis, of the things in a number, and of the
words. A model that draws those has understood the parts, and not memorised images.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import ceil, floor
from string import ascii_uppercase
from typing import Any

import numpy as np

from minflux.errors import ArgumentError
from minflux.world.words import WORDS

# ------------------------------------------------------------------------------------------- the vocabulary

THINGS = {
    "cat": "🐱", "dog": "🐶", "panda": "🐼", "frog": "🐸", "pig": "🐷", "fox": "🦊",
    "penguin": "🐧", "owl": "🦉", "octopus": "🐙", "fish": "🐟", "bee": "🐝", "crab": "🦀",
    "apple": "🍎", "banana": "🍌", "pear": "🍐", "carrot": "🥕", "pumpkin": "🎃", "mushroom": "🍄",
    "donut": "🍩", "cactus": "🌵", "tree": "🌳", "sunflower": "🌻", "star": "⭐", "moon": "🌙",
    "globe": "🌍", "house": "🏠", "car": "🚗", "bus": "🚌", "rocket": "🚀", "umbrella": "☂",
    "heart": "💜", "hat": "🎩", "gift": "🎁", "balloon": "🎈", "ball": "⚽", "crown": "👑",
}  # fmt: skip
Colour = tuple[int, int, int]
PLAIN: dict[str, Colour] = {
    "white": (250, 250, 250),
    "blue": (110, 170, 245),
    "green": (140, 210, 130),
    "yellow": (255, 243, 165),
    "pink": (252, 170, 200),
    "purple": (185, 150, 235),
    "orange": (252, 182, 112),
    "gray": (160, 163, 168),
}
TWO_COLOURED: dict[str, tuple[Colour, Colour]] = {  # above the horizon, and below it
    "sky over grass": ((165, 215, 252), (112, 186, 92)),
    "sky over sand": ((165, 215, 252), (236, 208, 150)),
    "night over snow": ((52, 60, 110), (238, 244, 250)),
    "sunset over sea": ((255, 176, 136), (62, 120, 178)),
}
BACKGROUNDS: dict[str, tuple[Colour, Colour]] = {name: (c, c) for name, c in PLAIN.items()} | TWO_COLOURED
HORIZON = 5 / 8  # of the height
SIZES = {"small": 2, "regular": 3, "large": 4}  # side of a thing, in tokens; one less in a narrow image
NARROW = 96  # pixels, below which the shorter side holds no three things of two tokens
COUNTS = (2, 3)  # of one thing

# What a relation says of its first thing: along which axis, and whether it comes second on that axis.
RELATIONS = {
    "left of": ("horizontal", False),
    "right of": ("horizontal", True),
    "above": ("vertical", False),
    "below": ("vertical", True),
}
AXES = ("horizontal", "vertical")
LONGEST_WORD = 6

# ------------------------------------------------------------------------------------------------ geometry

SIDES = range(64, 161, 16)  # what width and height may be
DEFAULT_SIDE = 128
GRID = 16  # pixels, as a token has: all sides and places
FREE = 1 / 8  # how far an item may lie from its cell's middle, in shorter sides of the image
LETTER = (16, 24)  # width and height of a letter, in pixels
FRAME = 4  # pixels above and below a sign's letters


def thing_side(size: str, short: int) -> int:
    """Give the side of a thing in pixels, for an image whose shorter side is `short`."""
    return GRID * (SIZES[size] - (short < NARROW))


def sign_extent(letters: int) -> tuple[int, int]:
    """Give the width and height in pixels of a sign with that many letters."""
    width, height = LETTER
    return letters * width, height + 2 * FRAME


def longest_word(width: int) -> int:
    """Give how many letters a sign may have in an image of that width: some of the image is left beside it."""
    return min(LONGEST_WORD, width // LETTER[0] - 1)


def horizon(height: int) -> int:
    """Give the row where the second colour of a background begins."""
    return on_grid(HORIZON * height)


# --------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Thing:
    """A thing in a scene: its name, of `THINGS`, and its size, of `SIZES`; raises `ArgumentError`."""

    name: str
    size: str = "regular"

    def __post_init__(self):
        _one_of("name", self.name, THINGS)
        _one_of("size", self.size, SIZES)

    def extent(self, short: int) -> tuple[int, int]:
        """Give width and height in pixels, in an image whose shorter side is `short`."""
        side = thing_side(self.size, short)
        return side, side


@dataclass(frozen=True)
class Sign:
    """A sign with a word of one to six capital letters on it; raises `ArgumentError` for any other word."""

    word: str
    name = "sign"

    def __post_init__(self):
        if not 1 <= len(self.word) <= LONGEST_WORD or not set(self.word) <= set(ascii_uppercase):
            raise ArgumentError(f"word: {self.word!r} is not one to {LONGEST_WORD} letters of A-Z")

    def extent(self, short: int) -> tuple[int, int]:
        """Give width and height in pixels, the same in an image of any size."""
        return sign_extent(len(self.word))


Item = Thing | Sign
Offsets = tuple[tuple[int, int], ...]
Box = tuple[int, int, int, int]  # left, top, width, height, in pixels


@dataclass(frozen=True)
class Scene:
    """One to three items on a background, listed left to right or top to bottom, in an image of width × height.

    `offsets` holds (right, down) in pixels for each item, from the place nearest to its cell's middle; left empty, it
    becomes zeros. Raises `ArgumentError` for a scene that this world doesn't have.
    """

    background: str
    items: tuple[Item, ...]
    axis: str | None = None
    width: int = DEFAULT_SIDE
    height: int = DEFAULT_SIDE
    offsets: Offsets = ()

    def __post_init__(self):
        if not self.offsets:
            object.__setattr__(self, "offsets", ((0, 0),) * len(self.items))
        _one_of("background", self.background, BACKGROUNDS)
        _one_of("width", self.width, SIDES)
        _one_of("height", self.height, SIDES)
        _check_items(self.items, self.axis)
        _check_words(self.items, self.width)
        _check_offsets(self)

    @property
    def short(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)

    @property
    def is_count(self) -> bool:
        """Whether it is a number of one thing, "three stars", whose axis no caption tells."""
        return len(self.items) > 1 and len(set(self.items)) == 1


def _one_of(argument: str, value: object, choices: Sequence | dict) -> None:
    if value not in choices:
        raise ArgumentError(f"{argument}: {value!r} is not one of {', '.join(map(str, choices))}")


def _check_items(items: tuple[Item, ...], axis: str | None) -> None:
    if len(items) not in (1, 2, 3):
        raise ArgumentError(f"items: a scene has one to three, not {len(items)}")
    if len(items) == 1:
        return _one_of("axis of a single item", axis, (None,))
    _one_of("axis", axis, AXES)
    for item in items:
        _check_one_of_many(item, len(items), axis)
    if len({item.name for item in items}) not in (1, len(items)):
        raise ArgumentError("items: they must all differ, or all be the same")
    if len(set(items)) == 1 and isinstance(items[0], Sign):
        raise ArgumentError("items: a scene has one sign at most")
    if len({item.name for item in items}) == 1 and len(set(items)) > 1:
        raise ArgumentError("items: a number of things must have one size")


def _check_one_of_many(item: Item, count: int, axis: str | None) -> None:
    if isinstance(item, Sign):
        if count == 3 or axis == "horizontal":
            raise ArgumentError("items: a sign stands alone, or above or below one thing")
    elif item.size not in {2: ("small", "regular"), 3: ("small",)}[count]:
        raise ArgumentError(f"size: one of {count} things can't be {item.size}")


def _check_words(items: tuple[Item, ...], width: int) -> None:
    longest = longest_word(width)
    for item in items:
        if isinstance(item, Sign) and len(item.word) > longest:
            raise ArgumentError(f"word: {item.word!r} has more than the {longest} letters that fit")


def _check_offsets(scene: Scene) -> None:
    if len(scene.offsets) != len(scene.items):
        raise ArgumentError(f"offsets: {scene.offsets} should be {len(scene.items)} pairs")
    for offset, allowed in zip(scene.offsets, freedom(scene), strict=True):
        if not all(move in moves for move, moves in zip(offset, allowed, strict=True)):
            raise ArgumentError(f"offsets: {offset} is none of {tuple(map(tuple, allowed))} pixels")


def cell(scene: Scene) -> tuple[float, float]:
    """Give the width and height of the cell that each item lies in, in pixels."""
    across = len(scene.items) if scene.axis == "horizontal" else 1
    down = len(scene.items) if scene.axis == "vertical" else 1
    return scene.width / across, scene.height / down


def freedom(scene: Scene) -> list[tuple[range, range]]:
    """Give the offsets that each item may have, in pixels, right and down: it stays near its cell's middle."""
    return [(_moves(across), _moves(down)) for across, down in _places(scene)]


def _moves(places: range) -> range:
    return range(places[0] - home_of(places), places[-1] - home_of(places) + 1, GRID)


def home_of(places: range) -> int:
    """Give where something lies without an offset: of its places the middle one, or the one before."""
    return places[(len(places) - 1) // 2]


def _places(scene: Scene) -> list[tuple[range, range]]:
    """Give where each item's left and top may lie, in pixels."""
    width, height = cell(scene)
    found = []
    for i, item in enumerate(scene.items):
        column, row = (i if scene.axis == axis else 0 for axis in AXES)
        w, h = item.extent(scene.short)
        free = FREE * scene.short
        found.append((places_in(column * width, width, w, free), places_in(row * height, height, h, free)))
    return found


def places_in(start: float, length: float, side: int, free: float) -> range:
    """Give where something of a side may begin in a cell along one axis: on the grid, at most `free` off its middle.

    Where it fits nowhere on the grid, it is the nearest place to the middle.
    """
    middle, spare = start + (length - side) / 2, min((length - side) / 2, free)
    first, last = GRID * ceil((middle - spare) / GRID), GRID * floor((middle + spare) / GRID)
    return range(first, last + 1, GRID) if first <= last else range(on_grid(middle), on_grid(middle) + 1, GRID)


def without_offsets(scene: Scene) -> Scene:
    """Return the same scene with every item where it lies without an offset."""
    return replace(scene, offsets=())


def boxes(scene: Scene) -> list[Box]:
    """Give each item's place as (left, top, width, height) in pixels."""
    return [
        (home_of(across) + dx, home_of(down) + dy, *item.extent(scene.short))
        for item, (across, down), (dx, dy) in zip(scene.items, _places(scene), scene.offsets, strict=True)
    ]


def on_grid(place: float) -> int:
    """Return the nearest multiple of `GRID` pixels."""
    return GRID * round(place / GRID)


# ------------------------------------------------------------------------------------------ held-out split


def stable_hash(text: str) -> int:
    """Hash text to 64 bits, the same on every machine and run (Python's own `hash` is not)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@cache
def held_out_backgrounds() -> dict[str, str]:
    """Give the one background each thing is never trained on: shuffled things are dealt to them in turn."""
    things, backgrounds = sorted(THINGS, key=stable_hash), sorted(BACKGROUNDS, key=stable_hash)
    return {thing: backgrounds[i % len(backgrounds)] for i, thing in enumerate(things)}


@cache
def one_in_twelve(*parts: str) -> bool:
    """Tell whether a combination, given by its parts, is one of those never trained on."""
    return stable_hash(" ".join(parts)) % 12 == 0


@cache
def is_count_held_out(name: str, count: int) -> bool:
    """Tell whether two, or three, of a thing is one of the numbers never trained on: of no thing both, 1 in 12 each."""
    return stable_hash(f"count {name}") % 12 == count


def is_held_out(scene: Scene) -> bool:
    """Tell whether a scene has any combination that is never trained on (offsets and sizes don't matter)."""
    return any(combinations(scene))


def combinations(scene: Scene) -> Iterator[bool]:
    """Tell of each combination in a scene whether it is never trained on."""
    for item in scene.items:
        if isinstance(item, Sign):
            yield one_in_twelve("word", item.word)
        else:
            yield held_out_backgrounds()[item.name] == scene.background
    if scene.is_count:
        yield is_count_held_out(scene.items[0].name, len(scene.items))
    elif scene.axis is not None:
        names = [item.name for item in scene.items]
        for first, second in pairwise(names):
            yield one_in_twelve("pair", first, second, scene.axis)


# ------------------------------------------------------------------------------------------------- sampling

KINDS = {"single": 0.24, "pair": 0.32, "count": 0.12, "trio": 0.10, "sign": 0.10, "sign and thing": 0.12}


def sample(
    rng: np.random.Generator,
    width: int = DEFAULT_SIDE,
    height: int = DEFAULT_SIDE,
    held_out: bool = False,
    kind: str | None = None,
) -> Scene:
    """Draw a random scene of the training split, or of the held-out one; of one of `KINDS`, or any at their shares."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    while True:
        items, axis = SAMPLERS[kind](rng, width)
        scene = Scene(pick(rng, tuple(BACKGROUNDS)), items, axis, width, height)
        if is_held_out(scene) == held_out:
            return replace(scene, offsets=_draw_offsets(rng, scene))


def _draw_offsets(rng: np.random.Generator, scene: Scene) -> Offsets:
    return tuple((pick(rng, x), pick(rng, y)) for x, y in freedom(scene))


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """Choose one of several, each as likely as the others."""
    return choices[int(rng.integers(len(choices)))]


def _sample_single(rng, width):
    return (Thing(pick(rng, tuple(THINGS)), pick(rng, tuple(SIZES))),), None


def _sample_pair(rng, width):
    names = rng.choice(tuple(THINGS), size=2, replace=False)
    return tuple(Thing(str(name), pick(rng, ("small", "regular"))) for name in names), pick(rng, AXES)


def _sample_count(rng, width):
    thing, count = pick(rng, tuple(THINGS)), int(rng.integers(2, 4))
    return (Thing(thing, "small" if count == 3 else pick(rng, ("small", "regular"))),) * count, pick(rng, AXES)


def _sample_trio(rng, width):
    names = rng.choice(tuple(THINGS), size=3, replace=False)
    return tuple(Thing(str(name), "small") for name in names), pick(rng, AXES)


def _sample_sign(rng, width):
    return (Sign(sample_word(rng, longest_word(width))),), None


def _sample_sign_and_thing(rng, width):
    sign = Sign(sample_word(rng, longest_word(width)))
    thing = Thing(pick(rng, tuple(THINGS)), pick(rng, ("small", "regular")))
    return (sign, thing) if rng.random() < 0.5 else (thing, sign), "vertical"


def sample_word(rng: np.random.Generator, longest: int = LONGEST_WORD) -> str:
    """Draw a word of the list, or half of the time any letters in a row, one to `longest`."""
    if rng.random() < 0.5:
        return pick(rng, [word for word in WORDS if len(word) <= longest])
    return "".join(ascii_uppercase[i] for i in rng.integers(26, size=rng.integers(1, longest + 1)))


SAMPLERS = {
    "single": _sample_single, "pair": _sample_pair, "count": _sample_count, "trio": _sample_trio,
    "sign": _sample_sign, "sign and thing": _sample_sign_and_thing,
}  # fmt: skip
