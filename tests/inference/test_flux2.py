"""FLUX.2 from a prompt to latents: the same as diffusers' `Flux2KleinPipeline` and `Flux2Pipeline` at every step."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusers.pipelines.flux2.pipeline_flux2 import SYSTEM_MESSAGE, compute_empirical_mu
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers import Qwen3Config as TheirQwen3Config

from minflux.backend import get_backend, serving
from minflux.backend.base import GROUP
from minflux.backend.polynomial import can_compile
from minflux.checkpoints import hub
from minflux.checkpoints.components import FLUX2 as FLUX2_FAMILY
from minflux.checkpoints.components import FLUX2_KLEIN, QWEN3
from minflux.checkpoints.components.decoder import decoder_shapes
from minflux.checkpoints.components.flux2 import FLUX2_TRANSFORMER, FLUX2_VAE, flux2_shapes
from minflux.checkpoints.components.shapes import Sizes
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.open import open_file, open_model
from minflux.checkpoints.quantise import packed_shapes, stem_of
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten, tree
from minflux.commands.convert import convert
from minflux.commands.inspect import inspect
from minflux.commands.main import main
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.chat import MISTRAL_CHAT, QWEN3_CHAT
from minflux.inference.compiled import compiled_runner
from minflux.inference.flux2 import Flux2Schedule, reference_pixels
from minflux.inference.load import load
from minflux.inference.memory import MODES, held
from minflux.inference.pipeline import Conditioning
from minflux.inference.step_cache import StepCache
from minflux.model.decoder import QWEN3_4B, MistralConfig, Qwen3Config
from minflux.model.flux2 import FLUX2_PRESETS, KLEIN_4B, Flux2Config
from minflux.model.latents import pack
from minflux.model.vae import FLUX2_VAE as FLUX2_VAE_SIZES
from minflux.model.vae import Flux2VAEConfig
from minflux.train.own_data import open_subject
from tests import compare, tiny_model
from tests.commands.runner import assert_refused, run
from tests.conftest import CHOSEN
from tests.inference.test_sd3 import write_hole

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
TRIAL = compare.Trial(get_backend("numpy"), "numpy", "float32")
PROMPTS = ["a cat left of an apple", "a hat"]
LENGTH = 48  # tokens of a prompt, of which each byte is one
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
TEXT = Qwen3Config(
    vocab_size=256 + len(MARKS), hidden_size=12, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
FLUX = Flux2Config(
    in_channels=16, out_channels=16, context_in_dim=36, hidden_size=64, num_heads=2, depth=1, depth_single_blocks=2,
    axes_dim=(8, 8, 8, 8),
)  # fmt: skip
VAE = Flux2VAEConfig(ch=4, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4, norm_groups=2)
SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True, "max_shift": 1.15}
CHAT = (  # in Jinja, of what Qwen3's template says to a single message
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def byte_tokenizer(marks=MARKS) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and of marks, as transformers has it; Qwen3's unless told otherwise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=marks[0], eos_token=marks[2], model_max_length=1000, chat_template=CHAT
    )


def their_vae():
    """diffusers' VAE with random weights and statistics."""
    vae = TRIAL.random(AutoencoderKLFlux2.from_config(FLUX2_VAE.write_config(VAE)))
    vae.bn.running_mean, vae.bn.running_var = torch.randn(16) / 2, 0.5 + torch.rand(16)
    return vae


