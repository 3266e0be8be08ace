"""FlowEdit by `minflux generate`: the image of `pipe.edit`, the same again, and what it refuses."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image

import minflux
from minflux.edit.flowedit import USUAL
from minflux.inference.pipeline import Pipeline
from tests.commands.runner import assert_refused, pixels, run

CAT = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
EDIT = ("--image", "cat.png", "--source-prompt", "a cat")


@pytest.fixture
def cat(here):
    """An image in the folder that one is in."""
    Image.fromarray(CAT).save("cat.png")


def settings(path: str) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info["minflux"])


def test_the_image_is_that_of_edit_and_again(cat, model):
    given = {"steps": 3, "guidance": 2.0, "source_guidance": 3.0, "n_max": 2, "n_min": 1, "n_avg": 2}
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    options += ["--seed", 5, "--seed", 6, "--preview", "p.gif"]
    result = run("generate", "a frog", "--model", model, *EDIT, *options)
    assert result.exit_code == 0, result.output
    pipe = minflux.load(model)
    for seed in (5, 6):
        expected = pipe.edit("cat.png", "a cat", "a frog", seed=seed, **given)
        np.testing.assert_array_equal(pixels(f"minflux-{seed}.png"), np.asarray(expected), strict=True)
    found = settings("minflux-5.png")
    assert {name: found[name] for name in given} == given
    assert (found["source_prompt"], found["image"], found["strength"]) == ("a cat", "cat.png", None)
    assert found["hashes"].keys() == {"model", "image"}
    with Image.open("p-5.gif") as animation:
        assert animation.n_frames == 2

    result = run("generate", "--from", "minflux-5.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux-5.png"), strict=True)
    Image.fromarray(255 - CAT).save("cat.png")
    assert_refused(run("generate", "--from", "minflux-5.png"), "the image 'cat.png' is no longer the one")


@pytest.mark.filterwarnings("default")  # the image is scaled
def test_the_defaults_are_those_of_edit_and_the_png_has_them(cat, model):
    parameters = inspect.signature(Pipeline.edit).parameters
    assert {name: parameters[name].default for name in USUAL} == USUAL
    result = run("generate", "a frog", "--model", model, *EDIT, "--size", "16x16")
    assert result.exit_code == 0, result.output
    found = settings("minflux.png")
    assert {name: found[name] for name in USUAL} == USUAL


def test_fewer_steps_than_n_max_are_all_taken(cat, model):
    result = run("generate", "a frog", "--model", model, *EDIT, "--steps", 2, "--guidance", 1)
    assert result.exit_code == 0, result.output
    expected = minflux.load(model).edit("cat.png", "a cat", "a frog", steps=2, guidance=1)
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected), strict=True)


REFUSED = {
    "--n-max 3": "n_max without a source_prompt",
    "--source-guidance 2 --n-avg 3 --image cat.png": "source_guidance, n_avg without a source_prompt",
    "--source-prompt cat": "source_prompt without an image",
    "--source-prompt cat --image cat.png --strength 0.5": "strength: has no effect with source_prompt (FlowEdit)",
    "--source-prompt cat --image cat.png --mask cat.png": "mask: has no effect with source_prompt",
    "--source-prompt cat --image cat.png --grow 16,0,0,0": "grow: has no effect with source_prompt",
    "--source-prompt cat --image cat.png --solver heun": "solver: has no effect with source_prompt",
    "--source-prompt cat --image cat.png --reference cat.png": "reference: has no effect with source_prompt",
    "--source-prompt cat --image cat.png --negative-prompt x": "negative_prompt: has no effect with source_prompt",
    "--source-prompt cat --image cat.png --n-max 0": "n_max must be a whole number of at least 1, got 0",
    "--source-prompt cat --image cat.png --n-min 3 --n-max 3": "n_min must be below n_max",
    "--source-prompt cat --image cat.png --source-guidance -1": "source_guidance must be a number of at least 0",
}


@pytest.mark.parametrize(("args", "words"), REFUSED.items())
def test_what_has_no_effect_is_refused_before_a_weight_is_read(cat, model, args, words, monkeypatch):
    monkeypatch.setattr("minflux.commands.generate.load_checkpoint", lambda *args, **how: pytest.fail("was read"))
    assert_refused(run("generate", "a frog", "--model", model, *args.split()), words)
