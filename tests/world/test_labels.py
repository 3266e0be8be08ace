"""Labels of image tokens: which share of each a thing or a letter covers, counted here pixel by pixel."""

import numpy as np
import pytest

from minflux.world import scenes
from minflux.world.labels import CLASSES, named_boxes, token_shares


@pytest.mark.parametrize("size", [(128, 128), (64, 160), (80, 112)])
@pytest.mark.parametrize("kind", scenes.KINDS)
def test_shares_are_those_of_the_pixels(size, kind):
    scene = scenes.sample(np.random.default_rng(4), *size, kind=kind)
    pixels = np.zeros((scene.height, scene.width, len(CLASSES)))
    for name, (left, top, width, height) in named_boxes(scene):
        pixels[top : top + height, left : left + width, CLASSES.index(name)] = 1
    rows, columns = scene.height // 16, scene.width // 16
    expected = pixels.reshape(rows, 16, columns, 16, -1).mean(axis=(1, 3)).reshape(rows * columns, -1)
    found = token_shares(scene)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)  # sums of halves to 256ths: rounding alone


def test_letters_are_named_one_by_one():
    scene = scenes.Scene("blue", (scenes.Sign("HI"),))
    (h, first), (i, second) = named_boxes(scene)
    assert (h, i) == ("H", "I")
    width, height = scenes.letter_extent(128)
    assert second == (first[0] + width, first[1], width, height)
