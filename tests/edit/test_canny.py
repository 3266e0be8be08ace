"""Canny's edges: OpenCV's algorithm, written once more pixel by pixel, and what a call makes of a photo."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from minflux.edit.canny import canny, edges
from minflux.errors import ArgumentError
from minflux.images import ImageFitted
from minflux.inference.load import load
from tests.commands.runner import assert_refused, pixels, run

RNG = np.random.default_rng(4)


def opencv(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """`cv2.Canny(pixels, low, high)` as its source has it: a pixel at a time, and a stack for the edges to follow."""
    height, width, channels = pixels.shape
    padded = np.pad(pixels.astype(int), ((1, 1), (1, 1), (0, 0)), mode="edge")
    dx, dy = np.zeros((height, width), int), np.zeros((height, width), int)
    size = np.zeros((height + 2, width + 2), int)
    for i in range(height):
        for j in range(width):
            best = -1
            for c in range(channels):
                a = padded[i : i + 3, j : j + 3, c]
                x = int(a[0, 2] + 2 * a[1, 2] + a[2, 2] - a[0, 0] - 2 * a[1, 0] - a[2, 0])
                y = int(a[2, 0] + 2 * a[2, 1] + a[2, 2] - a[0, 0] - 2 * a[0, 1] - a[0, 2])
                if abs(x) + abs(y) > best:
                    best, dx[i, j], dy[i, j] = abs(x) + abs(y), x, y
            size[i + 1, j + 1] = best
    state, stack = np.ones((height + 2, width + 2), int), []  # 0 may belong, 1 doesn't, 2 does
    for i in range(height):
        for j in range(width):
            m, x, y = size[i + 1, j + 1], dx[i, j], dy[i, j]
            if m <= np.floor(low):
                continue
            tan = round(0.4142135623730951 * 2**15)
            if abs(y) * 2**15 < abs(x) * tan:
                first, last, strict = (0, -1), (0, 1), False
            elif abs(y) * 2**15 > abs(x) * (tan + 2**16):
                first, last, strict = (-1, 0), (1, 0), False
            else:
                s = -1 if (x < 0) != (y < 0) else 1
                first, last, strict = (-1, -s), (1, s), True
            before, after = (size[i + 1 + a, j + 1 + b] for a, b in (first, last))
            if m > before and (m > after or (m == after and not strict)):
                state[i + 1, j + 1] = 0
                if m > np.floor(high):
                    state[i + 1, j + 1] = 2
                    stack.append((i + 1, j + 1))
    while stack:
        i, j = stack.pop()
        for a in (i - 1, i, i + 1):
            for b in (j - 1, j, j + 1):
                if state[a, b] == 0:
                    state[a, b] = 2
                    stack.append((a, b))
    return state[1:-1, 1:-1] == 2


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def scene() -> np.ndarray:
    """Discs and bars of random colours, blurred: edges in every direction, weak ones and strong ones."""
    rows, columns = np.mgrid[:48, :61]
    sheet = np.full((48, 61, 3), 90, np.uint8)
    for _ in range(9):
        y, x, r = RNG.integers(0, 61, 3)
        sheet[(rows - y) ** 2 + (columns - x) ** 2 < r * r / 3] = RNG.integers(0, 256, 3)
    return np.asarray(Image.fromarray(sheet).filter(ImageFilter.GaussianBlur(1.5)))


STEPS = np.repeat(np.array([[0, 0, 60, 60, 0, 255, 255, 0]], np.uint8), 5, axis=0)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("thresholds", [(50, 200), (0, 0), (100.9, 100.9), (20, 900), (2040, 2040)])
@pytest.mark.parametrize("make", [scene, lambda: noise(23, 31), lambda: noise(1, 7), lambda: STEPS], ids=range(4))
def test_the_edges_are_opencvs_to_the_pixel(make, thresholds):
    image = make()
    expected = opencv(image, *thresholds)
    np.testing.assert_array_equal(edges(image, *thresholds), expected, strict=True)


def test_weak_edges_are_followed_from_strong_ones_alone():
    far, near = edges(scene(), 20, 400), edges(scene(), 20, 20)
    assert 0 < far.sum() < near.sum()


def test_a_photo_becomes_white_on_black_of_its_size(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "photo.png")
    got = canny(tmp_path / "photo.png", 20, 100)
    assert (got.mode, got.size) == ("RGB", (61, 48))
    assert set(np.unique(got)) == {0, 255}


@pytest.mark.parametrize("thresholds", [(200, 50), (-1, 50), (0, 2041), (float("nan"), 1), ("1", 2), (1,), "12", 5])
def test_what_are_no_thresholds_is_refused(control_model, thresholds):
    with pytest.raises(ArgumentError, match=r"canny.*threshold"):
        load(control_model)("a cat", control=scene(), canny=thresholds)


def test_a_call_draws_along_the_edges_of_the_photo_as_the_model_sees_it(control_model):
    pipe, photo = load(control_model), Image.fromarray(noise(48, 80)).filter(ImageFilter.GaussianBlur(2))
    small = photo.resize((48, 32), Image.Resampling.LANCZOS, box=(4, 0, 76, 48))
    with pytest.warns(ImageFitted, match="scaled"):
        got = pipe("a cat", control=photo, canny=(40, 120), width=48, height=32, steps=2)
    expected = pipe("a cat", control=canny(small, 40, 120), steps=2)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected), strict=True)


def test_canny_goes_with_control(model):
    with pytest.raises(ArgumentError, match="canny goes with control"):
        load(model)("a cat", canny=(50, 200))
    with pytest.raises(ArgumentError, match="canny goes with control"):
        load(model)("a cat", image=scene(), canny=(50, 200))


def test_the_command_line_writes_the_edges_and_draws_the_same_again(control_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(noise(48, 80)).filter(ImageFilter.GaussianBlur(2))
    photo.save("photo.png")
    args = ("generate", "a cat", "--model", control_model, "--control", "photo.png", "--steps", 2)
    result = run(*args, "--canny", "40,120", "--control-out", "seen.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("seen.png"), np.asarray(canny(photo, 40, 120)), strict=True)
    result = run("generate", "--from", "minflux.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"), strict=True)
    assert run(*args[:4], "--control", "seen.png", "--steps", 2, "--out", "by-hand.png").exit_code == 0
    np.testing.assert_array_equal(pixels("by-hand.png"), pixels("minflux.png"), strict=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--canny", "50"), "--canny must be LOW,HIGH, like 50,200, got '50'"),
        (("--canny", "50,x"), "--canny must be LOW,HIGH"),
        (("--control-out", "minflux.png"), "--control-out must be another file"),
        (("--control-out", "photo.png"), "--control-out must be another file"),
        (("--control-out", "seen.jpg"), "--control-out must end in .png"),
    ],
)
def test_options_that_make_no_sense_are_refused(control_model, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene()).save("photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    given = ("generate", "a cat", "--model", control_model, "--control", "photo.png")
    assert_refused(run(*given, *args), words)
    assert (tmp_path / "photo.png").read_bytes() == before


def test_there_must_be_a_control_image_to_write(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run("generate", "a cat", "--model", model, "--control-out", "seen.png"), "goes with one --control")
