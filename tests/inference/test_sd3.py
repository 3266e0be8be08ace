"""SD3 from a prompt to latents: the same as diffusers' `StableDiffusion3Pipeline` at every step."""

import itertools
import json
import math
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5EncoderModel
from transformers import T5Config as TheirT5Config

from minflux.backend import get_backend
from minflux.checkpoints.components import SD3 as SD3_FAMILY
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.sd3 import SD3_CLIP_G, SD3_CLIP_L, SD3_TRANSFORMER, SD3_VAE, SD3_VAE_CONFIG
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.t5 import write_config as write_t5_config
from minflux.checkpoints.components.vae import diffusers_to_bfl
from minflux.checkpoints.components.vae import write_config as write_vae_config
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.open import open_file
from minflux.checkpoints.read import load_component, read_tree
from minflux.checkpoints.tree import flatten
from minflux.commands.convert import convert
from minflux.commands.inspect import inspect
from minflux.commands.main import main
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import load
from minflux.inference.memory import MODES
from minflux.model.clip import CLIP_G as CLIP_G_SIZES
from minflux.model.clip import CLIPConfig
from minflux.model.sd3 import SD3_PRESETS, SD3Config
from minflux.model.t5 import T5_XXL
from tests import compare, tiny_model
from tests.conftest import CHOSEN

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
PROMPTS = ["a cat left of an apple on a blue background", ""]
END = tiny_model.CLIP_TOKENS
MMDIT = SD3Config(
    in_channels=4, out_channels=4, vec_in_dim=28, context_in_dim=36, hidden_size=64, num_heads=2, depth=2,
    pos_embed_max_size=12, qk_norm=True, dual_attention_layers=(0,),
)  # fmt: skip
CLIP_L = CLIPConfig(END, 12, 20, 3, 2, 24, eos_token_id=END - 1, projection_dim=12)
CLIP_G = CLIPConfig(END, 20, 28, 2, 4, 24, eos_token_id=END - 1, hidden_act="gelu", projection_dim=16)
T5 = {"d_model": 36, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
STABILITY = SD3_TRANSFORMER.naming("stability")
TRIAL = compare.Trial(get_backend("numpy"), "numpy", "float32")


def their_clip(component, cfg):
    config = CLIPTextConfig(**component.write_config(cfg) | {"pad_token_id": 1})
    return TRIAL.random(CLIPTextModelWithProjection(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random SD3 as diffusers writes it, with the tiny model's tokenizers; SD3.5-medium's two extras are in it."""
    target, torch_state = tmp_path_factory.mktemp("sd3") / "model", torch.random.get_rng_state()
    torch.manual_seed(0)
    t5 = TheirT5Config(**write_t5_config(tiny_model.T5) | T5)
    parts = {
        "transformer": TRIAL.random(SD3Transformer2DModel.from_config(SD3_TRANSFORMER.write_config(MMDIT))),
        "vae": TRIAL.random(AutoencoderKL.from_config(write_vae_config(tiny_model.VAE))),
        "text_encoder": their_clip(SD3_CLIP_L, CLIP_L),
        "text_encoder_2": their_clip(SD3_CLIP_G, CLIP_G),
        "text_encoder_3": TRIAL.random(T5EncoderModel(t5)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    for name, part in parts.items():
        part.save_pretrained(target / name)
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
    }
    (target / "model_index.json").write_text(json.dumps(index))
    (target / "minflux.json").write_text(json.dumps({"width": 64, "height": 64, "steps": 3, "text_length": 20}))
    clip, t5_folder = tiny_model.TOKENIZERS.values()
    for name, source in {"tokenizer": clip, "tokenizer_2": clip, "tokenizer_3": t5_folder}.items():
        shutil.copytree(source, target / name)
    for name, own in {"tokenizer": {}, "tokenizer_2": {"pad_token": "!"}}.items():  # as SD3's CLIP-G has it
        path = target / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 24} | own))
    torch.random.set_rng_state(torch_state)
    return target


@pytest.fixture(scope="module", params=[1.0, 5.0], ids=["one pass", "guided"])
def drawn(request, folder):
    """Initial latents, and what diffusers made of them: every step's latents, and the images in [0, 1]."""
    pipe, steps = StableDiffusion3Pipeline.from_pretrained(folder), []
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(len(PROMPTS), 4, 6, 10)

    def keep(pipe, index, t, tensors):
        steps.append(tensors["latents"].permute(0, 2, 3, 1))
        return tensors

    images = pipe(
        PROMPTS, latents=latents, num_inference_steps=3, guidance_scale=request.param, max_sequence_length=20,
        negative_prompt=["a hat"] * 2, width=80, height=48, callback_on_step_end=keep, output_type="np",
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
        trial.close("SD3, each step's latents", step.x, theirs, compare.MODEL)
    for image, theirs in zip(got, images, strict=True):
        assert abs(torch.tensor(theirs) * 255 - torch.from_numpy(np.array(image))).max() < 1


def test_every_memory_mode_is_the_same(folder):
    first, *others = (load(folder, "numpy", memory=mode)("a cat", steps=2) for mode in MODES)
    assert all(first == other for other in others)


def test_inspect_knows_all_of_it(folder):
    report = inspect(folder)
    assert report.ok, report.text()
    text = report.text()
    for title in ("SD3 transformer", "CLIP-L", "CLIP-G", "T5", "1 of them with a second attention"):
        assert title in text


def test_stability_s_file_gives_the_same_weights(folder, tmp_path):
    nx = get_backend("numpy")
    cfg, expected = load_component(folder, "transformer", nx)
    flat = STABILITY.store(flatten(expected), cfg)
    again = convert_sd3_transformer_checkpoint_to_diffusers({n: torch.from_numpy(a.copy()) for n, a in flat.items()})
    theirs = read_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", nx)
    assert again.keys() == theirs.keys()
    assert all((again[name].numpy() == array).all() for name, array in theirs.items())

    clips = {f"text_encoders.clip_{kind}.transformer.": f"text_encoder{end}" for kind, end in (("l", ""), ("g", "_2"))}
    parts = {prefix: read_safetensors(folder / name / "model.safetensors", nx) for prefix, name in clips.items()}
    parts["model.diffusion_model."] = flat
    vae = read_safetensors(folder / "vae" / "diffusion_pytorch_model.safetensors", nx)
    parts["first_stage_model."] = diffusers_to_bfl(vae)
    whole = {f"{prefix}{name}": array for prefix, part in parts.items() for name, array in part.items()}
    write_safetensors(tmp_path / "sd3.safetensors", whole)
    opened = open_file(tmp_path / "sd3.safetensors", {"transformer": cfg, "text_encoder_2": CLIP_G})
    assert set(opened.components) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    vae_cfg = opened.components["vae"].config
    assert (vae_cfg.scale_factor, vae_cfg.shift_factor) == (1.5305, 0.0609)
    assert not any(opened.unexpected_keys.values())
    assert opened.components["transformer"].config == cfg
    got = flatten(read_tree(opened.components["transformer"], nx))
    assert got.keys() == flatten(expected).keys()
    assert all((got[name] == array).all() for name, array in flatten(expected).items())


def test_a_single_file_in_the_folder_draws_the_same(folder, tmp_path):
    nx, model = get_backend("numpy"), shutil.copytree(folder, tmp_path / "model")
    cfg, p = load_component(folder, "transformer", nx)
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    write_safetensors(model / "sd3.safetensors", STABILITY.store(flatten(p), cfg))
    expected = load(folder, nx)("a cat", steps=2)
    assert load(model / "sd3.safetensors", nx)("a cat", steps=2) == expected
    assert load(model, nx)("a cat", steps=2) == expected


def test_the_command_draws_and_draws_again(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    settings = ["--model", str(folder), "--backend", "numpy", "--steps", "2", "--guidance", "4", "--out", "one.png"]
    done = run(main, ["generate", "a cat", *settings])
    assert done.exit_code == 0, done.output
    expected = load(folder, "numpy")("a cat", steps=2, guidance=4.0)
    assert Image.open("one.png").tobytes() == expected.tobytes()
    done = run(main, ["generate", "--from", "one.png", "--out", "two.png"])
    assert done.exit_code == 0, done.output
    assert Image.open("two.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--reference", "cat.png"), "reference: the model takes none"),
        (("--lora", "lora.safetensors"), "lora: minflux loads an SD3 without"),
        (("--control", "cat.png"), "the model takes no control image"),
    ],
)
def test_the_command_says_in_a_line_what_it_cannot(folder, tmp_path, monkeypatch, option, words):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("cat.png")
    write_safetensors(Path("lora.safetensors"), {"double_blocks.0.img_attn.qkv.lora_A.weight": np.ones((1, 64))})
    done = CliRunner().invoke(main, ["generate", "a cat", "--model", str(folder), *option])
    assert done.exit_code, done.output
    assert words in done.output


def test_prompts_are_kept_for_their_own_encoders_alone(folder, tmp_path):
    model, cache = shutil.copytree(folder, tmp_path / "model"), tmp_path / "cache"
    first = load(model, "numpy", cache=cache).encode("a cat", guidance=1.0).txt
    assert load(model, "numpy", cache=cache).is_kept("a cat")
    path = model / "text_encoder_3" / "model.safetensors"
    halved = {name: array / 2 for name, array in read_safetensors(path, get_backend("numpy")).items()}
    write_safetensors(path, halved)
    assert not load(model, "numpy", cache=cache).is_kept("a cat")
    assert np.abs(load(model, "numpy", cache=cache).encode("a cat", guidance=1.0).txt - first).max() > 0.1


def write_hole(path: Path, shapes: dict[str, tuple[int, ...]], packed: Collection[str] = ()) -> None:
    """A file of weights of these shapes, all of it a hole but for its header: it takes no room.

    They are float16, but for those that are `packed`.
    """
    sizes = [(4 if name in packed else 2) * math.prod(shape) for name, shape in shapes.items()]
    ends = list(itertools.accumulate(sizes))
    header = {
        name: {"dtype": "U32" if name in packed else "F16", "shape": list(shape), "data_offsets": [end - size, end]}
        for (name, shape), size, end in zip(shapes.items(), sizes, ends, strict=True)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + ends[-1])


@pytest.mark.parametrize("name", SD3_PRESETS)
def test_inspect_knows_stability_s_files_by_their_shapes(tmp_path, name):
    parts = {
        "model.diffusion_model.": SD3_TRANSFORMER.file_shapes(STABILITY, SD3_PRESETS[name]),
        "first_stage_model.": SD3_VAE.file_shapes(SD3_VAE.own_naming, SD3_VAE_CONFIG),
        "text_encoders.clip_l.transformer.": clip_shapes(replace(CLIPConfig(), projection_dim=768)),
        "text_encoders.clip_g.transformer.": clip_shapes(CLIP_G_SIZES),
        "text_encoders.t5xxl.transformer.": t5_shapes(T5_XXL),
    }
    shapes = {f"{prefix}{key}": shape for prefix, part in parts.items() for key, shape in part.items()}
    write_hole(tmp_path / "sd3.safetensors", shapes)
    report = inspect(tmp_path / "sd3.safetensors")
    assert report.ok, report.text()
    assert f"    {name}; width" in report.text()
    configs = {name: stored.config for name, stored in report.checkpoint.components.items()}
    assert configs["text_encoder_2"] == CLIP_G_SIZES
    assert configs["vae"] == SD3_VAE_CONFIG
    assert configs.keys() == SD3_FAMILY.keys()


@pytest.mark.parametrize("format_", ["diffusers", "minflux"])
def test_converted_it_draws_the_same_and_is_whole(folder, tmp_path, format_):
    convert(folder, tmp_path / "out", format_)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "out").iterdir()}
    report = inspect(tmp_path / "out")
    assert report.ok, report.text()
    assert load(tmp_path / "out", "numpy")("a cat", steps=2) == load(folder, "numpy")("a cat", steps=2)
    if format_ == "diffusers":
        StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")


