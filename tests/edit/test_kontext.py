"""FLUX.1 Kontext: which size a reference is seen at, where several stand, and that they are told by their place."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

import minflux
from minflux.edit.kontext import SIZES, places, reference_size
from minflux.errors import ArgumentError
from minflux.images import ImageFitted
from minflux.inference.hints import Hint
from minflux.inference.load import load, save_model
from tests.commands.runner import assert_refused, pixels, run

RNG = np.random.default_rng(0)
CAT, APPLE = (RNG.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2))
WIDE = RNG.integers(0, 256, (32, 64, 3), np.uint8)


def test_the_sizes_are_those_of_diffusers():
    assert list(SIZES) == PREFERRED_KONTEXT_RESOLUTIONS


def test_the_nearest_aspect_is_that_of_diffusers():
    for width, height in [*RNG.integers(1, 3000, (300, 2)).tolist(), (1, 4000), (4000, 1)]:
        aspect = width / height
        _, *expected = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        assert reference_size((width, height), (1024, 1024), 16) == tuple(expected)


def test_a_reference_is_seen_as_diffusers_resizes_it(kontext_model):
    processor = FluxKontextPipeline.from_pretrained(kontext_model).image_processor
    pipe = minflux.load(kontext_model)
    size = reference_size((64, 32), (64, 64), 16)
    theirs = processor.preprocess(processor.resize(Image.fromarray(WIDE), size[1], size[0]), size[1], size[0])
    (ours,) = pipe.encode_references(WIDE)
    expected = pipe._encode_pixels(theirs.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(ours.latents, expected, atol=1e-5)
    assert size == (96, 48)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(64, 64)], [(1, 0, 0)]),
        ([(64, 64), (64, 64)], [(1, 0, 0), (1, 64, 0)]),
        ([(80, 40), (40, 80)], [(1, 0, 0), (1, 40, 0)]),
        ([(40, 80), (80, 40), (10, 10)], [(1, 0, 0), (1, 80, 0), (1, 0, 80)]),
    ],
)
def test_offsets_keep_the_canvas_small(sizes, expected):
    assert places(sizes, "offset") == expected


def test_the_prompt_s_images_matter_and_so_does_their_layout(kontext_model):
    pipe = minflux.load(kontext_model)
    one = pipe("a cat", reference=CAT, steps=2)
    assert one == pipe("a cat", reference=[CAT], steps=2)
    two = pipe("a cat", reference=[CAT, APPLE], steps=2)
    images = [
        pipe("a cat", steps=2),
        one,
        two,
        pipe("a cat", reference=[APPLE, CAT], steps=2),
        pipe("a cat", reference=[CAT, APPLE], reference_layout="index", steps=2),
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def test_the_result_has_the_first_reference_s_aspect_unless_told(kontext_model):
    pipe = minflux.load(kontext_model)
    assert pipe("a cat", reference=[WIDE, CAT], steps=1).size == (96, 48)
    assert pipe("a cat", reference=WIDE, steps=1, width=32, height=64).size == (32, 64)
    assert pipe("a cat", reference=WIDE, image=CAT, steps=2).size == (64, 64)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_a_batch_is_its_images(nx, kontext_model, scale):
    pipe, given = load(kontext_model, nx), {"reference": [CAT, WIDE], "steps": 2, "true_cfg_scale": scale}
    batch = pipe(["a cat", "an apple"], seed=[3, 5], **given)
    alone = [pipe("a cat", seed=3, **given), pipe("an apple", seed=5, **given)]
    for one, other in zip(batch, alone, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize("memory", ["staged", "streamed"])
def test_memory_modes_give_the_same_image(kontext_model, memory):
    expected = minflux.load(kontext_model, memory="resident")("a cat", steps=2, reference=CAT)
    assert minflux.load(kontext_model, memory=memory)("a cat", steps=2, reference=CAT) == expected


def test_a_reference_that_is_stretched_is_said(kontext_model):
    with pytest.warns(ImageFitted, match="^reference: 64 × 4 pixels are stretched to 96 × 48; crop it first$"):
        minflux.load(kontext_model).encode_references(WIDE[:4])


def test_what_is_refused(fill_model, kontext_model):
    with pytest.raises(ArgumentError, match=r"reference: the model takes none; FLUX\.1 Kontext does"):
        minflux.load(fill_model)("a cat", image=CAT, mask=CAT[..., 0] > 99, reference=CAT)
    with pytest.raises(ArgumentError, match="reference_layout must be one of 'offset', 'index', got 'uxo'"):
        minflux.load(kontext_model)("a cat", reference=CAT, reference_layout="uxo")
    with pytest.raises(ArgumentError, match="reference must be a path, a PIL image or an array, got int"):
        minflux.load(kontext_model)("a cat", reference=[CAT, 3])


# -- what tells that a model is Kontext --------------------------------------------------------------------------


def hints(model, **how) -> list[str]:
    with warnings.catch_warnings(record=True, category=Hint) as caught:
        warnings.simplefilter("always")
        minflux.load(model, **how)("a cat", reference=CAT, steps=1)
    return [str(warning.message).partition(":")[0] for warning in caught]


def test_a_reference_on_a_model_that_nothing_calls_kontext_is_hinted_at(dev_model, tmp_path):
    copy = shutil.copytree(dev_model, tmp_path / "dev")
    assert hints(copy) == ["reference"]
    index, settings = copy / "model_index.json", copy / "minflux.json"
    for path, values in (
        (index, {"_class_name": "FluxKontextPipeline"}),
        (settings, {"trained": {"references": True}}),
    ):
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | values))
        assert hints(copy) == []
        path.write_text(before)
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    assert hints(copy, transformer=shutil.copy(file, tmp_path / "flux1-Kontext-dev.safetensors")) == []
    assert hints(copy, transformer=shutil.copy(file, tmp_path / "flux1-dev.safetensors")) == ["reference"]
    assert hints(copy.rename(tmp_path / "my_kontext")) == []


def test_what_a_finetuned_kontext_was_trained_with_is_written_with_it(kontext_model, tmp_path):
    save_model(minflux.load(kontext_model), tmp_path / "mine")
    assert json.loads((tmp_path / "mine" / "minflux.json").read_text())["trained"]["references"] is True


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(CAT).save("cat.png")
    Image.fromarray(WIDE).save("wide.png")
    return tmp_path


def test_the_command_line_and_the_same_again(here, kontext_model):
    given = ("--reference", "wide.png", "--reference", "cat.png", "--reference-layout", "index")
    result = run("generate", "a cat", "--model", kontext_model, "--steps", 2, *given)
    assert result.exit_code == 0, result.output
    expected = minflux.load(kontext_model)("a cat", steps=2, reference=[WIDE, CAT], reference_layout="index")
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected))
    with Image.open("minflux.png") as image:
        found = json.loads(image.info["minflux"])
    assert found["reference"] == ["wide.png", "cat.png"]
    assert {"model", "reference 1", "reference 2"} == set(found["hashes"])

    assert run("generate", "--from", "minflux.png", "--out", "again.png").exit_code == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"))
    Image.fromarray(APPLE).save("cat.png")
    refused = run("generate", "--from", "minflux.png", "--out", "again.png")
    assert_refused(refused, "the reference 2 'cat.png' is no longer the one that minflux.png was made with")
    os.remove("wide.png")
    refused = run("generate", "--from", "minflux.png", "--out", "again.png")
    assert_refused(refused, "was made with the reference 1 'wide.png', which is not there")


def test_references_that_a_model_can_not_take_are_refused_before_a_weight_is_read(here, fill_model, monkeypatch):
    monkeypatch.setattr("minflux.commands.generate.load_checkpoint", lambda *args, **how: pytest.fail("was read"))
    given = ("--image", "cat.png", "--mask", "cat.png", "--reference", "cat.png")
    assert_refused(run("generate", "a cat", "--model", fill_model, *given), "reference: the model takes none")
