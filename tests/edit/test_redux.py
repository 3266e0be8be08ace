"""FLUX.1 Redux: diffusers' latents at every step, memory modes, several images, files, and what is refused."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from transformers import SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import minflux
from minflux.backend import available, get_backend
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.errors import ArgumentError, CheckpointError
from minflux.images import ImageFitted
from minflux.inference.hints import Trained
from minflux.inference.load import load
from minflux.inference.memory import MODES
from tests import compare
from tests.commands.runner import assert_refused, pixels, run
from tests.conftest import CHOSEN
from tests.tiny_redux import TOKENS

RNG = np.random.default_rng(0)
CAT, APPLE = (Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(2))
PROMPT, WIDTH, HEIGHT, STEPS = "a cat left of an apple", 48, 32, 3
FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)


def prior_of(redux_folder, theirs) -> FluxPriorReduxPipeline:
    """diffusers' Redux with the text encoders of its FLUX.1."""
    pipe = FluxPriorReduxPipeline(
        SiglipVisionModel.from_pretrained(redux_folder / "image_encoder"),
        SiglipImageProcessorPil.from_pretrained(redux_folder / "feature_extractor"),
        ReduxImageEncoder.from_pretrained(redux_folder / "image_embedder"),
        theirs.text_encoder, theirs.tokenizer, theirs.text_encoder_2, theirs.tokenizer_2,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    encode, pipe.encode_prompt = pipe.encode_prompt, lambda **how: encode(**how | {"max_sequence_length": 24})
    return pipe


def theirs_of(theirs, **settings) -> list[torch.Tensor]:
    """Every step's latents (1, h, w, C) of diffusers."""
    theirs.set_progress_bar_config(disable=True)
    steps = []

    def keep(pipe, index, t, tensors):
        steps.append(pipe._unpack_latents(tensors["latents"], HEIGHT, WIDTH, 8).permute(0, 2, 3, 1))
        return tensors

    theirs(
        width=WIDTH, height=HEIGHT, num_inference_steps=STEPS, guidance_scale=2.5, callback_on_step_end=keep,
        max_sequence_length=24, generator=torch.Generator().manual_seed(7), output_type="latent", **settings,
    )  # fmt: skip
    return steps


GIVEN = {
    "one": ([CAT], 1.0, "append"),
    "one, weaker": ([CAT], 0.6, "sum"),
    "several": ([CAT, APPLE], [0.7, 0.4], "sum"),
}


@FLOAT32
@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_redux_is_diffusers_at_every_step(trial, dev_model, redux_folder, given, scale):
    images, strength, mix = given
    theirs = FluxPipeline.from_pretrained(dev_model)
    said = prior_of(redux_folder, theirs)(images, prompt=PROMPT, prompt_embeds_scale=strength)
    away = {} if scale is None else {"negative_prompt": "a frog", "true_cfg_scale": scale}
    expected = theirs_of(theirs, **said, **away)
    steps = []
    load(dev_model, trial.nx, redux=redux_folder)(
        PROMPT, image_prompt=images, image_prompt_strength=strength, image_prompt_mix=mix, seed=7, steps=STEPS,
        guidance=2.5, width=WIDTH, height=HEIGHT, on_step=steps.append, **away,
    )  # fmt: skip
    for step, one in zip(steps, expected, strict=True):
        trial.close("Redux, each step's latents", step.x, one, compare.MODEL)


def test_appended_images_follow_the_prompt_each_times_its_strength(nx, dev_model, redux_folder):
    pipe = load(dev_model, nx, redux=redux_folder)
    text = pipe.encode(PROMPT)
    one, other = (pipe.with_image_prompts(text, pipe.image_prompts(image)).txt for image in (CAT, APPLE))
    both = pipe.with_image_prompts(text, pipe.image_prompts([CAT, APPLE], [0.5, 2]))
    expected = np.concatenate(
        [nx.to_numpy(text.txt), 0.5 * nx.to_numpy(one)[:, 24:], 2 * nx.to_numpy(other)[:, 24:]], 1
    )
    np.testing.assert_allclose(nx.to_numpy(both.txt), expected, rtol=1e-6)
    np.testing.assert_array_equal(nx.to_numpy(both.y), nx.to_numpy(text.y))
    assert both.txt.shape[1] == 24 + 2 * TOKENS


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("scale", [None, 3.0])
def test_every_memory_mode_gives_the_same_image(dev_model, redux_folder, backend, scale):
    how = {"image_prompt": CAT, "true_cfg_scale": scale, "steps": 2}
    images = [load(dev_model, backend, memory=mode, redux=redux_folder)("a cat", **how) for mode in MODES]
    assert images == images[:1] * len(MODES)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_a_batch_is_its_images(dev_model, redux_folder, scale):
    pipe = minflux.load(dev_model, redux=redux_folder)
    given = {"image_prompt": [CAT, APPLE], "steps": 2, "true_cfg_scale": scale}
    batch = pipe(["a cat", "an apple"], seed=[3, 5], **given)
    alone = [pipe("a cat", seed=3, **given), pipe("an apple", seed=5, **given)]
    for one, other in zip(batch, alone, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_it_goes_with_an_image_and_with_references(dev_model, redux_folder):
    pipe = minflux.load(dev_model, redux=redux_folder)
    pipe = replace(pipe, trained=Trained(references=True))
    how = {"steps": 2, "image": CAT.resize((64, 64)), "reference": CAT.resize((64, 64))}
    assert pipe("a cat", **how) != pipe("a cat", image_prompt=APPLE, **how)


def test_guidance_is_two_and_a_half_unless_given_where_it_is_built_in(dev_model, model, redux_folder, monkeypatch):
    pipe = minflux.load(dev_model, redux=redux_folder)
    strong = replace(pipe, defaults=replace(pipe.defaults, guidance=3.5))
    expected = pipe("a cat", image_prompt=CAT, steps=2, guidance=2.5)
    assert strong("a cat", image_prompt=CAT, steps=2) == expected
    assert strong("a cat", image_prompt=CAT, steps=2, guidance=3.5) != expected
    assert strong("a cat", steps=2) == pipe("a cat", steps=2, guidance=3.5)  # without an image prompt
    assert pipe("a cat", image_prompt=CAT, steps=2) != expected  # its own is 2, which is less
    plain = minflux.load(model, redux=redux_folder)  # the scale of classifier-free guidance, which stays
    plain = replace(plain, defaults=replace(plain.defaults, guidance=3.5))
    expected = plain("a cat", image_prompt=CAT, steps=2, guidance=3.5)
    assert plain("a cat", image_prompt=CAT, steps=2) == expected
    assert plain("a cat", image_prompt=CAT, steps=2, true_cfg_scale=3.5) == expected


def test_what_a_call_refuses(dev_model, redux_folder):
    with pytest.raises(ArgumentError, match="image_prompt: the model was loaded without Redux; load it with redux"):
        minflux.load(dev_model)("a cat", image_prompt=CAT)
    pipe = minflux.load(dev_model, redux=redux_folder)
    with pytest.raises(ArgumentError, match="image_prompt_strength: got 1 for 2 images"):
        pipe("a cat", image_prompt=[CAT, APPLE], image_prompt_strength=[1.0])
    with pytest.raises(ArgumentError, match="image_prompt_strength must be a number of at least 0, got -1"):
        pipe("a cat", image_prompt=CAT, image_prompt_strength=-1)
    with pytest.raises(ArgumentError, match="image_prompt_strength and image_prompt_mix go with an image_prompt"):
        pipe("a cat", image_prompt_strength=0.5)
    with pytest.raises(ArgumentError, match="image_prompt_mix must be one of 'append', 'sum', got 'mean'"):
        pipe("a cat", image_prompt=CAT, image_prompt_mix="mean")
    with pytest.raises(ArgumentError, match="image_prompt must be a path, a PIL image or an array, got int"):
        pipe("a cat", image_prompt=[CAT, 3])
    with pytest.warns(ImageFitted, match="image_prompt: 40 × 20 pixels are stretched to 17 × 17; crop it first"):
        pipe("a cat", image_prompt=CAT.crop((0, 0, 40, 20)), steps=1)


# -- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def redux_copy(redux_folder, tmp_path):
    return shutil.copytree(redux_folder, tmp_path / "redux")


def draw(model, **how):
    return minflux.load(model, **how)("a cat", image_prompt=CAT, steps=1)


def test_bfl_s_file_with_the_encoder_beside_it_or_named(dev_model, redux_copy):
    expected = draw(dev_model, redux=redux_copy)
    file = shutil.copy(redux_copy / "image_embedder" / "diffusion_pytorch_model.safetensors", redux_copy / "redux.sft")
    assert draw(dev_model, redux=file) == expected
    encoder = shutil.move(redux_copy / "image_encoder", redux_copy / "siglip")
    assert draw(dev_model, redux=file, image_encoder=encoder) == expected
    with pytest.raises(
        CheckpointError, match=r"expected the vision encoder in .*image_encoder, found none: name SigLIP"
    ):
        minflux.load(dev_model, redux=file)


def test_the_encoder_under_older_names_in_a_whole_siglip(dev_model, redux_copy):
    expected = draw(dev_model, redux=redux_copy)
    path = redux_copy / "image_encoder" / "model.safetensors"
    flat = {f"vision_model.{name}": array for name, array in read_safetensors(path, get_backend("numpy")).items()}
    write_safetensors(path, flat | {"text_model.x.weight": np.ones((2, 2), np.float32), "logit_bias": np.ones(1)})
    config = path.with_name("config.json")
    config.write_text(json.dumps({"vision_config": json.loads(config.read_text())}))
    assert draw(dev_model, redux=redux_copy) == expected


@pytest.fixture
def comfy(redux_folder, tmp_path):
    """ComfyUI's folder with Redux and its vision encoder, and files of other kinds beside them."""
    models = tmp_path / "ComfyUI" / "models"
    for place in ("vae", "style_models", "clip_vision"):
        (models / place).mkdir(parents=True)
    file = redux_folder / "image_embedder" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, models / "style_models" / "redux-dev.safetensors")
    for name in ("model.safetensors", "config.json"):
        shutil.copy(redux_folder / "image_encoder" / name, models / "clip_vision" / name.replace("model", "sigclip"))
    other = {"vision_model.embeddings.class_embedding": np.ones(3, np.float32)}
    write_safetensors(models / "clip_vision" / "clip_h.safetensors", other)
    (models / "style_models" / "broken.safetensors").write_text("nothing")
    return models


def test_comfyui_s_folder_has_redux_and_its_encoder_by_name_or_as_the_only_one(dev_model, redux_folder, comfy):
    file, encoder = comfy / "style_models/redux-dev.safetensors", comfy / "clip_vision/sigclip.safetensors"
    expected = draw(dev_model, redux=file, image_encoder=encoder)
    lines = []
    assert draw(dev_model, comfy=comfy, redux="redux-dev", report=lines.append) == expected
    assert lines[-2:] == [f"redux: {file}", f"image_encoder: {encoder}"]
    assert draw(dev_model, comfy=comfy, redux=file, image_encoder="sigclip.safetensors") == expected
    assert draw(dev_model, comfy=comfy, redux=redux_folder) == draw(dev_model, redux=redux_folder)
    assert minflux.load(dev_model, comfy=comfy).redux is None  # which nobody asked for
    with pytest.raises(ArgumentError, match=r"--redux: 'broken' is no file, .* which has style_models/redux-dev"):
        minflux.load(dev_model, comfy=comfy, redux="broken")
    shutil.copy(encoder, encoder.with_name("b.safetensors"))
    with pytest.raises(ArgumentError, match=r"several files of SigLIP, clip_vision/b\.safetensors, .*--image-encoder"):
        minflux.load(dev_model, comfy=comfy, redux="redux-dev")
    (encoder.unlink(), encoder.with_name("b.safetensors").unlink())
    with pytest.raises(CheckpointError, match=r"expected the vision encoder in .*, found none: name SigLIP"):
        minflux.load(dev_model, comfy=comfy, redux="redux-dev")


def test_the_command_line_takes_comfyui_s_redux_for_an_image_prompt(here, dev_model, comfy):
    given = ("--comfy", comfy, "--image-prompt", "cat.png")
    result = run("generate", "a cat", "--model", dev_model, "--steps", 1, *given)
    assert result.exit_code == 0, result.output
    paths = comfy / "style_models/redux-dev.safetensors", comfy / "clip_vision/sigclip.safetensors"
    pipe = minflux.load(dev_model, redux=paths[0], image_encoder=paths[1])
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(pipe("a cat", steps=1, image_prompt=CAT)))
    with Image.open("minflux.png") as image:
        found = json.loads(image.info["minflux"])
    assert (found["redux"], found["image_encoder"]) == tuple(map(str, paths))
    assert run("generate", "--from", "minflux.png", "--out", "again.png").exit_code == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"))
    listed = run("inspect", "--comfy", comfy).output
    assert "style_models/redux-dev.safetensors: Redux, for image prompts" in listed
    assert "clip_vision/sigclip.safetensors: SigLIP, for image prompts" in listed
    paths[0].unlink()
    refused = run("generate", "a cat", "--model", dev_model, *given)
    assert_refused(refused, "has no Redux of FLUX.1 in style_models: name it by --redux")


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


