"""A step as Jupyter shows it."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from minflux.sampling.display import colours, main_directions
from minflux.sampling.solvers import Step

RNG = np.random.default_rng(0)


def test_the_main_directions_are_those_in_which_latents_vary():
    latents = np.zeros((8, 8, 5))
    latents[..., 3] = 10 * RNG.standard_normal((8, 8))
    latents[..., 1] = -2 * RNG.standard_normal((8, 8)) + 7
    directions = main_directions(latents)
    np.testing.assert_allclose(directions[0], latents.mean(axis=(0, 1)))
    np.testing.assert_allclose(np.abs(directions[1:]).round(1), [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0] * 5], atol=0.2)


@pytest.mark.parametrize("channels", [1, 2, 16])
def test_latents_have_colours(channels):
    latents = RNG.standard_normal((4, 6, channels)).astype(np.float32)
    found = colours(latents, main_directions(latents))
    assert (found.dtype, found.shape) == (np.uint8, (4, 6, 3))


def test_a_step_shows_two_small_pictures(nx):
    x, denoised = nx.array(RNG.standard_normal((2, 1, 4, 6, 16)).astype(np.float32))
    shown = Step(2, 0.75, x, denoised)._repr_html_()
    assert "step 3: x, now at t = 0.75" in shown
    for data in re.findall(r"base64,([^\"]+)", shown):
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (6, 4)
    assert len(shown) < 2500


def test_what_is_no_latents_is_not_shown():
    assert Step(0, 0.5, np.zeros(3), np.zeros(3))._repr_html_() is None
