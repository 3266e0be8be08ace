"""A small world to learn: emoji on flat colours, with captions that say exactly what is there.

A `Scene` is a background colour and one or two things. A single thing sits in the middle; two things stand
side by side or one above the other. From a scene come its image (`render`) and its captions (`captions`),
and from a caption comes the scene again (`parse`), so what a model drew can be marked right or wrong.

One scene has one description: things are always listed left to right, or top to bottom. "A cat left of an
apple" and "an apple right of a cat" are therefore the same `Scene`, and holding it out holds out both.

Some combinations are never trained on (`is_held_out`): each thing on one of the backgrounds, and about one in
twelve of the ordered pairs along each axis. A model that draws those has understood the parts, not
memorised the images.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from minflux.errors import ArgumentError

# ------------------------------------------------------------------------------------------- the vocabulary

THINGS = {
    "cat": "🐱", "panda": "🐼", "frog": "🐸", "penguin": "🐧", "owl": "🦉", "octopus": "🐙",
    "fish": "🐟", "bee": "🐝", "apple": "🍎", "carrot": "🥕", "gift": "🎁", "mushroom": "🍄",
    "donut": "🍩", "cactus": "🌵", "tree": "🌳", "sunflower": "🌻", "star": "⭐", "globe": "🌍",
    "house": "🏠", "car": "🚗", "rocket": "🚀", "umbrella": "☂", "heart": "💜", "hat": "🎩",
}  # fmt: skip
BACKGROUNDS = {
    "white": (250, 250, 250),
    "blue": (120, 180, 245),
    "green": (140, 210, 130),
    "yellow": (255, 243, 165),
    "pink": (252, 170, 200),
    "purple": (185, 150, 235),
    "orange": (252, 182, 112),
    "gray": (160, 163, 168),
}
SIZES = {"small": 18, "regular": 28, "large": 44}  # side in pixels; "regular" is never said in a caption
PAIR_SIZES = ("small", "regular")

# What a relation says of its first thing: along which axis, and whether it comes second on that axis.
RELATIONS = {
    "left of": ("horizontal", False),
    "right of": ("horizontal", True),
    "above": ("vertical", False),
    "below": ("vertical", True),
}
WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}

# ------------------------------------------------------------------------------------------------ geometry

SIDE = 64  # pixels of the image, both ways
MIDDLE = 32
PAIR_CENTRES = (16, 48)  # two regular things, jitter and all, exactly fill 0..64 without touching
MAX_JITTER = 2
SINGLE_SHARE = 0.35
SPRITE_FOLDER = Path(__file__).parent / "sprites"


# --------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Thing:
    """One thing in a scene: its name, of `THINGS`, and its size, of `SIZES`; raises `ArgumentError`."""

    name: str
    size: str = "regular"

    def __post_init__(self):
        _one_of("name", self.name, THINGS)
        _one_of("size", self.size, SIZES)


@dataclass(frozen=True)
class Scene:
    """One or two things on a background, listed left to right or top to bottom.

    `offsets` holds (right, down) in whole pixels for each thing, at most `MAX_JITTER` either way; left empty,
    it becomes zeros. Raises `ArgumentError` for a scene that this world doesn't have.
    """

    background: str
    things: tuple[Thing, ...]
    axis: str | None = None
    offsets: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if not self.offsets:
            object.__setattr__(self, "offsets", ((0, 0),) * len(self.things))
        _one_of("background", self.background, BACKGROUNDS)
        _check_things(self.things, self.axis)
        _check_offsets(self.offsets, len(self.things))


def _one_of(argument: str, value: object, choices: Sequence[str] | dict) -> None:
    if value not in choices:
        raise ArgumentError(f"{argument}: {value!r} is not one of {', '.join(choices)}")


def _check_things(things: tuple[Thing, ...], axis: str | None) -> None:
    if len(things) not in (1, 2):
        raise ArgumentError(f"things: a scene has one or two, not {len(things)}")
    if len(things) == 1 and axis is not None:
        raise ArgumentError("axis: a single thing has none; pass None")
    if len(things) == 2:
        _one_of("axis", axis, ("horizontal", "vertical"))
        for thing in things:
            _one_of("size of a thing in a pair", thing.size, PAIR_SIZES)
        if things[0].name == things[1].name:
            raise ArgumentError(f"things: two things must differ, and both are {things[0].name!r}")


def _check_offsets(offsets: tuple[tuple[int, int], ...], count: int) -> None:
    if len(offsets) != count or any(abs(d) > MAX_JITTER for offset in offsets for d in offset):
        raise ArgumentError(f"offsets: {offsets} should be {count} pairs within ±{MAX_JITTER} pixels")


def without_jitter(scene: Scene) -> Scene:
    """Return the same scene with every thing exactly in its place: what a caption can tell of it."""
    return replace(scene, offsets=())


# ------------------------------------------------------------------------------------------------- images


@cache
def sprite(name: str, size: str) -> np.ndarray:
    """Load a thing's sprite at a size's side S: (S, S, 4) float32 in 0..1, the last channel opacity."""
    side = SIZES[size]
    image = Image.open(SPRITE_FOLDER / f"{name}.png").convert("RGBA")
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255


@cache
def patch(name: str, size: str, background: str) -> np.ndarray:
    """Composite a sprite over a background, alpha·sprite + (1 − alpha)·colour: (S, S, 3) uint8."""
    rgba = sprite(name, size)
    colour = np.array(BACKGROUNDS[background], np.float32)
    alpha = rgba[..., 3:]
    return np.rint(alpha * rgba[..., :3] * 255 + (1 - alpha) * colour).astype(np.uint8)


def centres(scene: Scene) -> list[tuple[int, int]]:
    """Return each thing's centre as (x, y) in pixels, jitter included."""
    if scene.axis is None:
        places = [(MIDDLE, MIDDLE)]
    elif scene.axis == "horizontal":
        places = [(c, MIDDLE) for c in PAIR_CENTRES]
    else:
        places = [(MIDDLE, c) for c in PAIR_CENTRES]
    return [(x + dx, y + dy) for (x, y), (dx, dy) in zip(places, scene.offsets, strict=True)]


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: (64, 64, 3) uint8. Things never overlap, so each is pasted ready-composited."""
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    _paint(scene, image)
    return image


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Draw many scenes: (N, 64, 64, 3) uint8."""
    images = np.empty((len(scenes), SIDE, SIDE, 3), np.uint8)
    for scene, image in zip(scenes, images, strict=True):
        _paint(scene, image)
    return images


