"""The demonstration of training: what is drawn is found, and nothing else is taken for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minflux.train.captioned import read_folder
from minflux.world.scenes import PLAIN
from tools.new_emoji import FIVE, NAME, Wish, draw, explained, is_right, sprite, unseen

IMAGES = Path(__file__).parents[2] / "examples" / NAME


def test_what_is_drawn_is_right_and_what_is_elsewhere_is_not():
    for wish in (*FIVE, *unseen()[::4]):
        pixels = np.asarray(draw(wish))
        assert is_right(wish, pixels)
        share, _ = explained(pixels, wish.background)
        assert share > 0.95
    right_of = Wish("gray", "right of", "owl")
    assert not is_right(replace(right_of, relation="left of"), np.asarray(draw(right_of)))


@pytest.mark.parametrize("name", ["bee", "fish", "sunflower", "star", "fox", "pumpkin"])
def test_other_things_are_not_taken_for_it(name):
    image = Image.new("RGBA", (128, 128), PLAIN["white"])
    image.alpha_composite(sprite(name), (32, 32))
    assert not is_right(Wish("white"), np.asarray(image.convert("RGB")))


def test_what_is_measured_was_not_trained_on():
    prompts = [wish.prompt for wish in unseen()]
    assert len(set(prompts)) == len(prompts) == 24
    assert not set(prompts) & {wish.prompt for wish in FIVE}


def test_the_five_images_are_those_that_the_tool_draws():
    images = read_folder(IMAGES)
    assert [image.caption for image in images] == [wish.prompt for wish in FIVE]
    for image, wish in zip(images, FIVE, strict=True):
        with Image.open(image.path) as committed:
            apart = np.asarray(committed, np.int16) - np.asarray(draw(wish), np.int16)
        assert np.abs(apart).max() <= 2  # another Pillow may round otherwise
