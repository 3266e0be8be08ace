"""Checks of arguments: what is right comes back in one type, what is wrong is named in one line."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from minflux.errors import ArgumentError
from minflux.inference.arguments import (
    check_fits,
    check_guidance,
    check_image,
    check_prompts,
    check_side,
    check_solver,
    check_steps,
    check_strength,
    check_timesteps,
    is_finite,
    is_integer,
)
from minflux.sampling.guidance import Guidance
from minflux.sampling.solvers import SOLVERS


def test_integers():
    assert all(map(is_integer, (0, -3, 10**400, np.int8(3), np.uint64(2**63))))
    assert not any(map(is_integer, (1.0, True, np.True_, "3", None, np.float32(1))))


def test_finite_numbers():
    assert all(map(is_finite, (0, -3.5, np.float16(2), np.int32(3), Fraction(1, 3))))
    assert not any(map(is_finite, (float("nan"), float("inf"), True, "3", None, 1j, 10**400)))


@pytest.mark.parametrize(
    ("built_in", "guidance", "true_cfg_scale", "expected"),
    [
        (True, None, None, Guidance(3.5, 1.0)),
        (True, 2, None, Guidance(2.0, 1.0)),
        (True, 0, None, Guidance(0.0, 1.0)),
        (True, None, 4, Guidance(3.5, 4.0)),
        (True, 2, 0, Guidance(2.0, 1.0)),
        (False, None, None, Guidance(None, 3.5)),
        (False, 2, None, Guidance(None, 2.0)),
        (False, None, 2, Guidance(None, 2.0)),
        (False, 0, None, Guidance(None, 1.0)),
        (False, None, 0, Guidance(None, 1.0)),
        (False, 0.5, None, Guidance(None, 0.5)),
    ],
)
def test_what_guidance_means(built_in, guidance, true_cfg_scale, expected):
    got = check_guidance(guidance, true_cfg_scale, 3.5, built_in)
    assert got == expected
    assert got.needs_negative == (expected.scale != 1)


def test_a_default_guidance_of_0_is_none():
    assert check_guidance(None, None, 0.0, built_in=False) == Guidance(None, 1.0)


@pytest.mark.parametrize("name", ["guidance", "true_cfg_scale"])
def test_a_strength_names_itself(name):
    with pytest.raises(ArgumentError, match=f"^{name} must be a number of at least 0, got -1"):
        check_strength(name, -1)


@pytest.mark.parametrize("bad", ["Euler", "", None, 0, ("euler",)])
def test_a_solver_that_is_not_there(bad):
    with pytest.raises(ArgumentError, match=r"solver must be one of 'euler', 'heun', 'midpoint', 'dpm\+\+', got"):
        check_solver(bad)
    assert [check_solver(name) for name in SOLVERS] == list(SOLVERS)


@pytest.mark.parametrize(
    "bad", [[], [1], [1, 1], [0.5, 0.7], [1.1, 0], [0.5, -0.1], [[1, 0]], 1, [1, float("nan")], "a"]
)
def test_timesteps_that_do_not_fall(bad):
    with pytest.raises(ArgumentError, match=r"^timesteps must be"):
        check_timesteps(bad)
    np.testing.assert_array_equal(check_timesteps([1, 0.5, 0]), np.array([1, 0.5, 0], np.float32), strict=True)


@pytest.mark.parametrize(("side", "nearest"), [(70, 64), (1, 16), (-5, 16), (840.0, 832), (72, 64), (65529, 65536)])
def test_the_nearest_side_is_named(side, nearest):
    with pytest.raises(
        ArgumentError, match=f"width must be a multiple of 16 pixels, got {side}; the nearest is {nearest}"
    ):
        check_side("width", side)


@pytest.mark.parametrize("side", [65552, 10**9, 10**30, 10**5000], ids=["4097 tokens", "9", "30", "5000"])
def test_a_side_that_no_memory_holds(side):
    with pytest.raises(ArgumentError, match="width must be at most 65536 pixels, got "):
        check_side("width", side)


def test_images_come_in_several_forms():
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
    for image in (pixels, pixels[None], Image.fromarray(pixels)):
        np.testing.assert_array_equal(check_image(image), pixels[None], strict=True)
    grey = check_image(Image.fromarray(pixels[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(pixels[None, ..., :1], 3, axis=3), strict=True)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((16, 16, 3)), "image must be a PIL image or uint8"),
        (np.zeros((16, 16, 4), np.uint8), "image must be a PIL image or uint8"),
        (np.zeros((16, 16), np.uint8), "image must be a PIL image or uint8"),
        ("cat.png", "image must be a PIL image or uint8"),
        (np.zeros((24, 16, 3), np.uint8), "image height must be a multiple of 16 pixels, got 24"),
        (Image.new("RGB", (20, 16)), "image width must be a multiple of 16 pixels, got 20; the nearest is 16"),
        (Image.new("RGBA", (16, 16)), "image has transparent parts"),
    ],
)
def test_what_is_no_image(bad, words):
    with pytest.raises(ArgumentError, match=words):
        check_image(bad)


def test_more_than_a_call_can_be_asked_for():
    with pytest.raises(ArgumentError, match="steps must be at most 1000, got 1001"):
        check_steps(1001)
    with pytest.raises(ArgumentError, match="prompt must be at most 10000 strings, got 10001"):
        check_prompts(["a cat"] * 10_001)
    with pytest.raises(ArgumentError, match=r"one image: needs about 2\.0 kB of memory, and 1\.0 kB are free"):
        check_fits("one image", 2000, free=1000)
    check_fits("one image", 1000, free=1000)


class Hostile:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize("value", [Hostile(), "\x1b[2J", "x" * 10_000, [10**30], np.zeros((3, 3))])
def test_a_value_of_any_kind_is_told_in_one_short_line(value):
    with pytest.raises(ArgumentError) as caught:
        check_steps(value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