def _paint(scene: Scene, image: np.ndarray) -> None:
    image[:] = BACKGROUNDS[scene.background]
    for thing, (x, y) in zip(scene.things, centres(scene), strict=True):
        side = SIZES[thing.size]
        left, top = x - side // 2, y - side // 2
        image[top : top + side, left : left + side] = patch(thing.name, thing.size, scene.background)


# ------------------------------------------------------------------------------------------ held-out split


def _stable_hash(text: str) -> int:
    """Hash text to 64 bits, the same on every machine and run (Python's own `hash` is not)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@cache
def held_out_backgrounds() -> dict[str, str]:
    """Return the one background each thing is never trained on: shuffled things are dealt to them in turn."""
    things, backgrounds = sorted(THINGS, key=_stable_hash), sorted(BACKGROUNDS, key=_stable_hash)
    return {thing: backgrounds[i % len(backgrounds)] for i, thing in enumerate(things)}


@cache
def is_pair_held_out(first: str, second: str, axis: str) -> bool:
    """Return whether this canonical ordered pair along this axis is one of the 1 in 12 never trained on."""
    return _stable_hash(f"{first} {second} {axis}") % 12 == 0


def is_held_out(scene: Scene) -> bool:
    """Return whether a scene has any combination that is never trained on (jitter and size don't matter)."""
    if any(held_out_backgrounds()[thing.name] == scene.background for thing in scene.things):
        return True
    names = [thing.name for thing in scene.things]
    return scene.axis is not None and is_pair_held_out(*names, scene.axis)


# ------------------------------------------------------------------------------------------------- sampling


def sample(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draw a random scene from the training split, or from the held-out one; about 35% hold one thing."""
    draw = _sample_single if rng.random() < SINGLE_SHARE else _sample_pair
    while True:
        scene = draw(rng)
        if is_held_out(scene) == held_out:
            return scene


def _sample_single(rng: np.random.Generator) -> Scene:
    thing = Thing(_pick(rng, tuple(THINGS)), _pick(rng, tuple(SIZES)))
    return Scene(_pick(rng, tuple(BACKGROUNDS)), (thing,), None, _jitter(rng, 1))


def _sample_pair(rng: np.random.Generator) -> Scene:
    names = rng.choice(tuple(THINGS), size=2, replace=False)
    things = tuple(Thing(str(name), _pick(rng, PAIR_SIZES)) for name in names)
    axis = _pick(rng, ("horizontal", "vertical"))
    return Scene(_pick(rng, tuple(BACKGROUNDS)), things, axis, _jitter(rng, 2))


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _jitter(rng: np.random.Generator, count: int) -> tuple[tuple[int, int], ...]:
    moves = rng.integers(-MAX_JITTER, MAX_JITTER + 1, size=(count, 2))
    return tuple((int(dx), int(dy)) for dx, dy in moves)


def stream(seed: int, held_out: bool = False) -> Iterator[tuple[Scene, str]]:
    """Yield (scene, caption) for ever, the same for the same seed; raises `ArgumentError` for a seed < 0."""
    if seed < 0:
        raise ArgumentError(f"seed: {seed} is negative; use 0 or more")
    rng = np.random.default_rng(seed)
    while True:
        scene = sample(rng, held_out)
        yield scene, caption(scene, rng)


# ------------------------------------------------------------------------------------------------- captions

SINGLE_TEMPLATES = (
    "{a thing} on {a colour} background",
    "on {a colour} background, {a thing}",
    "{colour} background: {a thing}",
    "a picture of {a thing} on {a colour} background",
    "{a thing}, {colour} background",
    "{a thing} in the middle of {a colour} background",
    "the {thing} is in the middle, {colour} background",
)
PAIR_TEMPLATES = (
    "{a first} {relation} {a second} on {a colour} background",
    "on {a colour} background, {a first} {relation} {a second}",
    "{colour} background: {a first} {relation} {a second}",
    "a picture of {a first} {relation} {a second} on {a colour} background",
    "{a first} {relation} {a second}, {colour} background",
    "the {first} is {relation} the {second}, {colour} background",
)


def captions(scene: Scene) -> list[str]:
    """List every caption of a scene in a fixed order, plainest first: 7 for one thing, 24 for two."""
    if scene.axis is None:
        words = _words(thing=_noun(scene.things[0]), colour=scene.background)
        return [template.format_map(words) for template in SINGLE_TEMPLATES]
    return [text for relation in RELATIONS for text in _pair_captions(scene, relation)]


def caption(scene: Scene, rng: np.random.Generator, in_order: float | None = None) -> str:
    """Choose one of a scene's captions at random; of a pair's, with probability `in_order` one in its own order.

    "A cat left of an apple" names the things in their order on the image, "an apple right of a cat" does not.
    """
    if in_order is None or scene.axis is None:
        return _pick(rng, captions(scene))
    backwards = rng.random() >= in_order
    relation = next(r for r, of in RELATIONS.items() if of == (scene.axis, backwards))
    return _pick(rng, _pair_captions(scene, relation))


def plain_caption(scene: Scene) -> str:
    """Return a scene's plainest caption: "a cat left of an apple on a blue background"."""
    return captions(scene)[0]


def _pair_captions(scene: Scene, relation: str) -> list[str]:
    """List the captions that use one relation: none if it's about the other axis."""
    axis, comes_second = RELATIONS[relation]
    if axis != scene.axis:
        return []
    first, second = reversed(scene.things) if comes_second else scene.things
    nouns = {"first": _noun(first), "second": _noun(second), "colour": scene.background}
    wordings = [_words(**nouns, relation=wording) for wording in WORDINGS[relation]]
    return [template.format_map(words) for words in wordings for template in PAIR_TEMPLATES]


def _noun(thing: Thing) -> str:
    return thing.name if thing.size == "regular" else f"{thing.size} {thing.name}"


def _words(**words: str) -> dict[str, str]:
    """Add to each word the same word with its article, under the key "a ..."."""
    return words | {f"a {key}": _with_article(word) for key, word in words.items()}


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# -------------------------------------------------------------------------------------------------- parsing

_THING_PATTERN = re.compile(rf"(?:\b({'|'.join(SIZES)}) )?\b({'|'.join(THINGS)})\b")
_COLOUR_PATTERN = re.compile(rf"\b({'|'.join(BACKGROUNDS)}) background\b")
_RELATION_OF = {wording: relation for relation, wordings in WORDINGS.items() for wording in wordings}
_RELATION_PATTERN = re.compile(rf"\b({'|'.join(_RELATION_OF)})\b")


def parse(text: str) -> Scene | None:
    """Find the scene, without jitter, that a caption describes; None if no scene has that caption.

    Case, a final full stop and extra spaces don't matter. The few telling words are picked out first; then
    the text must be one of that scene's own captions, so `parse` is the exact inverse of `captions`.
    """
    tidy = " ".join(text.lower().split()).rstrip(".")
    try:
        scene = _scene_from_words(tidy)
    except ArgumentError:  # the words name a scene that doesn't exist, such as a cat left of a cat
        return None
    return scene if scene is not None and tidy in captions(scene) else None


def _scene_from_words(text: str) -> Scene | None:
    things = tuple(Thing(name, size or "regular") for size, name in _THING_PATTERN.findall(text))
    colour, relation = _COLOUR_PATTERN.search(text), _RELATION_PATTERN.search(text)
    if colour is None:
        return None
    if relation is None:
        return Scene(colour[1], things)
    axis, comes_second = RELATIONS[_RELATION_OF[relation[1]]]
    return Scene(colour[1], things[::-1] if comes_second else things, axis)