WRONG = {
    "hidden_act: expected 'gelu_pytorch_tanh', found 'relu'": ("image_encoder/config.json", {"hidden_act": "relu"}),
    "num_attention_heads: expected a divisor of 12, found 5": ("image_encoder/config.json", {"num_attention_heads": 5}),
    "patch_size: expected at most 17, found 18": ("image_encoder/config.json", {"patch_size": 18}),
    "expected shape": ("image_encoder/config.json", {"image_size": 30}),
    "size: expected": ("feature_extractor/preprocessor_config.json", {"size": {"height": 17, "width": 18}}),
    "do_resize: expected True, found False": ("feature_extractor/preprocessor_config.json", {"do_resize": False}),
    "rescale_factor: expected 1 / 255": ("feature_extractor/preprocessor_config.json", {"rescale_factor": 1}),
    "image_std: expected numbers above 0": ("feature_extractor/preprocessor_config.json", {"image_std": [1, 0, 1]}),
    "resample: expected a number that PIL has": ("feature_extractor/preprocessor_config.json", {"resample": 99}),
    "redux_up.weight: expected shape": ("image_embedder/config.json", {"redux_dim": 5}),
}


@pytest.mark.parametrize(("words", "change"), WRONG.items(), ids=WRONG)
def test_files_that_are_wrong_are_refused(dev_model, redux_copy, words, change):
    changed(redux_copy / change[0], **change[1])
    with pytest.raises(CheckpointError, match=words):
        minflux.load(dev_model, redux=redux_copy)


