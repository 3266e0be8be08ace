"""Training the flow in stages: what a step is drawn from, and that it is drawn again the same."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from minflux.backend import get_backend
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import tree_map
from minflux.inference.text import Tokenizer
from minflux.model.clip import CLIPConfig
from minflux.model.flux import FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import VAEConfig, encode
from minflux.train import encoded as encoding
from minflux.train.autoencoder import signed
from minflux.train.encoded import encode_all, scenes_of
from minflux.train.flow import configs_of, flow_loss
from minflux.train.recipe import Training, part, read_recipe, section, stages
from minflux.train.velocity import CLIP_TOKENS, LEAST, Data, Mixture, batch_size, counts_of, tokens_of
from minflux.world import scenes, tokenizers
from minflux.world.render import render_batch
from tests import tiny_model

MIXTURE = Mixture(sizes=((128, 128, 0.5), (64, 160, 0.25)), text=((32, 0.8), (96, 0.2)), hide_pooled=0.7)
HOW = Training(steps=1, batch=12, prompt_dropout=0.1, in_order=0.75)
COUNTS = {(128, 128): 6, (64, 160): 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_model.make(tmp_path_factory.mktemp("model"))
    tokenizers.train_tokenizers(folder / "world")
    return folder


@pytest.fixture(scope="module")
def vae(folder):
    return load_component(folder, "vae", get_backend("numpy"))


@pytest.fixture(scope="module")
def data(folder, vae):
    encoded = encode_all(vae, COUNTS, 5, folder / "latents", get_backend("numpy"))
    both = (Tokenizer.from_folder(folder / "world" / name) for name in ("tokenizer", "tokenizer_2"))
    return Data(HOW, MIXTURE, encoded, *both, shift=5.0)


# -- sizes and batches ---------------------------------------------------------------------------------------


def test_every_size_has_its_share():
    shares = MIXTURE.size_shares()
    assert len(shares) == 49
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[64, 160] == 0.25
    assert shares[160, 64] == pytest.approx(0.25 / 47)
    counts = counts_of(MIXTURE, 4700)
    assert (counts[128, 128], counts[160, 64]) == (2350, 25)
    assert min(counts_of(MIXTURE, 10).values()) == 1


def test_sizes_without_a_share_are_left_out():
    assert set(counts_of(Mixture(((128, 128, 1.0),), ((32, 1.0),), 0.0), 10)) == {(128, 128)}


@pytest.mark.parametrize(
    ("size", "text", "expected"), [((128, 128), 32, 48), ((64, 64), 32, 96), ((160, 160), 32, 34), ((128, 128), 512, 8)]
)
def test_a_step_has_about_as_many_tokens_at_every_size_and_length(size, text, expected):
    how = replace(HOW, batch=48)
    assert batch_size(how, size, text, 32) == expected
    assert abs(expected * (tokens_of(size) + text) / (48 * 96) - 1) < 0.05


def test_a_step_has_a_few_samples_at_least():
    assert batch_size(replace(HOW, batch=1), (160, 160), 512, 32) == LEAST


# -- what is encoded -----------------------------------------------------------------------------------------


def test_latents_are_those_of_the_scenes(data, vae):
    cfg, p = vae
    for size, found in data.encoded.items():
        assert found.scenes == scenes_of(size, 0, COUNTS[size], 5)
        assert all((scene.width, scene.height) == size and not scenes.is_held_out(scene) for scene in found.scenes)
        expected = encode(p, cfg, signed(render_batch(found.scenes)))
        assert found.latents.dtype == np.float16
        np.testing.assert_allclose(found.latents, expected, rtol=1e-3, atol=2e-3)


def test_scenes_are_encoded_once_for_an_autoencoder(data, vae, folder, monkeypatch):
    nx = get_backend("numpy")
    monkeypatch.setattr(encoding, "encode", None)
    again = encode_all(vae, COUNTS, 5, folder / "latents", nx)
    for size in COUNTS:
        np.testing.assert_array_equal(again[size].latents, data.encoded[size].latents, strict=True)
    other = vae[0], tree_map(lambda x: 1.1 * x, vae[1])
    with pytest.raises(TypeError):  # it would have to encode anew
        encode_all(other, COUNTS, 5, folder / "latents", nx)


def test_shards_are_joined(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD", 2)
    found = encode_all(vae, {(64, 64): 5}, 5, tmp_path, get_backend("numpy"))[64, 64]
    assert len(found.scenes) == len(found.latents) == 5
    assert len(list(tmp_path.iterdir())) == 3
    assert found.scenes[2:4] == scenes_of((64, 64), 1, 2, 5)


def test_a_stage_s_scenes_are_of_its_kinds():
    drawn = scenes_of((96, 64), 0, 300, 5, (("sign", 0.25), ("pair", 0.75)))
    signs = np.mean([isinstance(scene.items[0], scenes.Sign) for scene in drawn])
    assert {len(scene.items) for scene in drawn} == {1, 2}
    assert all((len(scene.items) == 1) == isinstance(scene.items[0], scenes.Sign) for scene in drawn)
    assert 0.15 < signs < 0.35


# -- a step's arrays -----------------------------------------------------------------------------------------


def test_a_batch_has_one_size_and_one_length(data):
    seen = Counter()
    for seed in range(60):
        x0, noise, t, clip_ids, t5_ids, pooled = data.batch(np.random.default_rng(seed))
        count, rows, columns, channels = x0.shape
        size, text = (8 * columns, 8 * rows), t5_ids.shape[1]
        assert count == batch_size(HOW, size, text, 32) == len(noise) == len(t) == len(clip_ids) == len(pooled)
        assert (channels, clip_ids.shape[1]) == (4, CLIP_TOKENS)
        assert all(x.dtype == np.float32 for x in (x0, noise, t, pooled))
        assert set(pooled) <= {0, 1}
        seen[size, text] += 1
        seen["pooled"] += pooled.mean() / 60
    assert set(seen) == {((128, 128), 32), ((128, 128), 96), ((64, 160), 32), ((64, 160), 96), "pooled"}
    assert 25 <= seen[(128, 128), 32] <= 45  # of 60, at 2/3 · 0.8
    assert 0.22 < seen["pooled"] < 0.38


def test_a_batch_depends_on_its_generator_alone(data):
    first, again = (data.batch(np.random.default_rng(7)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_some_prompts_are_empty(data):
    rng = np.random.default_rng(0)
    texts = [data.text(data.encoded[64, 160].scenes[0], rng) for _ in range(500)]
    assert 0.06 < texts.count("") / 500 < 0.14


# -- the pooled text -----------------------------------------------------------------------------------------


def test_hidden_pooled_text_changes_nothing(nx, folder, data):
    """With factors of 0, the loss is the same for any of CLIP's ids; with 1 it is the loss without factors."""
    configs = (FluxConfig(16, 16, 16, 24, 32, 4.0, 2, 1, 1, (4, 6, 6), guidance_embed=False), tiny_model.CLIP)
    configs = (*configs, replace(tiny_model.T5, vocab_size=data.t5.vocab_size))
    rng = np.random.default_rng(0)
    shapes = (flux_shapes(configs[0]), clip_shapes(configs[1]), t5_shapes(configs[2]))
    parts = (tree_map(nx.array, tiny_model.random_tree(s, rng)) for s in shapes)
    p = dict(zip(("transformer", "clip", "t5"), parts, strict=True))
    x0, noise, t, _, t5_ids, _ = (nx.array(x) for x in data.batch(rng))
    one, two = (nx.array(rng.integers(3, 50, (len(x0), 8)).astype(np.int32)) for _ in range(2))

    def loss(clip_ids, pooled):
        pooled = None if pooled is None else nx.array(np.full(len(x0), pooled, np.float32))
        return float(flow_loss(p, configs, x0, noise, t, clip_ids, t5_ids, pooled))

    assert loss(one, 0.0) == pytest.approx(loss(two, 0.0), rel=1e-6)
    assert loss(one, 1.0) == pytest.approx(loss(one, None), rel=1e-6)
    assert abs(loss(one, 1.0) - loss(two, 1.0)) > 1e-5


