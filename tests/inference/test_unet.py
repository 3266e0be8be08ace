"""Stable Diffusion 1 from a prompt to an image: the same as diffusers' `StableDiffusionPipeline` at every step."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from minflux.backend import get_backend
from minflux.checkpoints.components.clip import write_config as write_clip_config
from minflux.checkpoints.components.unet import write_config
from minflux.checkpoints.components.vae import write_config as write_vae_config
from minflux.commands.convert import convert
from minflux.commands.inspect import inspect
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import load
from minflux.inference.memory import MODES
from minflux.model.clip import CLIPConfig
from minflux.model.unet import UNetConfig
from tests import compare, tiny_model
from tests.commands.runner import run
from tests.conftest import CHOSEN

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
PROMPTS = ["a cat left of an apple on a blue background", ""]
END = tiny_model.CLIP_TOKENS
UNET = UNetConfig(4, 4, (8, 16), (False, True), 1, 2, 12, 4)
CLIP = CLIPConfig(END, 12, 20, 2, 2, 24, eos_token_id=END - 1)
VAE = replace(tiny_model.VAE, scale_factor=0.18215, shift_factor=0.0, quant_conv=True)
SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SETTINGS |= {"set_alpha_to_one": False, "steps_offset": 1}  # Stable Diffusion 1.5's
TRIAL = compare.Trial(get_backend("numpy"), "numpy", "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Stable Diffusion 1 as diffusers writes it, with the tiny model's tokenizer."""
    target, torch_state = tmp_path_factory.mktemp("sd1") / "model", torch.random.get_rng_state()
    torch.manual_seed(0)
    parts = {
        "unet": TRIAL.random(UNet2DConditionModel.from_config(write_config(UNET))),
        "vae": TRIAL.random(AutoencoderKL.from_config(write_vae_config(VAE))),
        "text_encoder": TRIAL.random(CLIPTextModel(CLIPTextConfig(**write_clip_config(CLIP) | {"pad_token_id": 1}))),
        "scheduler": DDIMScheduler(**SETTINGS),
    }
    for name, part in parts.items():
        part.save_pretrained(target / name)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (target / "model_index.json").write_text(json.dumps(index))
    (target / "minflux.json").write_text(json.dumps({"width": 64, "height": 64, "steps": 3}))
    clip, _ = tiny_model.TOKENIZERS.values()
    shutil.copytree(clip, target / "tokenizer")
    path = target / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 24}))
    torch.random.set_rng_state(torch_state)
    return target


@pytest.fixture(scope="module", params=[1.0, 5.0], ids=["one pass", "guided"])
def drawn(request, folder):
    """Initial latents, and what diffusers made of them: every step's latents, and the images in [0, 1]."""
    pipe, steps = StableDiffusionPipeline.from_pretrained(folder), []
    pipe.set_progress_bar_config(disable=True)
    side = VAE.downscale
    latents = torch.randn(len(PROMPTS), 4, 48 // side, 80 // side)

    def keep(pipe, index, t, tensors):
        steps.append(tensors["latents"].permute(0, 2, 3, 1))
        return tensors

    images = pipe(
        PROMPTS, latents=latents, num_inference_steps=3, guidance_scale=request.param, negative_prompt=["a hat"] * 2,
        width=80, height=48, callback_on_step_end=keep, output_type="np",
    ).images  # fmt: skip
    return request.param, latents, steps, images


@FLOAT32
def test_every_step_is_diffusers(trial, folder, drawn):
    guidance, latents, expected, images = drawn
    pipe, steps = load(folder, trial.nx), []
    negative = "a hat" if guidance > 1 else None
    got = pipe(
        PROMPTS, latents=latents.numpy(), steps=3, guidance=guidance, negative_prompt=negative, width=80, height=48,
        on_step=steps.append,
    )  # fmt: skip
    assert len(steps) == len(expected) == 3
    for step, theirs in zip(steps, expected, strict=True):
        trial.close("Stable Diffusion 1, each step's latents", step.x, theirs, compare.MODEL)
    for image, theirs in zip(got, images, strict=True):
        assert abs(torch.tensor(theirs) * 255 - torch.from_numpy(np.array(image))).max() < 1


def test_every_memory_mode_is_the_same(folder):
    first, *others = (load(folder, "numpy", memory=mode)("a cat", steps=2) for mode in MODES)
    assert all(first == other for other in others)


def test_an_image_to_begin_with_stays_where_little_is_drawn_anew(folder):
    pipe = load(folder, "numpy")
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    kept, redrawn = (pipe("a cat", image=image, strength=share, steps=20) for share in (0.05, 1.0))
    same = pipe.decode(pipe.encode_image(image))[0]
    errors = [np.abs(np.asarray(result, float) - same).mean() for result in (kept, redrawn)]
    assert errors[0] < errors[1] / 2


def test_inspect_knows_all_of_it_and_generate_draws_it(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = inspect(folder)
    assert report.ok, report.text()
    assert all(title in report.text() for title in ("U-Net", "VAE", "CLIP"))
    done = run("generate", "a cat", "--model", folder, "--steps", "2", "--backend", "numpy")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_type": "v_prediction"}, "prediction_type: minflux supports 'epsilon' alone"),
        ({"clip_sample": True}, "clip_sample: minflux supports False alone"),
        (
            {"beta_schedule": "linear"},
            "beta_schedule: expected one of scaled_linear, squaredcos_cap_v2, found 'linear'",
        ),
        ({"timestep_spacing": "linspace"}, "timestep_spacing must be one of"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps must be 1 to 10000"),
        ({"beta_end": 2.0}, "beta_start and beta_end must rise"),
        ({"num_train_timesteps": 10000, "beta_end": 0.9}, "beta_end: nothing is left of the image"),
        ({"steps_offset": -5}, "steps_offset must be 0 or 1"),
    ],
)
def test_another_schedule_is_refused(folder, tmp_path, change, words):
    model = shutil.copytree(folder, tmp_path / "model")
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=f"scheduler_config.json: {words}"):
        load(model, "numpy")


def test_what_cannot_be_honoured_is_said(folder, tmp_path):
    with pytest.raises(CheckpointError, match="minflux converts FLUX"):
        convert(folder, tmp_path / "out", "diffusers")
    with pytest.raises(ArgumentError, match="steps must be at most 1000"):
        load(folder, "numpy")("a cat", steps=1001)
    with pytest.raises(ArgumentError, match="vae: minflux loads a Stable Diffusion 1 without"):
        load(folder, "numpy", vae=folder / "vae")