def test_what_does_not_go_together_is_refused(dev_model, redux_copy):
    path = redux_copy / "image_embedder" / "diffusion_pytorch_model.safetensors"
    (redux_copy / "image_embedder" / "config.json").unlink()
    other = ReduxImageEncoder(12, 7)
    write_safetensors(path, {name: w.numpy() for name, w in other.state_dict().items()})
    with pytest.raises(CheckpointError, match="expected Redux whose tokens' width is 24, which the transformer takes"):
        minflux.load(dev_model, redux=redux_copy)
    other = ReduxImageEncoder(7, 24)
    write_safetensors(path, {name: w.numpy() for name, w in other.state_dict().items()})
    with pytest.raises(CheckpointError, match="expected a vision encoder of width 7, which Redux takes, found 12"):
        minflux.load(dev_model, redux=redux_copy)
    with pytest.raises(CheckpointError, match="expected Redux, found none of its weights"):
        minflux.load(dev_model, redux=dev_model / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ArgumentError, match="image_encoder goes with redux"):
        minflux.load(dev_model, image_encoder=redux_copy / "image_encoder")
    with pytest.raises(ArgumentError, match="redux: 'no/such/folder': no such file or folder"):
        minflux.load(dev_model, redux="no/such/folder")


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CAT.save("cat.png")
    APPLE.save("apple.png")
    return tmp_path


