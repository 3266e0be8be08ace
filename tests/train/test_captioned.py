"""One's own images: every kind that people have, captions in two forms, and one line for what can't be used."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from minflux.errors import ArgumentError
from minflux.train.captioned import LONGEST, read_folder, read_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def put(folder, name: str, caption: str | None = "a cat", image: Image.Image | None = None, **how) -> None:
    """Write an image, and its caption beside it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(PIXELS) if image is None else image).save(path, **how)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def put_list(folder, *lines: object) -> None:
    """Write a metadata.jsonl."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(texts))


def seen(folder) -> list[tuple]:
    return [(str(one.path.relative_to(folder)), one.caption, one.size) for one in read_folder(folder)]


# -- both forms ----------------------------------------------------------------------------------------------


def test_captions_beside_the_images(tmp_path):
    put(tmp_path, "b.PNG", "a  cat\non a mat\n")
    put(tmp_path, "a/c.jpg", "\ufeffa dog")
    put(tmp_path, ".hidden.png", None)
    (tmp_path / "notes.md").write_text("no image")
    assert seen(tmp_path) == [("a/c.jpg", "a dog", (40, 24)), ("b.PNG", "a cat on a mat", (40, 24))]


def test_captions_in_a_list(tmp_path):
    put(tmp_path, "b.png", "not this")
    put(tmp_path, "sub/a.webp", None)
    put_list(
        tmp_path, {"file_name": "b.png", "text": " a cat "}, "", {"file_name": "sub/a.webp", "text": "a dog", "x": 1}
    )
    assert seen(tmp_path) == [("b.png", "a cat", (40, 24)), ("sub/a.webp", "a dog", (40, 24))]


def test_images_that_a_list_lacks_are_named(tmp_path):
    put(tmp_path, "b.png")
    put(tmp_path, "forgotten.png")
    put_list(tmp_path, {"file_name": "b.png", "text": "a cat"})
    with pytest.warns(UserWarning, match=r"metadata\.jsonl: 1 images are not in it and left out: forgotten\.png"):
        assert len(read_folder(tmp_path)) == 1


# -- what can't be used --------------------------------------------------------------------------------------


def refused(folder) -> str:
    with pytest.raises(ArgumentError) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_there_or_empty(tmp_path):
    assert "expected a folder of images, found none" in refused(tmp_path / "none")
    assert "holds no image (.png, .jpg" in refused(tmp_path)
    put_list(tmp_path)
    assert "holds no image" in refused(tmp_path)


def test_images_without_captions_are_all_named(tmp_path):
    put(tmp_path, "a.png", None)
    put(tmp_path, "b.png", "  \n")
    put(tmp_path, "c.png")
    words = refused(tmp_path)
    assert words.startswith("2 of 3 images can't be used: ")
    assert "a.png: expected its caption in a.txt (No such file or directory)" in words
    assert "b.png: its caption is empty; write what the image shows" in words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfea", "expected text in UTF-8"),
        (b"a" * (LONGEST + 1), f"expected a caption of at most {LONGEST} bytes"),
    ],
)
def test_a_caption_that_is_none(tmp_path, content, words):
    put(tmp_path, "a.png", None)
    (tmp_path / "a.txt").write_bytes(content)
    assert words in refused(tmp_path)


@pytest.mark.filterwarnings("ignore:.*are not in it and left out")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object"),
        ({"file_name": "b.png"}, 'line 2: expected "file_name" and "text", two strings'),
        ({"file_name": "b.png", "text": 3}, 'line 2: expected "file_name" and "text", two strings'),
        ({"file_name": "../b.png", "text": "a cat"}, "line 2: expected a file below this folder, found '../b.png'"),
        ({"file_name": "/etc/b.png", "text": "a cat"}, "line 2: expected a file below this folder"),
        ({"file_name": "b\x00.png", "text": "a cat"}, "line 2: expected a file below this folder"),
        ({"file_name": "a.png", "text": "again"}, "line 2: a.png has a caption already"),
        ({"file_name": "none.png", "text": "a cat"}, "none.png: can't be read as an image"),
        ({"file_name": "a.txt", "text": "a cat"}, "a.txt: can't be read as an image"),
        ({"file_name": "b.png", "text": " "}, "b.png: its caption is empty"),
    ],
)
def test_a_line_that_can_not_be_used(tmp_path, line, words):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png", None)
    put_list(tmp_path, {"file_name": "a.png", "text": "a cat"}, line)
    assert words in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_image(tmp_path, content):
    put(tmp_path, "a.png")
    (tmp_path / "a.png").write_bytes(content)
    assert "1 of 1 images can't be used" in refused(tmp_path)
    assert "a.png: can't be read as an image" in refused(tmp_path)


def test_half_an_image_is_named_when_its_pixels_are_read(tmp_path):
    put(tmp_path, "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArgumentError, match=r"a\.png: can't be read as an image"):
        read_pixels(read_folder(tmp_path)[0].path, (32, 32))


def test_an_image_may_be_too_small_or_too_large(tmp_path):
    put(tmp_path, "small.png", image=Image.new("RGB", (15, 64)))
    assert "small.png: expected at least 16 pixels a side, found 15x64" in refused(tmp_path)
    shutil.rmtree(tmp_path)
    put(tmp_path, "large.png", image=Image.new("1", (10_000, 9_000)))
    assert "large.png: can't be read as an image (Image size (90000000 pixels) exceeds limit" in refused(tmp_path)


# -- pixels --------------------------------------------------------------------------------------------------


def read(folder, image: Image.Image, name: str = "a.png", **how) -> np.ndarray:
    put(folder, name, image=image, **how)
    (one,) = read_folder(folder)
    return read_pixels(one.path, one.size)


def test_pixels_are_those_of_the_file(tmp_path):
    pixels = read(tmp_path, Image.fromarray(PIXELS))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, PIXELS)


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pixels = read(tmp_path, Image.fromarray(PIXELS), exif=exif)
    np.testing.assert_array_equal(pixels, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_lie_on_white(tmp_path, mode):
    alpha = Image.fromarray(np.where(np.arange(40) < 20, 0, 255).astype(np.uint8)[None].repeat(24, 0))
    image = Image.new("RGBA", (40, 24), (0, 0, 0, 255))
    image.putalpha(alpha)
    pixels = read(tmp_path, image.convert(mode))
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, 20:] == 0).all()


def test_sixteen_bits_become_eight(tmp_path):
    grey = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 68
    pixels = read(tmp_path, Image.fromarray(grey))
    np.testing.assert_array_equal(pixels, np.broadcast_to((grey // 257)[..., None], (24, 40, 3)))


def test_floats_are_no_levels(tmp_path):
    with pytest.raises(ArgumentError, match=r"a\.tif: its numbers are no levels of 8 or 16 bits"):
        read(tmp_path, Image.fromarray(np.ones((24, 40), np.float32)), name="a.tif")


@pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("1", "a.png"), ("CMYK", "a.jpg"), ("P", "a.gif")])
def test_other_kinds_become_rgb(tmp_path, mode, name):
    pixels = read(tmp_path, Image.new("RGB", (40, 24), "white").convert(mode), name=name)
    assert pixels.shape == (24, 40, 3)
    assert (pixels >= 254).all()


def test_an_image_is_cut_around_its_middle(tmp_path):
    bars = np.zeros((32, 96, 3), np.uint8)
    bars[:, 32:64] = 200
    put(tmp_path, "a.png", image=Image.fromarray(bars))
    assert (read_pixels(tmp_path / "a.png", (32, 32)) == 200).all()
    assert read_pixels(tmp_path / "a.png", (48, 16)).shape == (16, 48, 3)