def test_a_single_file_becomes_a_folder(folder, tmp_path):
    nx, model = get_backend("numpy"), tmp_path / "model"
    shutil.copytree(folder, model, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
    cfg, p = load_component(folder, "transformer", nx)
    single = {f"model.diffusion_model.{n}": w for n, w in STABILITY.store(flatten(p), cfg).items()}
    vae = read_safetensors(folder / "vae" / "diffusion_pytorch_model.safetensors", nx)
    single |= {f"first_stage_model.{n}": w for n, w in diffusers_to_bfl(vae).items()}
    write_safetensors(model / "sd3.safetensors", single)
    report = inspect(model)
    assert report.ok, report.text()
    convert(model, tmp_path / "out", "diffusers")
    expected, got = (
        {p.relative_to(root): p for p in root.rglob("*.safetensors")} for root in (folder, tmp_path / "out")
    )
    assert expected.keys() == got.keys()
    for name, path in expected.items():
        theirs, ours = read_safetensors(path, nx), read_safetensors(got[name], nx)
        assert theirs.keys() == ours.keys()
        assert all((ours[key] == array).all() for key, array in theirs.items())


def test_8_bits_draw_nearly_the_same(folder, tmp_path):
    convert(folder, tmp_path / "out", "minflux", bits=8)
    assert "quantised to 8 bits" in inspect(tmp_path / "out").text()
    pipe, exact = load(tmp_path / "out", "numpy"), load(folder, "numpy")
    got, expected = (np.asarray(p("a cat", steps=2), np.int16) for p in (pipe, exact))
    assert 0 < np.abs(got - expected).mean() < 4  # of 255 levels; weights drawn at random don't average errors out


def test_what_cannot_be_honoured_is_said(folder, tmp_path):
    for format_, name in (("bfl", "out.safetensors"), ("gguf", "out.gguf")):
        with pytest.raises(CheckpointError, match=f"is an SD3, of which no {format_} file is written"):
            convert(folder, tmp_path / name, format_)
    with pytest.raises(CheckpointError, match="is an SD3, to which minflux adds no LoRA"):
        convert(folder, tmp_path / "out", "diffusers", lora=["some.safetensors"])
    with pytest.raises(ArgumentError, match="lora: minflux loads an SD3 without"):
        load(folder, "numpy", lora=["some.safetensors"])
    with pytest.raises(ArgumentError, match="tokenizer: minflux loads an SD3 without"):
        load(folder, "numpy", tokenizer=folder)
    with pytest.raises(ArgumentError, match="vae: minflux loads an SD3 without"):
        load(folder, "numpy", vae=folder / "vae")
    pipe, image = load(folder, "numpy"), np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ArgumentError, match="reference: the model takes none"):
        pipe("a cat", reference=image)
    with pytest.raises(ArgumentError, match="image_prompt: this model takes none"):
        pipe("a cat", image_prompt=image)
    with pytest.raises(ArgumentError, match="positions for 192 pixels"):
        load(folder, "numpy")("a cat", width=208, steps=1)