def test_the_command_line_and_the_same_again(here, dev_model, redux_copy):
    given = ("--redux", "redux", "--image-prompt", "cat.png", "--image-prompt", "apple.png")
    given += ("--image-prompt-strength", 0.5, "--image-prompt-strength", 1.5)
    result = run("generate", "a cat", "--model", dev_model, "--steps", 2, *given)
    assert result.exit_code == 0, result.output
    pipe = minflux.load(dev_model, redux=redux_copy)
    expected = pipe("a cat", steps=2, image_prompt=[CAT, APPLE], image_prompt_strength=[0.5, 1.5])
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected))
    with Image.open("minflux.png") as image:
        found = json.loads(image.info["minflux"])
    assert (found["image_prompt"], found["image_prompt_strength"]) == (["cat.png", "apple.png"], [0.5, 1.5])
    assert {"model", "redux", "image prompt 1", "image prompt 2"} == set(found["hashes"])

    again = ("generate", "--from", "minflux.png", "--out", "again.png")
    assert run(*again).exit_code == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"))
    CAT.save("apple.png")
    assert_refused(run(*again), "the image prompt 2 'apple.png' is no longer the one that minflux.png was made with")
    APPLE.save("apple.png")
    changed(redux_copy / "feature_extractor" / "preprocessor_config.json", resample=2)
    assert_refused(run(*again), "the redux 'redux' is no longer the one that minflux.png was made with")
    os.remove("cat.png")
    assert_refused(run(*again), "was made with the image prompt 1 'cat.png', which is not there")


@pytest.mark.parametrize(("given", "expected"), [(("--image-prompt", "cat.png"), 2.5), ((), 3.5)])
def test_the_png_has_the_guidance_that_an_image_prompt_brings(here, dev_model, redux_copy, given, expected):
    folder = shutil.copytree(dev_model, here / "dev")
    changed(folder / "minflux.json", guidance=3.5)
    given = (*given, *(("--redux", "redux") if given else ()))
    assert run("generate", "a cat", "--model", "dev", "--steps", 1, *given).exit_code == 0
    with Image.open("minflux.png") as image:
        assert json.loads(image.info["minflux"])["guidance"] == expected


@pytest.mark.parametrize("given", [("--image-prompt", "cat.png"), ("--redux", "redux")])
def test_one_without_the_other_is_refused_before_a_weight_is_read(here, dev_model, redux_copy, given, monkeypatch):
    monkeypatch.setattr("minflux.commands.generate.load_checkpoint", lambda *args, **how: pytest.fail("was read"))
    refused = run("generate", "a cat", "--model", dev_model, *given)
    assert_refused(refused, "--image-prompt and --redux go together")
