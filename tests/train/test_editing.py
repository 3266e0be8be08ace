"""Siblings that edit: what they are shown, their loss on both backends, and the commands that make them."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import minflux
from minflux.commands import main as cli
from minflux.edit.beside import mask_channels
from minflux.edit.kontext import Reference
from minflux.images import to_uint8
from minflux.model.latents import pack
from minflux.train import checkpoint
from minflux.train.editing import (
    KINDS,
    REFERENCE,
    editing_batch,
    editing_loss,
    encode_all,
    train_editing,
    velocity_seeing,
    widened,
)
from minflux.train.flow import flow_loss
from minflux.train.guidance import teacher_of
from minflux.train.recipe import Training, read_recipe
from minflux.train.siblings import shown_to
from minflux.train.velocity import Mixture
from minflux.train.workers import ALONE
from tests.train.test_run import RECIPE, folder, patched  # noqa: F401  (fixtures)

SIZES = {(64, 64): 3, (80, 64): 2}
HOW, MIXTURE = Training(1, 4, scenes=5), Mixture(((64, 64, 0.6), (80, 64, 0.4)), ((256, 1.0),), 0.5)


@pytest.fixture(params=["numpy", "mlx"])
def base(request, model):
    if request.param == "mlx":
        pytest.importorskip("mlx.core")
    return minflux.load(model, request.param, memory="resident")


# -- examples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_examples_are_of_their_size_and_the_same_for_the_same_seed(name):
    one, two = (KINDS[name].example(np.random.default_rng(3), (80, 64)) for _ in range(2))
    assert one.image.shape == one.seen.shape == (64, 80, 3)
    assert one.image.dtype == one.seen.dtype == np.float32
    assert one.prompt == two.prompt
    np.testing.assert_array_equal(one.seen, two.seen)
    assert (one.mask is not None) == (name == "fill")


def test_fill_sees_all_but_the_mask():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(30):
        example = KINDS["fill"].example(rng, (128, 128))
        assert (example.seen[example.mask] == 0).all()
        np.testing.assert_array_equal(example.seen[~example.mask], example.image[~example.mask])
        shares.append(example.mask.mean())
    assert 0 < min(shares) < max(shares) <= 1


# -- the batch and the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [("kontext", 4), ("fill", 4 + 64), ("canny", 4)])
def test_a_batch_has_what_is_seen(base, tmp_path, name, channels):
    data = encode_all(base, name, SIZES, 5, tmp_path, ALONE)
    x0, noise, t, _, t5_ids, pooled, seen = editing_batch(data, base, HOW, MIXTURE, 3.0)(np.random.default_rng(0))
    assert x0.shape == noise.shape
    assert seen.shape == (*x0.shape[:3], channels)
    assert len(t) == len(t5_ids) == len(pooled) == len(x0)
    if name == "fill":
        first = [mask_channels(mask, base.downscale)[0] for mask in data[x0.shape[2] * 8, x0.shape[1] * 8].masks]
        assert any((seen[0, ..., 4:] == mask).all() for mask in first)


def test_examples_are_read_back(base, tmp_path, monkeypatch):
    first = encode_all(base, "kontext", SIZES, 5, tmp_path, ALONE)
    monkeypatch.setattr("minflux.train.editing.encode", None)
    again = encode_all(base, "kontext", SIZES, 5, tmp_path, ALONE)
    for size in SIZES:
        np.testing.assert_array_equal(again[size].seen, first[size].seen)


def test_new_columns_change_nothing_at_first(base):
    """With a wider first matrix the model's velocity is what it was, whatever stands beside the latents."""
    nx, parts = base.nx, teacher_of(base)
    cfg, p = widened(*base.flux, 4, nx)
    assert cfg.in_channels == base.flux[0].in_channels + 16
    *batch, seen = batch_of(base, np.random.default_rng(1))
    wide = editing_loss({**parts.p, "transformer": p}, (cfg, *parts.configs[1:]), False, *batch, seen)
    plain = flow_loss(parts.p, parts.configs, *batch)
    assert float(wide) == pytest.approx(float(plain), rel=1e-5)


def batch_of(base, rng):
    x0, noise, seen = (base.nx.array(rng.standard_normal((2, 4, 6, 4)).astype(np.float32)) for _ in range(3))
    t = base.nx.array(np.array([0.3, 0.8], np.float32))
    ids = [base.nx.array(tokens(["a cat", ""], 12)) for tokens in (base.clip_tokenizer, base.t5_tokenizer)]
    return x0, noise, t, *ids, base.nx.array(np.array([1.0, 0.0], np.float32)), seen


def test_a_reference_is_seen_as_the_pipeline_shows_it(base):
    """One step from noise goes by the velocity that is trained."""
    nx = base.nx
    _, noise, *_, seen = batch_of(base, np.random.default_rng(2))
    noise, seen = noise[:1], seen[:1]
    text = replace(base.encode(["a cat"]), references=(Reference(seen, REFERENCE),))
    *_, last = base.sample(text, start=noise, steps=1, guidance=1.0)
    one = nx.array(np.ones(1, np.float32))
    found = velocity_seeing(base.flux[1], base.flux[0], noise, one, text.txt, text.y, seen)
    expected = nx.to_numpy(pack(noise - last.x))
    np.testing.assert_allclose(nx.to_numpy(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    blind = velocity_seeing(base.flux[1], base.flux[0], noise, one, text.txt, text.y, 0 * seen)
    assert np.abs(nx.to_numpy(found - blind)).max() > 1e-4


# -- the commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_command_makes_a_sibling_that_edits(folder, name):  # noqa: F811
    given = ["train", "editing", name, "--recipe", str(RECIPE), "--folder", str(folder)]
    result = CliRunner().invoke(cli.main, given)
    assert result.exit_code == 0, result.output
    assert (folder / f"{name}-training" / "step-2.png").exists()
    pipe = minflux.load(folder / name, "numpy")
    assert pipe.takes == {"kontext": "", "fill": "mask", "canny": "control"}[name]
    assert pipe.trained.references == (name == "kontext")
    example = KINDS[name].example(np.random.default_rng(0), (80, 64))
    image = pipe(example.prompt, seed=1, **shown_to(name, example))
    assert image.size == (80, 64)
    if name == "fill":
        np.testing.assert_array_equal(np.asarray(image)[~example.mask], to_uint8(example.image)[~example.mask])


def test_a_stopped_training_ends_as_one_that_never_stopped(patched, folder, tmp_path):  # noqa: F811
    settings, base = read_recipe(RECIPE), minflux.load(folder / "model", "mlx", memory="resident")
    settings["kontext"]["training"] |= {"sample_every": 1}

    def stop(*_):
        raise KeyboardInterrupt

    train_editing(settings, "kontext", tmp_path / "whole", base)
    with pytest.raises(KeyboardInterrupt):
        train_editing(settings, "kontext", tmp_path / "stopped", base, stop)
    train_editing(settings, "kontext", tmp_path / "stopped", base)
    first, second = ((tmp_path / name / checkpoint.NAME).read_bytes() for name in ("whole", "stopped"))
    assert first == second
