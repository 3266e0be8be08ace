"""Distilling steps: pairs of noise and image, the line between them, and a transformer that lost its guidance input."""

from dataclasses import replace

import numpy as np
import pytest

from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.inference.text import Tokenizer
from minflux.model.flux import flux
from minflux.model.latents import image_ids, pack, text_ids
from minflux.train import reflow
from minflux.train.guidance import teacher_of
from minflux.train.recipe import Training
from minflux.train.reflow import Few, pair_all, pairs_batch, reflow_loss, without_guidance
from minflux.train.velocity import CLIP_TOKENS, Mixture
from minflux.world.tokenizers import train_tokenizers
from tests import tiny_model
from tests.train.test_guidance import arrays, on

COUNTS = {(64, 64): 5, (80, 64): 2}
HOW = Training(steps=1, batch=4, seed=3)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with an input for the guidance, and the tokenizers of the second world."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizers(folder)
    clip, t5 = (Tokenizer.from_folder(folder / name) for name in ("tokenizer", "tokenizer_2"))
    rng = np.random.default_rng(0)
    clip_cfg = replace(
        tiny_model.CLIP, vocab_size=clip.vocab_size, eos_token_id=clip.vocab_size - 1, max_position_embeddings=77
    )
    t5_cfg = replace(tiny_model.T5, vocab_size=t5.vocab_size)
    return replace(
        tiny_model.pipeline(guidance=True),
        clip=(clip_cfg, tiny_model.random_tree(clip_shapes(clip_cfg), rng)),
        t5=(t5_cfg, tiny_model.random_tree(t5_shapes(t5_cfg), rng)),
        clip_tokenizer=clip,
        t5_tokenizer=t5,
    )


def test_without_its_input_the_transformer_does_what_it_did_at_that_guidance(nx):
    pipe = tiny_model.pipeline(guidance=True)
    cfg, p = pipe.flux[0], on(nx, pipe.flux[1])
    rng = np.random.default_rng(0)
    x = nx.array(rng.standard_normal((2, 4, 6, 4)).astype(np.float32))
    txt = nx.array(rng.standard_normal((2, 5, cfg.context_in_dim)).astype(np.float32))
    y = nx.array(rng.standard_normal((2, cfg.vec_in_dim)).astype(np.float32))
    t, guidance = (nx.array(np.array(values, np.float32)) for values in ([0.3, 0.9], [2.5, 2.5]))
    given = pack(x), image_ids(x, 4, 6), txt, text_ids(txt), t, y
    expected = flux(p, cfg, *given, guidance)
    cfg, p = without_guidance(cfg, p, 2.5, nx)
    assert not cfg.guidance_embed
    assert "guidance_in" not in p
    np.testing.assert_allclose(np.asarray(flux(p, cfg, *given)), np.asarray(expected), rtol=2e-5, atol=2e-5)


def test_the_loss_is_the_distance_to_the_straight_line(nx):
    pipe = tiny_model.pipeline()
    parts = {name: (cfg, on(nx, p)) for name, (cfg, p) in (("flux", pipe.flux), ("clip", pipe.clip), ("t5", pipe.t5))}
    taught = teacher_of(replace(pipe, **parts))
    x0, noise, t, clip_ids, t5_ids, _, _ = arrays(nx)
    at = t[:, None, None, None]
    v = taught.velocity((1 - at) * x0 + at * noise, t, *taught.text(clip_ids, t5_ids))
    expected = np.mean((np.asarray(v) - np.asarray(pack(noise - x0))) ** 2)
    found = reflow_loss(taught.p["transformer"], taught.configs[0], taught, x0, noise, t, clip_ids, t5_ids)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_a_pair_is_noise_and_what_the_teacher_makes_of_it(base, tmp_path, monkeypatch):
    monkeypatch.setattr(reflow, "SHARD", 3)
    pairs = pair_all(base, COUNTS, HOW, tmp_path)
    assert {size: len(p.prompts) for size, p in pairs.items()} == COUNTS
    assert len(list(tmp_path.iterdir())) == 3
    found = pairs[64, 64]
    *_, last = base.sample(base.encode(found.prompts[4:]), start=found.noise[4:])
    np.testing.assert_allclose(found.latents[4:], last.x, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(reflow, "sampled", None)
    again = pair_all(base, COUNTS, HOW, tmp_path)
    for size in COUNTS:
        np.testing.assert_array_equal(again[size].noise, pairs[size].noise, strict=True)
        np.testing.assert_array_equal(again[size].latents, pairs[size].latents, strict=True)


def test_a_batch_keeps_pairs_together(base, tmp_path):
    pairs = pair_all(base, COUNTS, HOW, tmp_path)
    mixture = Mixture(((64, 64, 0.5), (80, 64, 0.5)), ((32, 0.5), (40, 0.5)), 0.0)
    batch = pairs_batch(pairs, base, HOW, mixture, Few())
    for seed in range(6):
        x0, noise, t, clip_ids, t5_ids = batch(np.random.default_rng(seed))
        size = 8 * x0.shape[2], 8 * x0.shape[1]
        assert len(x0) == len(noise) == len(t) == len(clip_ids) == len(t5_ids)
        assert clip_ids.shape[1] == CLIP_TOKENS
        assert t5_ids.shape[1] in (32, 40)
        for latents, start, ids in zip(x0, noise, t5_ids, strict=True):
            (i,) = [i for i, other in enumerate(pairs[size].noise) if (other == start).all()]
            np.testing.assert_array_equal(latents, pairs[size].latents[i])
            np.testing.assert_array_equal(ids, base.t5_tokenizer(pairs[size].prompts[i : i + 1], len(ids))[0])


def test_half_of_the_times_are_those_of_few_steps():
    t = Few((1, 2, 4)).times(np.random.default_rng(0), 4000)
    assert t.dtype == np.float32
    assert 0 < t.min() <= t.max() <= 1
    visited = np.isin(t, [1, 0.5, 0.75, 0.25])
    assert 0.46 < visited.mean() < 0.54
    assert 0.39 < (t[visited] == 1).mean() < 0.47  # 3 of 7