def their_transformer(cfg):
    return TRIAL.random(Flux2Transformer2DModel.from_config(FLUX2_TRANSFORMER.write_config(cfg)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random FLUX.2 klein, not distilled, as diffusers writes it."""
    target, torch_state = tmp_path_factory.mktemp("flux2") / "model", torch.random.get_rng_state()
    torch.manual_seed(0)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=their_vae(),
        text_encoder=TRIAL.random(Qwen3ForCausalLM(TheirQwen3Config(**QWEN3.write_config(TEXT)))),
        tokenizer=byte_tokenizer(),
        transformer=their_transformer(FLUX),
    ).save_pretrained(target)
    (target / "minflux.json").write_text(
        json.dumps({"width": 64, "height": 64, "steps": 2, "guidance": 4.0, "text_length": LENGTH})
    )
    torch.random.set_rng_state(torch_state)
    return target


def photo(width, height):
    """An image of random colours."""
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())


@pytest.fixture(scope="module", params=[(1.0, 0), (4.0, 2)], ids=["one pass", "guided, two references"])
def drawn(request, folder):
    """Initial latents, reference images, and what diffusers made of them: every step's latents, and the images."""
    guidance, count = request.param
    pipe, steps = Flux2KleinPipeline.from_pretrained(folder), []
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(len(PROMPTS), FLUX.in_channels, 3, 5)
    references = [photo(*size) for size in ((70, 99), (96, 64))[:count]]

    def keep(pipe, index, t, tensors):
        steps.append(tensors["latents"])
        return tensors

    images = pipe(
        prompt=PROMPTS, image=references or None, latents=latents, num_inference_steps=3, guidance_scale=guidance,
        max_sequence_length=LENGTH, text_encoder_out_layers=TEXT.state_layers, width=80, height=48,
        callback_on_step_end=keep, output_type="np",
    ).images  # fmt: skip
    return guidance, latents, references, steps, images


@FLOAT32
def test_every_step_is_diffusers(trial, folder, drawn):
    guidance, latents, references, expected, images = drawn
    pipe, steps = load(folder, trial.nx), []
    got = pipe(
        PROMPTS, latents=latents.numpy(), steps=3, guidance=guidance, width=80, height=48,
        reference=references or None, on_step=steps.append,
    )  # fmt: skip
    assert len(steps) == len(expected) == 3
    for step, theirs in zip(steps, expected, strict=True):
        trial.close("FLUX.2 klein, each step's latents", pack(step.x), theirs, compare.MODEL)
    for image, theirs in zip(got, images, strict=True):
        assert abs(torch.tensor(theirs) * 255 - torch.from_numpy(np.array(image))).max() < 1


@FLOAT32
def test_every_step_of_dev_is_diffusers(trial, folder):
    """With its guidance built in, a reference image, and the noise of a seed."""
    cfg = replace(FLUX, guidance_embed=True)
    transformer, vae, steps = their_transformer(cfg), AutoencoderKLFlux2.from_pretrained(folder / "vae"), []
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    theirs = Flux2Pipeline(scheduler, vae, text_encoder=None, tokenizer=None, transformer=transformer)
    theirs.set_progress_bar_config(disable=True)
    txt, reference = torch.randn(1, 7, cfg.context_in_dim), photo(96, 64)
    theirs(
        prompt_embeds=txt, image=reference, num_inference_steps=3, guidance_scale=2.5, width=80, height=48,
        generator=torch.Generator().manual_seed(5), output_type="latent",
        callback_on_step_end=lambda pipe, i, t, tensors: steps.append(tensors["latents"]) or tensors,
    )  # fmt: skip

    p = tree(FLUX2_TRANSFORMER.folder_naming.load(trial.flat(transformer), cfg))
    pipe = replace(load(folder, trial.nx), flux=(cfg, p))
    references = pipe.encode_references(reference)
    text = Conditioning(trial.array(txt), trial.nx.zeros((1, 0)), references=references)
    got = list(pipe.sample(text, seed=5, steps=3, guidance=2.5, width=80, height=48))
    assert len(got) == len(steps) == 3
    for step, latents in zip(got, steps, strict=True):
        trial.close("FLUX.2-dev, each step's latents", pack(step.x), latents, compare.MODEL)


def test_edits_and_a_step_cache_go_with_it(folder):
    pipe, image = load(folder, "numpy"), photo(64, 64)
    plain = pipe("a cat", steps=4)
    assert pipe("a cat", steps=4, image=image, strength=1.0, seed=0) == plain  # which keeps nothing of the image
    assert pipe("a cat", steps=4, image=image, strength=0.5) != plain
    mask, left = Image.new("L", (64, 64)), (0, 0, 32, 64)
    mask.paste(255, (32, 0, 64, 64))
    redrawn = pipe("a cat", steps=4, image=image, mask=mask, strength=0.5)
    assert redrawn != image
    assert redrawn.crop(left).tobytes() == image.crop(left).tobytes()
    assert pipe("a cat", steps=4, step_cache="first-block:1e-9") == plain
    cache = StepCache("first-block", 100.0)
    assert pipe("a cat", steps=4, step_cache=cache) != plain
    assert cache.skipped == [1, 2, 3]


@pytest.mark.skipif(not can_compile(), reason="on a CPU, mx.compile needs g++")
def test_compiled_blocks_give_the_same_latents(folder, monkeypatch):
    """As on a GPU; the backend takes this CPU for one."""
    pipe = load(folder, "mlx")
    text = pipe.encode("a cat", guidance=1.0)
    with serving("mlx-fused") as nx:
        found = []
        for on_gpu in (True, False):
            monkeypatch.setattr(nx, "on_gpu", on_gpu)
            *_, last = replace(pipe, nx=nx).sample(text, steps=2, guidance=1.0)
            found.append(nx.to_numpy(last.x))
    compiled_runner.cache_clear()
    np.testing.assert_allclose(*found, atol=2e-5)


# -- the steps, the text, the references -------------------------------------------------------------------------


@given(steps=st.integers(1, 60), tokens=st.integers(1, 9000), dynamic=st.booleans())
def test_the_timesteps_are_diffusers(steps, tokens, dynamic):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    mu = compute_empirical_mu(tokens, steps)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    ours = Flux2Schedule(shift=3.0, use_dynamic_shifting=dynamic).timesteps(steps, tokens)
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), rtol=1e-6)


