"""Training the second world's autoencoder: what it is shown, and that stages follow each other."""

import tomllib

import numpy as np
import pytest

from minflux.backend import get_backend
from minflux.checkpoints.read import load_component
from minflux.errors import ArgumentError
from minflux.images import to_uint8
from minflux.model.vae import VAEConfig, encode
from minflux.train import autoencoder, checkpoint, loop
from minflux.train.autoencoder import crops, draw_size, reconstruct, train_autoencoder, whole_images
from minflux.train.recipe import part, read_recipe, section, stages
from minflux.world import scenes
from minflux.world.render import render_batch
from tests import tiny_model

SMALL = """
[vae]
seed = 1
[vae.model]
ch = 4
ch_mult = [1, 1, 2, 2]
num_res_blocks = 1
z_channels = 4
norm_groups = 2
scale_factor = 1.0
shift_factor = 0.0
[vae.first.training]
steps = 4
batch = 2
crop = 16
checkpoint_every = 2
sample_every = 3
[vae.first.optimizer]
lr = 1e-3
muon = 0.9
warmup = 2
[vae.second.training]
steps = 3
batch = 1
adversarial = 0.5
checkpoint_every = 2
[vae.second.optimizer]
lr = 1e-3
warmup = 2
"""


@pytest.fixture
def mlx(monkeypatch):
    """MLX as it trains, but that nothing is compiled, and latents are not measured."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    monkeypatch.setattr(type(nx), "compile", lambda self, function: function)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(autoencoder, "normalised", lambda cfg, p, nx: cfg)
    monkeypatch.setattr(autoencoder, "draw_size", lambda rng, least=0: (64, 64))
    return nx


def test_sizes_are_the_default_half_of_the_time_and_any_others():
    rng = np.random.default_rng(0)
    sizes = [draw_size(rng) for _ in range(3000)]
    assert abs(np.mean([size == (128, 128) for size in sizes]) - 0.5 - 0.5 / 49) < 0.03
    assert set(sizes) == {(width, height) for width in scenes.SIDES for height in scenes.SIDES}


def test_crops_show_items():
    """Squares out of larger images, of which hardly any is background alone."""
    images = crops(np.random.default_rng(0), 60, 32)
    assert images.shape == (60, 32, 32, 3)
    assert images.dtype == np.uint8
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in images]
    assert np.mean(np.array(colours) > 2) > 0.95


def test_large_crops_are_out_of_images_that_are_as_large():
    rng = np.random.default_rng(0)
    assert {min(draw_size(rng, 96)) for _ in range(300)} == {96, 112, 128, 144, 160}
    assert crops(rng, 8, 144).shape == (8, 144, 144, 3)


def test_whole_images_have_one_size():
    images = whole_images(np.random.default_rng(3), 5)
    assert images.shape[0] == 5
    assert set(images.shape[1:3]) <= set(scenes.SIDES)


def test_stages_are_in_the_recipes_order():
    assert stages(tomllib.loads(SMALL), "vae") == ["first", "second"]
    assert stages(read_recipe("tiny"), "vae") == ["crops", "wider", "sharp"]


def test_a_stage_starts_from_the_one_before(mlx, tmp_path):
    settings = tomllib.loads(SMALL)
    settings["vae"]["second"]["training"]["steps"] = 0
    _, weights = train_autoencoder(settings, tmp_path, mlx)
    first = checkpoint.load(tmp_path / "first", mlx)[0]["ema"]
    for level in ("encoder", "decoder"):
        np.testing.assert_array_equal(
            np.array(weights[level]["conv_in"]["weight"]), np.array(first[level]["conv_in"]["weight"])
        )


def test_a_stopped_run_ends_as_one_that_never_stopped(mlx, tmp_path):
    """Stopped in its first stage; the second follows when it goes on."""
    settings = tomllib.loads(SMALL)

    def stop(cfg, p, stage, step):
        raise KeyboardInterrupt(stage)

    train_autoencoder(settings, tmp_path / "whole", mlx)
    with pytest.raises(KeyboardInterrupt, match="first"):
        train_autoencoder(settings, tmp_path / "stopped", mlx, stop)
    assert not (tmp_path / "stopped" / "second").exists()
    train_autoencoder(settings, tmp_path / "stopped", mlx)
    for stage in ("first", "second"):
        one, two = ((tmp_path / name / stage / checkpoint.NAME).read_bytes() for name in ("whole", "stopped"))
        assert one == two


def test_latents_are_brought_to_mean_0_and_deviation_1(tmp_path):
    nx = get_backend("numpy")
    cfg, p = load_component(tiny_model.make(tmp_path), "vae", nx)
    cfg = autoencoder.normalised(cfg, p, nx, count=16)
    rng = np.random.default_rng(0)
    latents = encode(p, cfg, autoencoder.signed(render_batch([scenes.sample(rng) for _ in range(16)])))
    assert latents.mean() == pytest.approx(0, abs=1e-5)
    assert latents.std() == pytest.approx(1, rel=1e-5)


def test_reconstruction_is_uint8_of_any_size(tmp_path):
    nx = get_backend("numpy")
    cfg, p = load_component(tiny_model.make(tmp_path), "vae", nx)
    images = render_batch([scenes.sample(np.random.default_rng(0), 80, 64)])
    got = reconstruct(cfg, p, nx, images)
    assert got.shape == images.shape
    assert got.dtype == np.uint8


def test_signed_images_come_back():
    images = render_batch([scenes.sample(np.random.default_rng(1))])
    np.testing.assert_array_equal(to_uint8(autoencoder.signed(images)), images)


def test_the_recipe_is_of_an_f8_autoencoder_with_16_channels():
    cfg = section(VAEConfig, part(read_recipe("tiny"), "vae.model"))
    assert (cfg.downscale, cfg.z_channels) == (8, 16)


def test_a_recipe_without_a_part_is_refused(mlx, tmp_path):
    settings = tomllib.loads(SMALL)
    del settings["vae"]["second"]["optimizer"]
    with pytest.raises(ArgumentError, match=r"no section \[vae.second.optimizer\]"):
        train_autoencoder(settings, tmp_path, mlx)
