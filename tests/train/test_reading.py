"""T5 learns to read captions: what it is shown, what it is asked, and that the flow begins with it."""

import numpy as np
import pytest
from click.testing import CliRunner

from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import leaves, tree_map
from minflux.commands import main as cli
from minflux.errors import CheckpointError
from minflux.inference.text import Tokenizer
from minflux.model.t5 import T5Config, t5_encoder
from minflux.train import checkpoint
from minflux.train.init_weights import init_weights
from minflux.train.reading import LENGTH, Captions, reading_loss, reading_shapes, train_reading
from minflux.train.recipe import Training, read_recipe
from minflux.train.run import first_weights
from minflux.world.scenes import DEFAULT_SIDE, GRID
from minflux.world.tokenizers import train_tokenizers
from tests.train.test_run import RECIPE, patched  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    train_tokenizers(folder)
    return folder


@pytest.fixture(scope="module")
def captions(model):
    return Captions(Training(steps=1, batch=6, in_order=0.75), Tokenizer.from_folder(model / "tokenizer_2"))


def test_a_batch_is_captions_and_what_their_words_stand_for(captions):
    ids, shown, named = captions.batch(np.random.default_rng(3))
    assert ids.shape == named.shape == (6, LENGTH)
    assert shown.shape == (6, (DEFAULT_SIDE // GRID) ** 2)
    for image, text in zip(shown, named, strict=True):
        assert set(image) == set(text) | {0}
    again = captions.batch(np.random.default_rng(3))
    assert all((one == two).all() for one, two in zip((ids, shown, named), again, strict=True))


def test_the_loss_is_the_distance_from_the_middle_of_what_is_named(nx, captions):
    """By loops over every token that names something."""
    cfg = T5Config(captions.t5.vocab_size, 24, 8, 32, 1, 2)
    p = tree_map(nx.array, init_weights(reading_shapes(cfg), seed=0))
    ids, shown, named = captions.batch(np.random.default_rng(3))
    txt = nx.to_numpy(nx.layer_norm(t5_encoder(p["t5"], cfg, nx.array(ids))))
    where = txt @ nx.to_numpy(p["places"]["weight"]).T + nx.to_numpy(p["places"]["bias"])
    side, errors = DEFAULT_SIDE // GRID, []
    for b, t in np.argwhere(named):
        rows, columns = np.nonzero(shown[b].reshape(side, side) == named[b, t])
        middle = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / side
        errors.append(((where[b, t] - middle) ** 2).sum())
    found = float(reading_loss(p, cfg, *(nx.array(x) for x in (ids, shown, named))))
    assert found == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_stopped_reading_ends_as_one_that_never_stopped(patched, model, tmp_path):  # noqa: F811
    recipe, t5 = read_recipe(RECIPE), Tokenizer.from_folder(model / "tokenizer_2")
    recipe["text"]["optimizer"]["decay"] = 0.0  # so that a shorter run is the beginning of a longer one
    steps = recipe["text"]["training"]["steps"]
    train_reading(recipe, tmp_path / "whole", t5, patched)
    recipe["text"]["training"]["steps"] = steps // 2
    train_reading(recipe, tmp_path / "parts", t5, patched)
    recipe["text"]["training"]["steps"] = steps
    train_reading(recipe, tmp_path / "parts", t5, patched)
    one, two = ((tmp_path / name / checkpoint.NAME).read_bytes() for name in ("whole", "parts"))
    assert one == two


def test_the_flow_begins_with_what_has_learned_to_read(patched, tmp_path):  # noqa: F811
    given = ["train", "text", "--recipe", str(RECIPE), "--folder", str(tmp_path)]
    result = CliRunner().invoke(cli.main, given)
    assert result.exit_code == 0, result.output
    state, step = checkpoint.load(tmp_path / "text", patched)
    begun = first_weights(read_recipe(RECIPE), tmp_path, None, patched)
    assert (step, begun.keys()) == (4, {"t5"})
    averaged, written = state["ema"]["t5"], load_component(tmp_path / "model", "text_encoder_2", patched)[1]
    for of in (begun["t5"], written):
        for name, x in leaves(of):
            np.testing.assert_array_equal(np.array(x), np.array(dict(leaves(averaged))[name]), err_msg=name)
    assert first_weights(read_recipe(RECIPE), tmp_path / "elsewhere", None, patched) == {}


def test_a_flow_waits_for_all_of_the_reading(patched, model, tmp_path):  # noqa: F811
    recipe = read_recipe(RECIPE)
    train_reading(recipe, tmp_path / "text", Tokenizer.from_folder(model / "tokenizer_2"), patched)
    recipe["text"]["training"]["steps"] = 9
    with pytest.raises(CheckpointError, match="4 of 9 steps are done; run `minflux train text` to its end"):
        first_weights(recipe, tmp_path, None, patched)