# -- the recipe ----------------------------------------------------------------------------------------------


def test_the_recipe_makes_models_that_fit_together(folder):
    settings = read_recipe("tiny")
    both = [Tokenizer.from_folder(folder / "world" / name) for name in ("tokenizer", "tokenizer_2")]
    flux_cfg, clip_cfg, t5_cfg = configs_of(settings, *both)
    vae_cfg = section(VAEConfig, part(settings, "vae.model"))
    mixtures = [section(Mixture, part(settings, f"flow.{name}.mixture")) for name in stages(settings, "flow")]
    assert isinstance(clip_cfg, CLIPConfig)
    assert isinstance(t5_cfg, T5Config)
    assert flux_cfg.in_channels == 4 * vae_cfg.z_channels
    assert flux_cfg.vec_in_dim == clip_cfg.hidden_size
    assert flux_cfg.context_in_dim == t5_cfg.d_model
    assert sum(flux_cfg.axes_dim) * flux_cfg.num_heads == flux_cfg.hidden_size
    assert clip_cfg.max_position_embeddings == both[0].max_length >= CLIP_TOKENS
    for mixture in mixtures:
        assert sum(mixture.size_shares().values()) == pytest.approx(1)
        assert sum(share for _, share in mixture.text) == pytest.approx(1)
        assert not mixture.kinds or sum(share for _, share in mixture.kinds) == pytest.approx(1)
    shapes = (flux_shapes(flux_cfg), vae_shapes(vae_cfg), clip_shapes(clip_cfg), t5_shapes(t5_cfg))
    weights = sum(math.prod(shape) for part in shapes for shape in part.values())
    assert 3 * 2 * weights < 80e6  # bytes in bfloat16, with two siblings
