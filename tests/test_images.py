"""Images as people have them: every kind of file and array becomes upright RGB, or one clear error."""

import numpy as np
import pytest
from PIL import Image

from minflux import images
from minflux.errors import ArgumentError
from minflux.images import read_image, read_mask

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def seen(image, **how) -> np.ndarray:
    return np.asarray(read_image(image, **how))


def test_a_path_a_pil_image_and_an_array_are_one(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for image in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(RGB),
        RGB,
        RGB / 255,
        RGB * np.uint16(257),
    ):
        np.testing.assert_array_equal(seen(image), RGB, strict=True)


def test_exif_turns_an_image_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90° clockwise to be upright
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(seen(tmp_path / "a.png"), np.rot90(RGB, -1))


def test_transparency_lies_on_white_or_on_what_is_said():
    clear = np.dstack([RGB, np.zeros((6, 9), np.uint8)])
    assert (seen(clear) == 255).all()
    assert (seen(clear, background="black") == 0).all()
    half = seen(np.full((2, 2, 4), (0, 0, 0, 128), np.uint8))
    assert (half == 127).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", levels, Image.fromarray(levels.astype(np.int32))):
        np.testing.assert_array_equal(seen(image)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(seen(image), np.asarray(image.convert("RGB")), strict=True)


def test_a_palette_may_be_transparent(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(seen(tmp_path / "a.png")[0], [[255] * 3, [40, 50, 60]])


def test_too_many_pixels_are_refused_from_the_header(tmp_path, monkeypatch):
    Image.new("1", (2000, 1000)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 10**6)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were read"))
    with pytest.raises(ArgumentError, match=r"a\.png has 2000 × 1000 pixels, more than 1,000,000; shrink it"):
        read_image(tmp_path / "a.png")


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:4000])
    bad = {
        tmp_path / "none.png": r"image: .*none\.png can't be read as an image",
        tmp_path / "a.png": r"image: .*a\.png is no image that minflux reads",
        tmp_path / "b.png": r"image: .*b\.png can't be read as an image",
        7: "image must be a path, a PIL image or an array, got int",
    }
    for image, words in bad.items():
        with pytest.raises(ArgumentError, match=words):
            read_image(image)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2, 5), np.uint8), "image must be an array"),
        (np.zeros((0, 2), np.uint8), "image must be an array"),
        (np.zeros((2, 2), np.int64), "image must be an array"),
        (np.full((2, 2), 1.5), r"floats must lie in \[0, 1\]"),
        (np.full((2, 2), np.nan), r"floats must lie in \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_image(array, words):
    with pytest.raises(ArgumentError, match=words):
        read_image(array)


def test_masks_are_grey_and_not_transparent():
    mask = np.array([[True, False]])
    assert np.asarray(read_mask(mask)).tolist() == [[255, 0]]
    opaque = np.dstack([RGB, np.full((6, 9), 255, np.uint8)])
    assert read_mask(opaque).mode == "L"
    with pytest.raises(ArgumentError, match="mask: ndarray has transparent parts"):
        read_mask(np.zeros((2, 2, 4), np.uint8))
