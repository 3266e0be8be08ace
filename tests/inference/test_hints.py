"""Hints: what a model wasn't trained for is told in one line, and nothing else is."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest

from minflux.errors import CheckpointError
from minflux.inference.hints import (
    FLUX1_TRAINED,
    Hint,
    Trained,
    hint_at_guidance,
    hint_at_size,
    hint_at_text_length,
    hint_at_words,
    parse_trained,
    trained_content,
)
from minflux.inference.load import load, read_trained, save_model
from minflux.model.flux import DEV, SCHNELL
from minflux.sampling.guidance import Guidance
from minflux.train.recipe import read_recipe
from minflux.train.trained import trained_on
from minflux.world.tokenizers import training_captions
from minflux.zoo import FOLDER
from tests.commands.runner import run
from tests.tiny_model import pipeline

SMALL = Trained(words=("a", "cat", "sign", "says"), spelled=4, sizes=((64, 64), (64, 32)), text_lengths=(20,))


def hints(function, *args) -> list[str]:
    with warnings.catch_warnings(record=True, category=Hint) as caught:
        warnings.simplefilter("always")
        function(*args)
    return [str(warning.message) for warning in caught]


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("A cat, a CAT.", []),
        ("", []),
        ("a dog and a dog", ["dog", "and"]),
        ("a sign says ZOO", []),
        ('a sign says "zoo"', []),
        ("a sign says PARIS", ["PARIS"]),
        ('a sign says "two of"', ["two of"]),
        ("a sign says 'señor'", ["señor"]),
        ("ein Kätzchen, 猫", ["ein", "Kätzchen", "猫"]),
    ],
)
def test_words_that_were_not_trained_on_are_listed_once(prompt, unknown):
    assert SMALL.unknown_words(prompt) == unknown


def test_a_model_without_words_knows_all():
    assert Trained(spelled=3).unknown_words('a unicorn says "ABRACADABRA"') == []


def test_many_words_are_cut_short():
    (line,) = hints(hint_at_words, SMALL, ["one two three", "four five six a cat"])
    assert line.startswith("prompt: the model was not trained on 'one', 'two', 'three', 'four', 'five', …; ")
    assert line.endswith("`minflux vocabulary` lists the 4 words that it knows")


# -- sizes and lengths ---------------------------------------------------------------------------------------


def test_sizes_of_a_small_model():
    assert hints(hint_at_size, SMALL, 64, 32) == []
    assert hints(hint_at_size, SMALL, 32, 64) == [
        "size 32x64: the model was trained on 64x32 or 64x64; the image may be wrong"
    ]
    many = Trained(sizes=tuple((side, 64) for side in range(16, 160, 16)))
    assert "trained on 9 sizes from 16x64 to 144x64;" in hints(hint_at_size, many, 64, 16)[0]


@pytest.mark.parametrize("size", [(1024, 1024), (1360, 768), (512, 512), (256, 384), (1920, 1080), (2048, 1024)])
def test_usual_sizes_of_flux1_are_no_surprise(size):
    assert hints(hint_at_size, FLUX1_TRAINED, *size) == []


@pytest.mark.parametrize(("size", "megapixels"), [((64, 64), "0.0041"), ((2048, 2048), "4.2")])
def test_sizes_out_of_flux1_s_range_are_told(size, megapixels):
    (line,) = hints(hint_at_size, FLUX1_TRAINED, *size)
    assert f"was trained on 0.1 to 2 megapixels, this is {megapixels};" in line


def test_lengths_of_text():
    assert hints(hint_at_text_length, SMALL, 20) == []
    assert "trained on 20 tokens" in hints(hint_at_text_length, SMALL, 24)[0]
    assert [hints(hint_at_text_length, FLUX1_TRAINED, length) for length in (256, 512)] == [[], []]
    assert "trained on 256 or 512 tokens" in hints(hint_at_text_length, FLUX1_TRAINED, 128)[0]


def test_guidance():
    for guidance in (Guidance(), Guidance(embedded=0.5), Guidance(scale=3.5), Guidance(scale=0.0)):
        assert hints(hint_at_guidance, guidance, ["a cat"], "") == []
    assert "guidance 0.5: below 1" in hints(hint_at_guidance, Guidance(scale=0.5), ["a cat"], "")[0]
    assert "is the prompt itself" in hints(hint_at_guidance, Guidance(scale=2.0), ["a cat"], "a cat")[0]


# -- of real models, and of ours ------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [DEV, SCHNELL], ids=["dev", "schnell"])
def test_flux1_has_no_list_of_words(cfg, tmp_path):
    trained = read_trained(tmp_path / "minflux.json", cfg)
    assert trained == FLUX1_TRAINED
    assert hints(hint_at_words, trained, ['a Pallas\'s cat says "MIAOW", 猫']) == []


def test_of_another_model_nothing_is_known(tmp_path):
    assert read_trained(tmp_path / "minflux.json", replace(DEV, hidden_size=1536, num_heads=12)) == Trained()


def test_the_model_that_ships_says_what_its_recipe_trained_it_on():
    assert read_trained(FOLDER / "tiny/minflux.json", SCHNELL) == trained_on(read_recipe("tiny"))


def test_every_caption_of_the_world_is_known():
    trained = trained_on(read_recipe("tiny"))
    assert {word for caption in training_captions()[:500] for word in trained.unknown_words(caption)} == set()


def test_the_world_s_sizes_words_and_lengths():
    trained = trained_on(read_recipe("tiny"))
    assert trained.unknown_words('a kitty on the left of a sign that says "hi"') == []
    assert {(128, 128), (160, 64)} <= set(trained.sizes)
    assert trained.text_lengths == (32, 64, 512)


@pytest.mark.filterwarnings("default")
def test_each_hint_is_one_line_of_stderr(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((copy / "minflux.json").read_text())
    (copy / "minflux.json").write_text(json.dumps(settings | {"trained": trained_content(SMALL)}))
    how = ["--size", "48x64", "--steps", 1, "--seed", 1, "--seed", 2, "--out", tmp_path / "a.png"]
    done = run("generate", "a dog", "--model", copy, *how)
    assert done.exit_code == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "minflux: warning" in line]
    assert [line.split("warning: ")[1].split(":")[0] for line in lines] == ["prompt", "text_length 24", "size 48x64"]


def test_what_is_written_is_read_again(tmp_path):
    save_model(replace(pipeline(), trained=SMALL), tmp_path / "model")
    shutil.copytree(FOLDER / "tiny/tokenizer", tmp_path / "model/tokenizer")
    assert parse_trained(json.loads((tmp_path / "model/minflux.json").read_text())["trained"], tmp_path) == SMALL


@pytest.mark.parametrize(
    "values",
    [
        [], {"words": 3}, {"words": [3]}, {"sizes": [64, 64]}, {"sizes": [[64]]}, {"sizes": [[64, "64"]]},
        {"megapixels": [1]}, {"megapixels": ["a", "b"]}, {"text_lengths": [1.5]}, {"spelled": True}, {"spelled": -1},
        {"words": "cat"}, {"references": 1}, {"references": "no"},
    ],
)  # fmt: skip
def test_damaged_settings_are_told(values, tmp_path):
    with pytest.raises(CheckpointError, match=r"minflux\.json: trained: expected words, spelled, sizes"):
        parse_trained(values, tmp_path / "minflux.json")


def test_load_refuses_damaged_settings(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / "minflux.json").write_text('{"trained": {"sizes": 3}}')
    with pytest.raises(CheckpointError, match="trained: expected"):
        load(copy, "numpy")
