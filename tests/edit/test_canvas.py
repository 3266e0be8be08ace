"""Which part of an image a model sees, and that pasting leaves the rest as it was."""

import numpy as np
import pytest
from PIL import Image

from minflux.edit.canvas import box_around, centred_box, grow, open_canvas
from minflux.errors import ArgumentError
from minflux.images import ImageFitted

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (64, 96, 3), np.uint8)
USUAL = {"wanted": (None, None), "usual": (96, 64), "unit": 16}


def spot(size=(96, 64), box=(70, 10, 80, 20)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def test_an_image_that_fits_is_seen_as_it_is_and_nothing_is_said():
    canvas = open_canvas(PIXELS, **USUAL)
    np.testing.assert_array_equal(canvas.pixels(), PIXELS, strict=True)
    assert (canvas.size, canvas.box) == ((96, 64), (0, 0, 96, 64))


@pytest.mark.parametrize(
    ("wanted", "size", "words"),
    [
        ((64, 64), (64, 64), r"edges are cut off, 64 × 64 of 96 × 64 pixels are left$"),
        ((48, 32), (48, 32), r"^image: it is scaled from 96 × 64 to 48 × 32 pixels$"),
        ((32, 32), (32, 32), r"edges are cut off.*scaled from 64 × 64 to 32 × 32"),
    ],
)
def test_what_is_cut_and_scaled_is_said(wanted, size, words):
    with pytest.warns(ImageFitted, match=words):
        canvas = open_canvas(PIXELS, **USUAL | {"wanted": wanted})
    assert canvas.pixels().shape == (*size[::-1], 3)


def test_a_large_image_is_shrunk_to_the_models_own_size():
    with pytest.warns(ImageFitted, match="scaled"):
        canvas = open_canvas(np.zeros((200, 300, 3), np.uint8), wanted=(None, None), usual=(64, 64), unit=16)
    assert canvas.size == (64, 48)


@pytest.mark.parametrize("crop", [None, 0, 7])
def test_outside_the_mask_the_result_is_the_original_to_the_bit(crop):
    canvas = open_canvas(PIXELS, spot(), **USUAL, crop=crop)
    result = np.asarray(canvas.finish(np.full((64, 96, 3), 200, np.uint8)))
    inside = np.asarray(spot()) > 0
    np.testing.assert_array_equal(result[~inside], PIXELS[~inside])
    assert (result[inside] == 200).all()


def test_surroundings_that_the_image_is_too_small_for_are_stretched_and_that_is_said():
    with pytest.warns(ImageFitted, match=r"^image: 96 × 64 pixels are stretched to 64 × 16; give another width$"):
        open_canvas(PIXELS, spot(box=(5, 5, 90, 60)), **USUAL | {"wanted": (64, 16)}, crop=5)


def test_growing_keeps_the_image_and_masks_what_is_new():
    grown, mask = grow(PIXELS, left=3, top=5, right=7, bottom=11)
    assert grown.size == mask.size == (96 + 3 + 7, 64 + 5 + 11)
    np.testing.assert_array_equal(np.asarray(grown)[5:69, 3:99], PIXELS)
    new = np.asarray(mask) == 255
    assert not new[5:69, 3:99].any()
    assert new.sum() == new.size - 96 * 64
    assert (np.asarray(grown)[0, 0] == PIXELS[0, 0]).all()


@pytest.mark.parametrize("margin", [-1, 1.5])
def test_margins_that_growing_refuses(margin):
    with pytest.raises(ArgumentError, match="right must be a whole number of pixels of at least 0"):
        grow(PIXELS, right=margin)


def test_a_crop_shows_the_mask_larger():
    whole, near = (open_canvas(PIXELS, spot(), **USUAL, crop=crop) for crop in (None, 4))
    assert near.mask_pixels().mean() > 4 * whole.mask_pixels().mean()
    assert near.size == whole.size


def test_a_blurred_mask_blends():
    canvas = open_canvas(PIXELS, spot(), **USUAL, blur=2)
    result = np.asarray(canvas.finish(np.full((64, 96, 3), 255, np.uint8))).astype(int)
    far = np.asarray(canvas.mask) == 0
    np.testing.assert_array_equal(result[far], PIXELS[far])
    assert 0 < np.asarray(canvas.mask)[15, 70] < 255


def test_boxes_stay_inside_the_image_and_hold_the_mask():
    for _ in range(200):
        width, height = RNG.integers(20, 120, 2)
        left, top = RNG.integers(0, width - 8), RNG.integers(0, height - 8)
        mask = spot((width, height), (left, top, left + 8, top + 8))
        box = box_around(mask, int(RNG.integers(0, 30)), tuple(RNG.choice([16, 32, 64, 128], 2)))
        assert box[0] >= 0 <= box[1]
        assert box[2] <= width
        assert box[3] <= height
        assert box[0] <= left < left + 8 <= box[2]
        assert box[1] <= top < top + 8 <= box[3]
        middle = centred_box((width, height), (64, 48))
        assert middle[0] >= 0 <= middle[1]
        assert middle[2] <= width
        assert middle[3] <= height


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"mask": spot((8, 8), (0, 0, 4, 4))}, "mask must have the image's 96 × 64 pixels, got 8 × 8"),
        (
            {"mask": spot(), "blur": -1},
            "mask_blur must be a number of pixels from 0 to the image's longer side, got -1",
        ),
        ({"mask": spot(), "blur": "much"}, "mask_blur must be a number of pixels from 0"),
        ({"mask": spot(), "blur": float("nan")}, "mask_blur must be a number of pixels from 0"),
        ({"mask": spot(), "crop": 1.5}, "mask_crop must be a whole number of pixels of at least 0, got 1.5"),
        ({"mask": Image.new("L", (96, 64)), "crop": 3}, "mask: nothing of it is white"),
        ({"blur": 3}, "mask_blur and mask_crop go with a mask"),
    ],
)
def test_what_a_canvas_refuses(how, words):
    with pytest.raises(ArgumentError, match=words):
        open_canvas(PIXELS, **USUAL, **how)
