"""FLUX.1's side of the pipeline: its size, its images and latents."""

import numpy as np
import pytest
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from minflux.checkpoints.tree import leaves
from minflux.inference.load import load
from minflux.inference.memory import MODES
from minflux.model.attention import attention_weights
from tests import compare, tiny_model


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """Smooth patches of colour, 48 wide and 32 high."""
    coarse = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((48, 32), Image.Resampling.BICUBIC)


def test_an_image_s_latents_are_diffusers(nx, model, image):
    vae = AutoencoderKL.from_pretrained(model / "vae")
    mean = vae.encode(VaeImageProcessor().preprocess(image)).latent_dist.mode()
    expected = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    got = load(model, nx).encode_image(image)
    compare.assert_close(nx, got, expected.permute(0, 2, 3, 1), compare.MODEL)


def test_several_images_at_once(nx, model, image):
    pipe, pixels = load(model, nx), np.asarray(image)
    both = nx.to_numpy(pipe.encode_image(np.stack([pixels, 255 - pixels])))
    one, other = (nx.to_numpy(pipe.encode_image(single)) for single in (image, 255 - pixels))
    assert compare.relative_error(both, np.concatenate([one, other])) <= 1e-5


@pytest.mark.weights
def test_the_shipped_vae_gives_an_image_back():
    """Its own training scenes come back within a few levels of 255."""
    pipe = load("tiny", "numpy")
    image = pipe("a cat left of an apple on a blue background", seed=7)
    again = pipe.decode(pipe.encode_image(image))[0]
    assert np.abs(again.astype(int) - np.asarray(image)).mean() < 4


@pytest.mark.parametrize("mode", MODES)
def test_repr_is_one_line_in_every_mode(model, mode):
    pipe = load(model, "numpy", memory=mode)
    numbers = sum(a.size for _, p in map(networks(tiny_model.pipeline()), range(4)) for _, a in leaves(p))
    assert pipe.count_numbers() == numbers
    assert repr(pipe) == f'Pipeline("{model}", {numbers / 1e6:.1f}M numbers, numpy)'


def networks(pipe):
    return (pipe.flux, pipe.vae, pipe.clip, pipe.t5).__getitem__


# -- on_block ------------------------------------------------------------------------------------------------


def test_on_block_sees_every_block_of_every_step(nx, model):
    pipe, heard = load(model, nx), []
    cfg = pipe.flux[0]
    image = pipe("a cat", steps=2, on_block=lambda name, seen: heard.append((name, seen)))
    blocks = [f"double_blocks.{i}" for i in range(cfg.depth)] + [
        f"single_blocks.{i}" for i in range(cfg.depth_single_blocks)
    ]
    assert [name for name, _ in heard] == 2 * blocks
    for _, seen in heard:
        assert seen["img"].shape == (2, 16, cfg.hidden_size)  # the prompt, then the negative prompt
        assert seen["txt"].shape == (2, 24, cfg.hidden_size)
        heads = (2, cfg.num_heads, 24 + 16, cfg.hidden_size // cfg.num_heads)
        assert [seen[name].shape for name in "qkv"] == 3 * [heads]
    assert image == pipe("a cat", steps=2)  # who listens changes nothing


def test_attention_weights_of_what_on_block_sees(nx, model):
    pipe, heard = load(model, nx), {}
    pipe("a cat", steps=1, guidance=1.0, on_block=heard.__setitem__)
    weights = nx.to_numpy(attention_weights(heard["double_blocks.0"]["q"], heard["double_blocks.0"]["k"]))
    assert weights.shape == (1, 2, 40, 40)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
