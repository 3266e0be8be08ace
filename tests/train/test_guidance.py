"""Distilling guidance: what the student is to predict, what it begins as, and the sibling that comes out."""

from dataclasses import replace

import numpy as np
import pytest

from minflux.backend import get_backend
from minflux.checkpoints.tree import flatten, tree_map
from minflux.inference.text import Tokenizer
from minflux.sampling.guidance import guided
from minflux.train.encoded import encode_all
from minflux.train.guidance import LAST, Range, Teacher, guidance_batch, guidance_loss, student_of, teacher_of
from minflux.train.recipe import Training
from minflux.train.velocity import CLIP_TOKENS, Data, Mixture
from minflux.world.tokenizers import train_tokenizers
from tests import tiny_model

SIZE = (4, 6)  # of latents


def teacher(nx) -> Teacher:
    pipe = tiny_model.pipeline()
    parts = {name: (cfg, on(nx, p)) for name, (cfg, p) in (("flux", pipe.flux), ("clip", pipe.clip), ("t5", pipe.t5))}
    return teacher_of(replace(pipe, **parts))


def on(nx, p):
    return tree_map(lambda x: nx.array(np.asarray(x)), p)


def arrays(nx, count: int = 3) -> list:
    """Latents, noise, times, ids of prompts and of empty prompts."""
    rng = np.random.default_rng(1)
    x0, noise = (rng.standard_normal((count, *SIZE, 4)).astype(np.float32) for _ in range(2))
    t = rng.random(count).astype(np.float32)
    ids = [rng.integers(3, 50, (count, length)).astype(np.int32) for length in (7, 9, 7, 9)]
    return [nx.array(x) for x in (x0, noise, t, *ids)]


def test_the_student_begins_as_its_teacher(nx):
    taught = teacher(nx)
    cfg, p = student_of(taught.configs[0], taught.p["transformer"], nx, seed=0)
    assert cfg == replace(taught.configs[0], guidance_embed=True)
    assert not np.asarray(flatten(p)[LAST]).any()
    assert np.asarray(flatten(p)["guidance_in.in_layer.weight"]).std() > 0
    ones = nx.array(np.ones(3, np.float32))
    assert float(guidance_loss(p, cfg, taught, *arrays(nx), ones)) < 1e-10


def test_the_loss_is_the_distance_to_the_guided_velocity(nx):
    """For a student that ignores its guidance: mean ‖(1 - s) (c - u)‖², with c and u computed one at a time."""
    taught = teacher(nx)
    cfg, p = student_of(taught.configs[0], taught.p["transformer"], nx, seed=0)
    x0, noise, t, *ids = arrays(nx)
    scale = np.array([1.0, 2.5, 4.0], np.float32)
    at = t[:, None, None, None]
    x_t = (1 - at) * x0 + at * noise
    c, u = (np.asarray(taught.velocity(x_t, t, *taught.text(*ids[i : i + 2]))) for i in (0, 2))
    expected = np.mean(((1 - scale[:, None, None]) * (c - u)) ** 2)
    found = float(guidance_loss(p, cfg, taught, x0, noise, t, *ids, nx.array(scale)))
    assert found == pytest.approx(float(expected), rel=1e-4)
    assert found > 1e-3


def test_each_sample_is_guided_by_its_own_scale(nx):
    v = np.random.default_rng(2).standard_normal((4, 3, 5)).astype(np.float32)
    scale = np.array([1.5, 3.0], np.float32)
    found = guided(nx.array(v), nx.array(scale)[:, None, None])
    for i in range(2):
        alone = guided(nx.array(v[[i, i + 2]]), float(scale[i]))
        np.testing.assert_allclose(np.asarray(found)[i], np.asarray(alone)[0], rtol=1e-6, atol=1e-6)


def test_a_batch_has_empty_prompts_of_the_same_lengths(tmp_path):
    pipe = tiny_model.pipeline()
    train_tokenizers(tmp_path)
    both = (Tokenizer.from_folder(tmp_path / name) for name in ("tokenizer", "tokenizer_2"))
    encoded = encode_all(pipe.vae, {(64, 64): 4}, 0, tmp_path / "latents", get_backend("numpy"))
    data = Data(Training(1, 4), Mixture(((64, 64, 1.0),), ((32, 1.0),), 0.0), encoded, *both, shift=3.0)
    x0, _, _, clip_ids, t5_ids, no_clip, no_t5, scale = guidance_batch(data, Range(2, 3))(np.random.default_rng(0))
    assert clip_ids.shape == no_clip.shape == (len(x0), CLIP_TOKENS)
    assert t5_ids.shape == no_t5.shape == (len(x0), 32)
    assert (no_t5 == no_t5[0]).all()
    assert not (t5_ids == no_t5).all()
    assert scale.dtype == np.float32
    assert 2 <= scale.min() < scale.max() <= 3


def test_a_compiled_step_of_a_student_beside_the_teacher_it_was_made_of():
    """MLX refuses an array that is an argument and closed over as well: the student's weights are copies."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    taught = teacher(nx)
    cfg, p = student_of(taught.configs[0], taught.p["transformer"], nx, 0)
    loss = nx.compile(lambda p, *batch: guidance_loss(p, cfg, taught, *batch))
    assert float(loss(p, *arrays(nx), nx.array(np.ones(3, np.float32)))) > 0
