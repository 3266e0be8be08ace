"""What each token stands for: of an image, what it shows; of a caption, what it names.

A part of a scene is what one word, or one letter, stands for: a thing, all of a number of things, a letter of a sign.
A token of the image is 16×16 pixels, and so is the grid of this world: a thing covers whole tokens, and a letter two,
one above the other.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from minflux.arrays import Int, shaped
from minflux.inference.text import Tokenizer
from minflux.world.captions import NAMES, plural
from minflux.world.scenes import GRID, LETTER, THINGS, Box, Scene, Sign, boxes

LABELS = ("nothing", *THINGS, *ascii_uppercase)
Span = tuple[int, int]  # of letters: the first, and the one after the last
NUMBERS = {label: number for number, label in enumerate(LABELS)}


@dataclass(frozen=True)
class Part:
    """A part of a scene: its label, of `LABELS`, and its places."""

    label: str
    boxes: tuple[Box, ...]


def parts(scene: Scene) -> list[Part]:
    """List a scene's parts in the order of its items, a sign's letters from left to right."""
    places = boxes(scene)
    if scene.is_count:
        return [Part(scene.items[0].name, tuple(places))]
    found: list[Part] = []
    for item, box in zip(scene.items, places, strict=True):
        found += letters(item, box) if isinstance(item, Sign) else [Part(item.name, (box,))]
    return found


def letters(sign: Sign, box: Box) -> list[Part]:
    """Cut a sign into its letters."""
    left, top, _, height = box
    width = LETTER[0]
    return [Part(letter, ((left + i * width, top, width, height),)) for i, letter in enumerate(sign.word)]


# -- the image -------------------------------------------------------------------------------------------------


@shaped
def image_parts(scene: Scene) -> Int[np.ndarray, "I"]:
    """Return which part each image token shows, row by row: 1 for the first, 0 for none; int32 (I,)."""
    shown = np.zeros((scene.height // GRID, scene.width // GRID), np.int32)
    for number, part in enumerate(parts(scene), start=1):
        for left, top, width, height in np.array(part.boxes) // GRID:
            shown[top : top + height, left : left + width] = number
    return shown.reshape(-1)


@shaped
def image_labels(scene: Scene) -> Int[np.ndarray, "I"]:
    """Return the number in `LABELS` of what each image token shows, row by row; int32 (I,)."""
    labels = [0, *(NUMBERS[part.label] for part in parts(scene))]
    return np.array(labels, np.int32)[image_parts(scene)]


# -- the caption -----------------------------------------------------------------------------------------------


@shaped
def text_parts(scene: Scene, caption: str, tokenizer: Tokenizer, length: int) -> Int[np.ndarray, "T"]:
    """Return which part each token of a scene's caption names: 1 for the first, 0 for none; int32 (T,)."""
    named = np.zeros(length, np.int32)
    tokens = tokenizer.backend.encode(caption).offsets[:length]
    for number, span in enumerate(spans(scene, caption), start=1):
        named[tokens_of(tokens, span)] = number
    return named


def tokens_of(offsets: Sequence[Span], span: Span) -> list[int]:
    """Return the places of the tokens that stand for any of a span of letters.

    offsets: of each token the letters it stands for, (0, 0) for one that stands for none.
    """
    start, end = span
    return [i for i, (left, right) in enumerate(offsets) if left < end and right > start]


def spans(scene: Scene, caption: str) -> list[Span]:
    """Return where a scene's caption names each of its parts, as (start, end) in letters."""
    found: list[Span] = []
    for item in scene.items[:1] if scene.is_count else scene.items:
        if isinstance(item, Sign):
            start = word_start(item.word, caption)
            found += [(start + i, start + i + 1) for i in range(len(item.word))]
        else:
            found.append(name_span(item.name, caption))
    return found


def name_span(thing: str, caption: str) -> Span:
    """Return where a caption names a thing, by any of its names."""
    names = sorted(NAMES.get(thing, (thing,)), key=len, reverse=True)
    either = "|".join([plural(name) for name in names] + names)
    match = re.search(rf"\b({either})\b", caption, re.IGNORECASE)
    assert match is not None, (thing, caption)
    return match.span()


def word_start(word: str, caption: str) -> int:
    """Return where a sign's word stands in a caption: in capitals, or in small letters in quotes."""
    *_, last = [None, *re.finditer(rf"\b{word}\b", caption)]  # a caption that begins with "A" may have it twice
    return caption.index(f'"{word.lower()}"') + 1 if last is None else last.start()