@pytest.mark.parametrize("size", [(96, 64), (101, 79), (1500, 900), (1024, 1024), (3000, 80)])
def test_a_reference_is_seen_as_diffusers_sees_it(size):
    image, processor = photo(*size), Flux2ImageProcessor(vae_scale_factor=16)
    seen = processor._resize_if_exceeds_area(image)
    width, height = (side // 16 * 16 for side in seen.size)
    expected = processor._resize_and_crop(seen, width, height)
    got = reference_pixels(image, 16)
    assert got.size == expected.size
    assert got.tobytes() == expected.tobytes()


def test_what_the_language_models_are_told():
    chat = byte_tokenizer().apply_chat_template(
        [{"role": "user", "content": "a {cat}"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert QWEN3_CHAT.text("a {cat}") == chat
    mistral = MISTRAL_CHAT.text("a {cat}[IMG]")
    assert mistral == f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]a {{cat}}[/INST]"


# -- files -------------------------------------------------------------------------------------------------------


def test_every_memory_mode_is_the_same(folder):
    first, *others = (load(folder, "numpy", memory=mode)("a cat", steps=2) for mode in MODES)
    assert all(first == other for other in others)


def test_inspect_knows_all_of_it(folder):
    report = inspect(folder)
    assert report.ok, report.text()
    assert report.checkpoint.family is FLUX2_KLEIN
    for title in ("FLUX.2 transformer", "Qwen3", "VAE", "of its own size, without guidance built in"):
        assert title in report.text()


def test_a_distilled_one_takes_four_steps_without_guidance(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "minflux.json").unlink()
    index = json.loads((model / "model_index.json").read_text())
    base = load(model, "numpy").defaults
    assert (base.steps, base.guidance, base.width, base.text_length) == (50, 4.0, 1024, 512)
    (model / "model_index.json").write_text(json.dumps(index | {"is_distilled": True}))
    distilled = load(model, "numpy").defaults
    assert (distilled.steps, distilled.guidance) == (4, 1.0)


def test_a_distilled_one_on_the_hub_refuses_guidance_before_its_weights_are_fetched(folder, tmp_path, monkeypatch):
    """From the settings that are fetched first alone."""
    for name in hub.SETTINGS:
        if (folder / name).exists() and name != "minflux.json":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(folder / name, tmp_path / name)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"is_distilled": True}))
    monkeypatch.setattr(hub, "fetch", lambda name, files: tmp_path)
    refused = run("generate", "a cat", "--model", "somebody/klein", "--negative-prompt", "rain")
    assert_refused(refused, "negative_prompt has no effect")


def test_bfl_s_file_gives_the_same_weights(folder, tmp_path):
    nx = get_backend("numpy")
    flat = flatten(load_component(folder, "transformer", nx)[1])
    again = convert_flux2_transformer_checkpoint_to_diffusers({n: torch.from_numpy(a.copy()) for n, a in flat.items()})
    theirs = read_safetensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", nx)
    assert again.keys() == theirs.keys()
    assert all((again[name].numpy() == array).all() for name, array in theirs.items())

    model = shutil.copytree(folder, tmp_path / "model")
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    write_safetensors(model / "flux2.safetensors", {f"model.diffusion_model.{n}": w for n, w in flat.items()})
    opened = open_file(model / "flux2.safetensors")
    assert opened.components["transformer"].naming.name == "bfl"
    assert not any(opened.unexpected_keys.values())
    expected = load(folder, nx)("a cat", steps=2)
    assert load(model / "flux2.safetensors", nx)("a cat", steps=2) == expected
    assert load(model, nx)("a cat", steps=2) == expected


