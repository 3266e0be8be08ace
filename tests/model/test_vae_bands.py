"""Decoding in bands: the picture that `vae.decode` gives, without a seam, in less memory."""

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minflux import zoo
from minflux.backend import get_backend, serving
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import tree_map
from minflux.model import vae
from minflux.model import vae_bands as bands
from minflux.model.vae_bands import decode_any, decode_in_bands
from minflux.world.render import render_batch
from minflux.world.scenes import PLAIN, sample
from tests import tiny_model
from tests.compare import relative_error
from tests.shipped import needs_weights
from tests.strategies import batches, vae_configs

NX = get_backend("numpy")
SAME = 1e-5  # measured: at most 2e-6


def random_latents(cfg, *shape):
    return np.random.default_rng(1).standard_normal((*shape, cfg.z_channels)).astype(np.float32)


def random_decoder(cfg):
    shapes = {name: shape for name, shape in vae_shapes(cfg).items() if name.startswith(("decoder", "post_quant"))}
    return tiny_model.random_tree(shapes, np.random.default_rng(0))


# -- the same picture ----------------------------------------------------------------------------------------


@given(vae_configs(), batches, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_bands_give_the_picture_that_decode_gives(trial, cfg, batch, height, width, rows):
    p = _on(trial, random_decoder(cfg))
    latents = trial.array(trial.randn(batch, height, width, cfg.z_channels))
    expected = trial.tensor(vae.decode(p, cfg, latents))
    trial.check(decode_in_bands(p, cfg, latents, rows), expected, SAME)


def _on(trial, node):
    """A tree of NumPy arrays on the trial's backend, in its dtype."""
    if isinstance(node, dict):
        return {key: _on(trial, value) for key, value in node.items()}
    if isinstance(node, list):
        return [_on(trial, value) for value in node]
    return trial.nx.array(node).astype(getattr(trial.nx.xp, trial.dtype))


@given(vae_configs(), st.integers(1, 9), st.integers(1, 9))
def test_a_single_band_is_decode_to_the_bit(cfg, height, width):
    p, latents = random_decoder(cfg), random_latents(cfg, 2, height, width)
    with serving("numpy-readable"):  # whose norm is computed as the bands' is
        np.testing.assert_array_equal(decode_in_bands(p, cfg, latents, height), vae.decode(p, cfg, latents))


@needs_weights
@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (2, 6)], ids=["tall", "wide"])
def test_no_seam_in_a_real_picture(nx, rows, columns):
    """Half of it is empty, half full: statistics taken for each band would shift its colours by dozens of levels."""
    cfg, p = load_component(zoo.FOLDER / "tiny", "vae", nx)
    latents = vae.encode(p, cfg, nx.array(composed(rows, columns)))
    expected = nx.to_numpy(vae.decode(p, cfg, latents))
    difference = np.abs(nx.to_numpy(decode_in_bands(p, cfg, latents, 3)) - expected)
    levels = 127.5 * difference.max(axis=(0, 2, 3))  # of 255, the worst in each row of pixels
    at_edges = np.arange(len(levels)) % (3 * cfg.downscale) % (3 * cfg.downscale - 1) == 0
    assert levels.max() < 0.01
    assert levels[at_edges].mean() < 2 * levels[~at_edges].mean()


def composed(rows, columns):
    """A picture of many scenes, (1, 64 rows, 64 columns, 3) in [-1, 1]; the upper half is flat."""
    rng = np.random.default_rng(0)
    scenes = render_batch([sample(rng, 64, 64) for _ in range(rows * columns)])
    picture = scenes.reshape(rows, columns, 64, 64, 3).transpose(0, 2, 1, 3, 4).reshape(64 * rows, 64 * columns, 3)
    picture[: 32 * rows] = PLAIN["blue"]
    return (picture[None] / 127.5 - 1).astype(np.float32)


# -- when --------------------------------------------------------------------------------------------------


def test_up_to_its_size_a_picture_is_decoded_in_one_piece(monkeypatch):
    cfg = tiny_model.VAE
    p, latents = random_decoder(cfg), random_latents(cfg, 1, 6, 5)
    monkeypatch.setattr(bands, "WHOLE", 6 * 5 * cfg.downscale**2)
    monkeypatch.setattr(bands, "decode_in_bands", None)
    np.testing.assert_array_equal(decode_any(p, cfg, latents), vae.decode(p, cfg, latents))
    with pytest.raises(TypeError):
        decode_any(p, cfg, random_latents(cfg, 1, 6, 6))


def test_a_picture_does_not_depend_on_its_batch(monkeypatch):
    monkeypatch.setattr(bands, "WHOLE", 0)
    monkeypatch.setattr(bands, "BAND", 2048)
    cfg = tiny_model.VAE
    p, latents = random_decoder(cfg), random_latents(cfg, 3, 7, 9)
    pictures = decode_any(p, cfg, latents)
    assert relative_error(pictures, vae.decode(p, cfg, latents)) < SAME
    np.testing.assert_array_equal(pictures[1:2], decode_any(p, cfg, latents[1:2]))


def test_the_pipeline_decodes_large_pictures_in_bands(monkeypatch):
    pipe = tiny_model.pipeline()
    latents = random_latents(tiny_model.VAE, 2, 8, 10)
    expected = pipe.decode(latents).astype(int)
    monkeypatch.setattr(bands, "WHOLE", 0)
    monkeypatch.setattr(bands, "BAND", 1024)
    assert np.abs(pipe.decode(latents) - expected).max() <= 1  # of 255: a number may be rounded the other way


# -- memory ------------------------------------------------------------------------------------------------


# the share of the memory that was measured, and a little: where ops work in chunks, less is temporary to begin with
@pytest.mark.parametrize(
    ("backend", "share"), [("numpy-readable", 0.5), ("numpy", 0.6), ("mlx-fused", 0.5), ("mlx", 0.9)]
)
def test_bands_take_less_memory(backend, share):
    """With FLUX.1's levels, an eighth as wide."""
    if backend.startswith("mlx"):
        pytest.importorskip("mlx.core")
    cfg = replace(vae.FLUX_VAE, ch=16, norm_groups=16)
    with serving(backend) as nx:
        p, latents = tree_map(nx.array, random_decoder(cfg)), nx.array(random_latents(cfg, 1, 48, 16))
        nx.eval(p, latents)
        whole = peak(nx, lambda: vae.decode(p, cfg, latents))
        assert peak(nx, lambda: decode_in_bands(p, cfg, latents, 3)) < share * whole


def peak(nx, work) -> int:
    """The most bytes that arrays took at once, beyond those that were there before."""
    gc.collect()
    return (peak_of_mlx if nx.name == "mlx" else peak_of_numpy)(nx, work)


def peak_of_numpy(nx, work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peak_of_mlx(nx, work) -> int:
    nx.xp.clear_cache()
    before = nx.xp.get_active_memory()
    nx.xp.reset_peak_memory()
    nx.eval(work())
    return nx.xp.get_peak_memory() - before
