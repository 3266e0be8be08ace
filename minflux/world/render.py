"""Draw scenes as pixels, thousands a second: sprites pasted over a background, alpha · sprite + (1 − alpha) · below."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image

from minflux.arrays import Float, Int, shaped
from minflux.world.scenes import (
    BACKGROUNDS,
    FRAME,
    LETTER,
    Box,
    Item,
    Scene,
    Sign,
    boxes,
    horizon,
    sign_extent,
    thing_side,
)

SPRITE_FOLDER = Path(__file__).parent / "sprites"
LETTERS_FILE = "letters.png"
BOARD, BORDER, INK = (255, 252, 238), (120, 78, 48), (38, 32, 44)  # of a sign


@cache
@shaped
def thing_sprite(name: str, side: int) -> Float[np.ndarray, "S S 4"]:
    """Load a thing at a side in pixels: (side, side, 4) float32, colours 0..255 times opacity, then opacity 0..1."""
    image = Image.open(SPRITE_FOLDER / f"{name}.png").convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
    rgba = np.asarray(image, np.float32)
    alpha = rgba[..., 3:] / 255
    return np.concatenate([rgba[..., :3] * alpha, alpha], axis=-1)


@cache
@shaped
def letter_ink(letter: str) -> Float[np.ndarray, "H W"]:
    """Load how much ink each pixel of a letter has, (height, width) float32 in 0..1."""
    strip = Image.open(SPRITE_FOLDER / LETTERS_FILE)
    width, place = strip.width // 26, ascii_uppercase.index(letter)
    image = strip.crop((place * width, 0, (place + 1) * width, strip.height))
    return np.asarray(image.resize(LETTER, Image.Resampling.LANCZOS), np.float32) / 255


@cache
@shaped
def blank_sign(letters: int) -> Float[np.ndarray, "H W 3"]:
    """Draw a sign without its letters: (height, width, 3) float32, a board with a border of one pixel."""
    width, height = sign_extent(letters)
    sign = np.empty((height, width, 3), np.float32)
    sign[:] = BORDER
    sign[1:-1, 1:-1] = BOARD
    return sign


@shaped
def sign_sprite(word: str) -> Float[np.ndarray, "H W 4"]:
    """Draw a sign with its word: (height, width, 4) float32, opaque."""
    sign = blank_sign(len(word)).copy()
    width, height = LETTER
    for i, letter in enumerate(word):
        ink = letter_ink(letter)[..., None]
        place = sign[FRAME : FRAME + height, i * width : (i + 1) * width]
        place[:] = ink * np.array(INK, np.float32) + (1 - ink) * place
    return np.concatenate([sign, np.ones_like(sign[..., :1])], axis=-1)


@shaped
def sprite(item: Item, short: int) -> Float[np.ndarray, "H W 4"]:
    """Give an item as (height, width, 4) float32: colours times opacity, then opacity."""
    if isinstance(item, Sign):
        return sign_sprite(item.word)
    return thing_sprite(item.name, thing_side(item.size, short))


@cache
@shaped
def background(name: str, width: int, height: int) -> Int[np.ndarray, "H W 3"]:
    """Draw a background alone: (height, width, 3) uint8, the second colour from the horizon down."""
    above, below = BACKGROUNDS[name]
    image = np.empty((height, width, 3), np.uint8)
    line = horizon(height)
    image[:line], image[line:] = above, below
    return image


@shaped
def render(scene: Scene) -> Int[np.ndarray, "H W 3"]:
    """Draw a scene: (height, width, 3) uint8. Items never overlap."""
    image = np.empty((scene.height, scene.width, 3), np.uint8)
    _paint(scene, image)
    return image


@shaped
def render_batch(scenes: Sequence[Scene]) -> Int[np.ndarray, "N H W 3"]:
    """Draw many scenes of one width and height: (N, height, width, 3) uint8."""
    images = np.empty((len(scenes), scenes[0].height, scenes[0].width, 3), np.uint8)
    for scene, image in zip(scenes, images, strict=True):
        _paint(scene, image)
    return images


def _paint(scene: Scene, image: np.ndarray) -> None:
    image[:] = background(scene.background, scene.width, scene.height)
    for item, box in zip(scene.items, boxes(scene), strict=True):
        paint(image, item, box)


def paint(image: np.ndarray, item: Item, box: Box) -> None:
    """Draw an item over an image (height, width, 3) uint8, at its place."""
    left, top, width, height = box
    rgba, place = sprite(item, min(image.shape[:2])), image[top : top + height, left : left + width]
    place[:] = rgba[..., :3] + (1 - rgba[..., 3:]) * place + 0.5
