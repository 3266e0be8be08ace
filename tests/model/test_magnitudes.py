"""Numbers as large as real checkpoints make them, in float16 and bfloat16: nothing overflows, nothing is lost.

float16 ends at 65504, and bfloat16 keeps eight bits: whatever squares, sums or masks must do so in float32.
"""

import numpy as np
import pytest

from minflux.checkpoints.folder import save_component
from minflux.checkpoints.read import load_component
from minflux.model import clip
from minflux.model.vae import decode
from tests import tiny_model
from tests.checkpoints.test_components import SMALL_CONFIGS

EPS = {"float16": 2**-10, "bfloat16": 2**-7}  # one rounding of the input's dtype is half of it
LARGE = 60_000.0  # its square is no float16


@pytest.fixture(params=EPS)
def dtype(request, nx):
    if not hasattr(nx.xp, request.param):
        pytest.skip("NumPy has no bfloat16")
    return request.param


def given(nx, dtype, x):
    """An array of this dtype, and the very numbers in it as float64."""
    ours = nx.array(np.asarray(x, np.float32)).astype(getattr(nx.xp, dtype))
    return ours, as_float64(nx, ours)


def as_float64(nx, x):
    return nx.to_numpy(nx.as_float32(x)).astype(np.float64)


def close(nx, dtype, got, expected):
    """Within two roundings of the dtype, beside numbers that the largest makes small."""
    assert str(got.dtype).endswith(dtype)
    np.testing.assert_allclose(
        as_float64(nx, got), expected, rtol=EPS[dtype], atol=EPS[dtype] * abs(expected).max() / 8
    )


def test_rms_norm_of_numbers_whose_squares_overflow(nx, dtype):
    x, exact = given(nx, dtype, np.random.default_rng(0).uniform(-LARGE, LARGE, (3, 64)))
    ones, _ = given(nx, dtype, np.ones(64))
    close(nx, dtype, nx.rms_norm(x, ones), exact / np.sqrt((exact**2).mean(-1, keepdims=True)))


def test_layer_norm_of_numbers_whose_squares_overflow(nx, dtype):
    x, exact = given(nx, dtype, np.random.default_rng(0).uniform(-LARGE, LARGE, (3, 64)))
    close(nx, dtype, nx.layer_norm(x), (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True))


def test_group_norm_of_numbers_whose_squares_and_sums_overflow(nx, dtype):
    x, exact = given(nx, dtype, LARGE - np.random.default_rng(0).uniform(0, 2 * LARGE, (1, 16, 16, 4)))
    ones, zeros = (given(nx, dtype, np.full(4, n))[0] for n in (1, 0))
    grouped = exact.reshape(1, 256, 2, 2)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    expected = (centred / grouped.std((1, 3), keepdims=True)).reshape(exact.shape)
    close(nx, dtype, nx.group_norm(x, 2, ones, zeros), expected)


def test_softmax_of_logits_as_large_as_the_dtype_holds(nx, dtype):
    x, exact = given(nx, dtype, [[LARGE, LARGE, -LARGE], [-LARGE, -LARGE, -LARGE], [0, 1, -30000]])
    weights = np.exp(exact - exact.max(-1, keepdims=True))
    close(nx, dtype, nx.softmax(x), weights / weights.sum(-1, keepdims=True))


def test_softmax_over_as_many_keys_as_an_image_has(nx, dtype):
    """4608 equal logits: their sum is taken in float32, for bfloat16 counts no further than 256."""
    got = nx.softmax(given(nx, dtype, np.zeros((1, 4608)))[0])
    close(nx, dtype, got, np.full((1, 4608), 1 / 4608))


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_clip_s_mask_hides_later_tokens_whatever_the_logits(nx, dtype, spread):
    """At a spread of 30 logits of 64 channels reach thousands; the mask is far below them, and has no infinity."""
    rng = np.random.default_rng(0)
    q, k, v = (given(nx, dtype, rng.normal(0, s, (1, 2, 9, 64)))[0] for s in (spread, spread, 1))
    mask = clip.causal_mask(q, 9)
    assert str(mask.dtype).endswith(dtype)
    assert np.isfinite(as_float64(nx, mask)).all()
    got = as_float64(nx, nx.attention(q, k, v, bias=mask))
    for length in (1, 4):
        alone = nx.attention(*(x[:, :, :length] for x in (q, k, v)), bias=clip.causal_mask(q, length))
        np.testing.assert_allclose(got[:, :, :length], as_float64(nx, alone), rtol=EPS[dtype], atol=EPS[dtype])


def test_a_vae_whose_activations_are_no_float16_decodes_in_float32(nx, tmp_path):
    """FLUX.1's settings say `force_upcast`: loaded in float16, its VAE is held in float32, as by diffusers."""
    cfg = SMALL_CONFIGS["vae"]
    weights = tiny_model.random_tree(tiny_model.vae_shapes(cfg), np.random.default_rng(0))
    conv = weights["decoder"]["conv_in"]
    conv["weight"] = conv["weight"] * 1e6
    save_component(tmp_path, "vae", cfg, weights)
    latents = np.random.default_rng(1).standard_normal((1, 4, 4, cfg.z_channels)).astype(np.float32)
    (config, p), (_, p32) = (load_component(tmp_path, "vae", nx, dtype) for dtype in ("float16", "float32"))
    got, expected = (as_float64(nx, decode(tree, config, nx.array(latents))) for tree in (p, p32))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, expected)