def test_bfl_s_vae_gives_the_same_weights(folder, tmp_path):
    nx = get_backend("numpy")
    cfg, p = load_component(folder, "vae", nx)
    bfl = FLUX2_VAE.naming("bfl").store(flatten(p), cfg)
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.bias", "bn.running_var"} <= bfl.keys()
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    steps = {"bn.num_batches_tracked": np.array(7, np.int32)}
    write_safetensors(model / "vae" / "diffusion_pytorch_model.safetensors", bfl | steps)
    again_cfg, again = load_component(model, "vae", nx)
    assert again_cfg == cfg == VAE
    assert all((flatten(again)[name] == array).all() for name, array in flatten(p).items())


def test_the_command_draws_and_draws_again(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    photo(96, 64).save("seen.png")
    settings = ["--model", str(folder), "--backend", "numpy", "--reference", "seen.png", "--out", "one.png"]
    done = run(main, ["generate", "a cat", *settings])
    assert done.exit_code == 0, done.output
    expected = load(folder, "numpy")("a cat", reference="seen.png")
    assert expected.size == (96, 64)
    assert Image.open("one.png").tobytes() == expected.tobytes()
    done = run(main, ["generate", "--from", "one.png", "--out", "two.png"])
    assert done.exit_code == 0, done.output
    assert Image.open("two.png").tobytes() == expected.tobytes()


def test_prompts_are_kept(folder, tmp_path):
    pipe = load(folder, "numpy", cache=tmp_path)
    first = pipe.encode("a cat", guidance=1.0)
    assert pipe.is_kept("a cat")
    again = load(folder, "numpy", cache=tmp_path).encode("a cat", guidance=1.0)
    assert (first.txt == again.txt).all()
    assert again.y.shape == (1, 0)


def test_converted_it_draws_the_same_and_diffusers_opens_it(folder, tmp_path):
    with pytest.warns(UserWarning, match="left out 12 weights that are not needed"):
        convert(folder, tmp_path / "out", "diffusers")
    report = inspect(tmp_path / "out")
    assert report.ok, report.text()
    assert load(tmp_path / "out", "numpy")("a cat", steps=2) == load(folder, "numpy")("a cat", steps=2)
    for kind, name in ((Flux2Transformer2DModel, "transformer"), (AutoencoderKLFlux2, "vae")):
        kind.from_pretrained(tmp_path / "out" / name)


def test_8_bits_draw_nearly_the_same(folder, tmp_path):
    with pytest.warns(UserWarning, match="weights that are not needed"):
        convert(folder, tmp_path / "out", "minflux", bits=8)
    assert "quantised to 8 bits" in inspect(tmp_path / "out").text()
    pipe, exact = load(tmp_path / "out", "numpy"), load(folder, "numpy")
    got, expected = (np.asarray(p("a cat", steps=2), np.int16) for p in (pipe, exact))
    assert 0 < np.abs(got - expected).mean() < 4  # of 255 levels; weights drawn at random don't average errors out


def test_dev_s_folder_is_known_and_draws(folder, tmp_path):
    model, rng = shutil.copytree(folder, tmp_path / "model"), np.random.default_rng(0)
    index = json.loads((model / "model_index.json").read_text()) | {"_class_name": "Flux2Pipeline"}
    (model / "model_index.json").write_text(json.dumps(index))
    (model / "minflux.json").write_text(json.dumps({"width": 64, "height": 64, "steps": 2, "text_length": 256}))
    text, flux = MistralConfig(**vars(TEXT)), replace(FLUX, guidance_embed=True)
    for name, cfg, shapes in (("text_encoder", text, decoder_shapes(text)), ("transformer", flux, flux2_shapes(flux))):
        shutil.rmtree(model / name)
        save_component(model, name, cfg, tiny_model.random_tree(shapes, rng))
    with pytest.raises(CheckpointError, match="expected a token '<s>'"):
        load(model, "numpy")
    byte_tokenizer(["<s>", *MISTRAL_CHAT.marks[1:]]).save_pretrained(model / "tokenizer")
    report = inspect(model)
    assert report.ok, report.text()
    assert report.checkpoint.family is FLUX2_FAMILY
    pipe = load(model, "numpy")
    assert pipe.built_in_guidance
    assert pipe("a cat", guidance=3.0) != pipe("a cat", guidance=5.0)
    write_safetensors(model / "flux2-dev.safetensors", flatten(pipe.flux[1]))
    assert open_file(model / "flux2-dev.safetensors").family is FLUX2_FAMILY  # as its text encoder tells


def test_what_cannot_be_honoured_is_said(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a FLUX\.2, of which no bfl file is written"):
        convert(folder, tmp_path / "out.safetensors", "bfl")
    with pytest.raises(ArgumentError, match=r"lora: minflux loads a FLUX\.2 klein without"):
        load(folder, "numpy", lora=["some.safetensors"])
    with pytest.raises(ArgumentError, match=r"minflux trains a FLUX\.1 on images, and 'klein' is another model"):
        open_subject(open_model(folder), get_backend("numpy"), "klein", tmp_path)
    pipe = load(folder, "numpy")
    with pytest.raises(ArgumentError, match="reference_layout must be one of 'offset'"):
        pipe("a cat", reference=photo(64, 64), reference_layout="index")
    with pytest.raises(ArgumentError, match="reference: 10 × 64 pixels are too few"):
        pipe("a cat", reference=photo(10, 64))
    with pytest.raises(ArgumentError, match=r"reference: .* pixels are too few"):
        pipe("a cat", reference=photo(1_500_000, 1))
    with pytest.raises(ArgumentError, match="image_prompt: this model takes none"):
        pipe("a cat", image_prompt=photo(64, 64))
    with pytest.raises(ArgumentError, match="the model takes no control image"):
        pipe("a cat", control=photo(64, 64))


@pytest.mark.parametrize("cfg", [VAE, replace(VAE, decoder_widths=(2, 4, 4, 6))], ids=["usual", "smaller decoder"])
def test_a_vae_s_config_is_read_off_its_shapes_and_written(cfg):
    for naming in FLUX2_VAE.namings[:2]:
        shapes = {naming.our_part(n, None): shape for n, shape in FLUX2_VAE.file_shapes(naming, cfg).items()}
        assert FLUX2_VAE.sizes(Sizes("vae", shapes), VAE) == cfg
    assert FLUX2_VAE.read_config(json.loads(json.dumps(FLUX2_VAE.write_config(cfg)))) == cfg


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"decoder_block_out_channels": [2, 4]}, "decoder_block_out_channels: expected 4 multiples of 2, found .2, 4"),
        ({"batch_norm_eps": 0.0}, "batch_norm_eps: expected a number above 0, found 0.0"),
        ({"patch_size": [4, 4]}, "patch_size: expected .2, 2., found .4, 4"),
    ],
)
def test_a_vae_that_cannot_be_run(wrong, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        FLUX2_VAE.read_config(FLUX2_VAE.write_config(VAE) | wrong)


# -- the published ones ------------------------------------------------------------------------------------------


def in_8_bits(component, cfg):
    """Names and shapes of a component's own file in which all matrices are quantised that may be."""
    shapes = {}
    for name, shape in component.file_shapes(component.own_naming, cfg).items():
        quantised = component.is_quantisable(name, shape, GROUP)
        shapes |= packed_shapes(name, shape, 8) if quantised else {name: shape}
    return shapes


@pytest.mark.parametrize("name", FLUX2_PRESETS)
def test_inspect_knows_bfl_s_files_by_their_shapes(tmp_path, name):
    write_hole(tmp_path / "flux2.safetensors", flux2_shapes(FLUX2_PRESETS[name]))
    report = inspect(tmp_path / "flux2.safetensors")
    assert report.ok, report.text()
    assert f"    {name}, with" in report.text()
    assert report.checkpoint.components["transformer"].config == FLUX2_PRESETS[name]


def test_klein_4b_in_8_bits_takes_less_than_16_gb(tmp_path):
    parts = {"transformer": (FLUX2_TRANSFORMER, KLEIN_4B), "vae": (FLUX2_VAE, FLUX2_VAE_SIZES)}
    parts |= {"text_encoder": (QWEN3, QWEN3_4B)}
    for name, (component, cfg) in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(component.write_config(cfg)))
        shapes = in_8_bits(component, cfg)
        packed = [name for name in shapes if f"{stem_of(name)}.scales" in shapes and name.endswith(".weight")]
        write_hole(tmp_path / name / "minflux.safetensors", shapes, packed)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    report = inspect(tmp_path)
    assert report.ok, report.text()
    assert "klein 4B" in report.text()
    components = report.checkpoint.components
    gb = {mode: (held(components, mode) / 1e9, held(components, mode, None, blockwise=True) / 1e9) for mode in MODES}
    assert gb["resident"] == pytest.approx((10.2, 8.5), abs=0.05)  # in float32 on a CPU, as stored on a GPU
    assert gb["staged"] == pytest.approx((5.0, 4.5), abs=0.05)
