"""Fill, Canny and Depth: what they are shown, what they refuse, and that a file alone tells which one it is."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from diffusers import FluxControlPipeline, FluxFillPipeline

import minflux
from minflux.checkpoints.tree import flatten
from minflux.edit.base import TEXT_TO_IMAGE
from minflux.edit.beside import Beside, mask_channels, masked_image
from minflux.edit.image_to_image import ImageToImage
from minflux.errors import ArgumentError
from minflux.inference.load import load
from tests.commands.runner import assert_refused, pixels, run

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), bool)
MASK[5:30, 20:50] = True


def test_every_pixel_of_the_mask_is_a_channel():
    channels = mask_channels(MASK, 8)
    assert channels.shape == (1, 8, 8, 64)
    for row, column in ((5, 20), (4, 20), (29, 49), (29, 50), (0, 0)):
        assert channels[0, row // 8, column // 8, 8 * (row % 8) + column % 8] == MASK[row, column]


def test_what_is_masked_is_mid_grey():
    seen = masked_image(PIXELS, MASK)
    assert (seen[0][MASK] == 0).all()
    np.testing.assert_array_equal(seen[0][~MASK], PIXELS[~MASK].astype(np.float32) / 127.5 - 1)
    assert seen.dtype == np.float32


NEEDED = {
    "fill": ({"image": PIXELS, "mask": MASK}, "Fill.*: give image and mask, or take one that needs none"),
    "control": ({"control": PIXELS}, "Canny or Depth.*: give control, or take one that needs none"),
}


@pytest.fixture(params=NEEDED)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, fill_model, control_model):
    return {"fill": fill_model, "control": control_model}[kind]


def test_without_what_it_needs_a_model_is_refused(kind, folder):
    pipe, (_, words) = minflux.load(folder), NEEDED[kind]
    with pytest.raises(ArgumentError, match=words):
        pipe("a cat")
    with pytest.raises(ArgumentError, match=words):
        pipe("a cat", image=PIXELS)
    with pytest.raises(ArgumentError, match=words):
        pipe.edit(PIXELS, "a cat", "a dog")


def test_sampling_without_what_it_needs_is_refused_at_once(folder):
    pipe = minflux.load(folder)
    text = pipe.encode("a cat")
    with pytest.raises(ArgumentError, match=r"edit must show \(8, 8, \d+\) .* got nothing"):
        pipe.sample(text, edit=TEXT_TO_IMAGE)
    with pytest.raises(ArgumentError, match=r"got \(8, 8, 3\)"):
        pipe.sample(text, edit=Beside(TEXT_TO_IMAGE, np.zeros((1, 8, 8, 3), np.float32)))


def test_a_control_image_on_a_model_that_takes_none(model):
    with pytest.raises(ArgumentError, match=r"takes no control image; .* such as black-forest-labs/FLUX.1-Canny-dev"):
        minflux.load(model)("a cat", control=PIXELS)


def test_a_control_image_of_another_size_than_the_image(control_model):
    with pytest.raises(ArgumentError, match="control must have the image's 64 × 64 pixels, got 64 × 32"):
        minflux.load(control_model)("a cat", image=PIXELS, control=PIXELS[:32])


def test_fill_with_a_black_mask(fill_model):
    with pytest.raises(ArgumentError, match="mask: nothing of it is white"):
        minflux.load(fill_model)("a cat", image=PIXELS, mask=~(MASK | ~MASK))


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_a_batch_is_its_images(nx, kind, folder, posterior):
    pipe, (given, _) = load(folder, nx), NEEDED[kind]
    batch = pipe(["a cat", "an apple"], seed=[3, 5], steps=2, posterior=posterior, **given)
    alone = [
        pipe(prompt, seed=seed, steps=2, posterior=posterior, **given)
        for prompt, seed in (("a cat", 3), ("an apple", 5))
    ]
    for one, other in zip(batch, alone, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    assert batch[0] != batch[1]


@pytest.mark.parametrize("memory", ["staged", "streamed"])
def test_memory_modes_give_the_same_image(kind, folder, memory):
    given, _ = NEEDED[kind]
    expected = minflux.load(folder, memory="resident")("a cat", steps=2, **given)
    assert minflux.load(folder, memory=memory)("a cat", steps=2, **given) == expected


def test_both_signs_of_guidance_see_the_channels(kind, folder):
    """A scale of 1 + 1e-6 is none, but asks with the negative prompt too."""
    pipe, (given, _) = minflux.load(folder), NEEDED[kind]
    plain = pipe("a cat", steps=2, **given)
    guided = pipe("a cat", steps=2, true_cfg_scale=1 + 1e-6, **given)
    assert np.abs(np.asarray(plain, int) - np.asarray(guided, int)).max() <= 1


def test_fill_begins_with_noise_alone_unless_told(fill_model):
    pipe = minflux.load(fill_model)
    given = {"image": PIXELS, "mask": MASK, "steps": 2}
    assert pipe("a cat", **given) == pipe("a cat", strength=1.0, **given) != pipe("a cat", strength=0.5, **given)


def test_an_edit_without_a_call(control_model):
    pipe = minflux.load(control_model)
    control = pipe.encode_image(PIXELS)
    edit = Beside(ImageToImage(control, 0.5), control)
    *_, last = pipe.sample(pipe.encode("a cat"), 3, 4, edit=edit)
    image = pipe("a cat", seed=3, steps=4, image=PIXELS, control=PIXELS, strength=0.5)
    np.testing.assert_array_equal(pipe.decode(last.x)[0], np.asarray(image))


def test_a_file_alone_tells_what_it_is(kind, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    pipe, (given, _) = minflux.load(folder), NEEDED[kind]
    assert pipe.takes == {"fill": "mask", "control": "control"}[kind]
    expected = pipe("a cat", steps=2, **given)
    safetensors.numpy.save_file(flatten(pipe.flux[1]), model / "flux.safetensors")
    assert minflux.load(model / "flux.safetensors")("a cat", steps=2, **given) == expected


def test_the_index_names_diffusers_class(kind, folder):
    expected = {"fill": FluxFillPipeline, "control": FluxControlPipeline}[kind]
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == expected.__name__


def test_settings_suit_the_variant_where_no_file_says_them(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "minflux.json").unlink()
    defaults = minflux.load(model).defaults
    assert (defaults.steps, defaults.guidance) == (50, 30.0)


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.fromarray(PIXELS).save("a.png")
    Image.fromarray(MASK).save("mask.png")
    return tmp_path


def test_the_command_line_and_the_same_again(here, kind, folder):
    given = {"fill": ("--image", "a.png", "--mask", "mask.png"), "control": ("--control", "a.png")}[kind]
    result = run("generate", "a cat", "--model", folder, "--steps", 2, *given)
    assert result.exit_code == 0, result.output
    expected = minflux.load(folder)("a cat", steps=2, **NEEDED[kind][0])
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected))
    assert run("generate", "--from", "minflux.png", "--out", "again.png").exit_code == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"))


def test_what_is_needed_is_said_before_a_weight_is_read(here, kind, folder, monkeypatch):
    monkeypatch.setattr("minflux.commands.generate.load_checkpoint", lambda *args, **how: pytest.fail("was read"))
    assert_refused(run("generate", "a cat", "--model", folder), "the model is FLUX.1")
