"""From a prompt to a picture: the same as diffusers' FluxPipeline at every step, and clear about bad input."""

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

import minflux
from minflux import zoo
from minflux.backend import get_backend
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.tree import flatten
from minflux.errors import ArgumentError, BackendError, CheckpointError, MinfluxError
from minflux.inference import flux1
from minflux.inference.load import DEFAULTS, DEV_DEFAULTS, SCHNELL_DEFAULTS, load
from minflux.inference.pipeline import Pipeline
from minflux.inference.text import PromptTruncated
from minflux.sampling.guidance import Guidance
from minflux.sampling.noise import noise
from minflux.sampling.solvers import SOLVERS, Step
from tests import compare, tiny_model
from tests.conftest import CHOSEN

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
PROMPTS = ["a cat left of an apple on a blue background", ""]


@pytest.fixture(scope="session")
def folders(model, dev_model) -> dict[str, Path]:
    """A random model of each kind: "plain" is guided by two passes a step, "dev" has its guidance built in."""
    return {"plain": model, "dev": dev_model}


@pytest.fixture
def folder(folders) -> Path:
    return folders["plain"]


@pytest.fixture
def pipe(folder) -> Pipeline:
    return minflux.load(folder)


def steps_of(pipe: Pipeline, prompt, **settings) -> list[Step]:
    """Call the pipeline, and return its steps in place of its images."""
    steps: list[Step] = []
    pipe(prompt, on_step=steps.append, **settings)
    return steps


# -- the same as diffusers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What to draw, and with which model."""

    kind: str
    guidance: float | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    width: int = 64
    height: int = 64
    steps: int = 4

    def ours(self) -> dict:
        """Say it in minflux's words."""
        return {name: value for name, value in vars(self).items() if name != "kind"}

    def theirs(self) -> dict:
        """Say it in diffusers' words."""
        size = {"width": self.width, "height": self.height, "num_inference_steps": self.steps}
        negative = {"negative_prompt": [self.negative_prompt or ""] * len(PROMPTS)}
        if self.kind == "dev":
            return {**size, **negative, "guidance_scale": self.guidance, "true_cfg_scale": self.true_cfg_scale or 1}
        return {**size, **negative, "true_cfg_scale": self.guidance or self.true_cfg_scale or 1}


CASES = {
    "one pass": Case("plain", guidance=1.0),
    "away from nothing": Case("plain", guidance=3.0, steps=3),
    "away from a negative prompt, wide": Case("plain", 2.0, "a hat, red background", width=96),
    "by diffusers' name": Case("plain", negative_prompt="a hat", true_cfg_scale=1.5, steps=2),
    "guidance 0 is none": Case("plain", guidance=0.0, steps=2),
    "dev": Case("dev", guidance=3.5),
    "dev, away from a negative prompt": Case("dev", 2.5, "a hat, red background", true_cfg_scale=3.0, steps=3),
    "dev, away from nothing": Case("dev", 3.5, true_cfg_scale=2.0, steps=2),
    "dev, tall, one step": Case("dev", guidance=1.0, height=112, steps=1),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def drawn(request, folders):
    """A case, its initial latents, and what diffusers made of them."""
    case = request.param
    latents = torch.randn(len(PROMPTS), 4, case.height // 8, case.width // 8)
    return case, latents, *draw_by_diffusers(folders[case.kind], PROMPTS, latents, **case.theirs())


def draw_by_diffusers(folder: Path, prompts: list[str], latents: torch.Tensor, length: int = 24, **settings):
    """Return every step's latents (B, h, w, C), and the pictures (B, H, W, 3) in [0, 1]."""
    pipe, steps = FluxPipeline.from_pretrained(folder), []
    pipe.set_progress_bar_config(disable=True)

    def keep(pipe, index, t, tensors):
        height, width = (8 * n for n in latents.shape[2:])
        steps.append(pipe._unpack_latents(tensors["latents"], height, width, 8).permute(0, 2, 3, 1))
        return tensors

    pictures = pipe(
        prompts, latents=pipe._pack_latents(latents, *latents.shape), max_sequence_length=length, output_type="np",
        callback_on_step_end=keep, **settings,
    )  # fmt: skip
    return steps, pictures.images


@FLOAT32
def test_every_step_and_the_picture_are_diffusers(trial, drawn, folders):
    case, latents, expected, pictures = drawn
    pipe = load(folders[case.kind], trial.nx)
    steps = steps_of(pipe, PROMPTS, latents=latents.numpy(), **case.ours())
    for step, theirs in zip(steps, expected, strict=True):
        trial.close("pipeline, each step's latents", step.x, theirs, compare.MODEL)
    assert np.abs(pipe.decode(steps[-1].x) / 255 - pictures).max() <= 2 / 255
    assert pictures.std() * 255 > 20  # no flat picture, which would be easy to get right


@FLOAT32
def test_a_seed_draws_what_it_draws_in_diffusers(trial, folder):
    theirs = FluxPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        PROMPTS[0], generator=torch.Generator().manual_seed(7), num_inference_steps=2, width=64, height=48,
        max_sequence_length=24, output_type="np",
    ).images[0]  # fmt: skip
    got = load(folder, trial.nx)(PROMPTS[0], seed=7, steps=2, width=64, height=48, guidance=1.0)
    assert np.abs(np.asarray(got) / 255 - expected).max() <= 2 / 255


@pytest.mark.weights
@pytest.mark.parametrize("backend", [name for name in CHOSEN if name in ("numpy", "mlx")])
def test_the_shipped_model_draws_what_diffusers_draws_with_it(backend):
    tiny = zoo.FOLDER / "tiny"
    prompts, latents = ["a small bee above a car on a pink background", PROMPTS[0]], noise(7, (2, 16, 16, 16))
    pipe = minflux.load("tiny", backend)
    settings = {"num_inference_steps": 20, "true_cfg_scale": 2.0, "negative_prompt": ["", ""]}
    settings |= {"width": 128, "height": 128, "length": pipe.defaults.text_length}
    _, pictures = draw_by_diffusers(tiny, prompts, torch.from_numpy(latents), **settings)
    images = pipe(prompts, latents=latents, steps=20, guidance=2.0)
    assert np.abs(np.stack(images) / 255 - pictures).max() <= 2 / 255


# -- seeds and batches ---------------------------------------------------------------------------------------


def test_the_noise_is_the_same_on_every_backend(nx, folder):
    pipe = load(folder, nx)
    (step,) = pipe.sample(pipe.encode(PROMPTS), 5, 1, height=48, width=64)
    expected = np.concatenate([noise(seed, (1, 4, 6, 8)) for seed in (5, 6)]).transpose(0, 2, 3, 1)
    (same,) = pipe.sample(pipe.encode(PROMPTS), 9, 1, start=nx.array(expected))
    np.testing.assert_array_equal(nx.to_numpy(step.x), nx.to_numpy(same.x), strict=True)


def test_numbers_of_numpy_are_numbers(pipe):
    whole = {"seed": np.int64(3), "steps": np.uint8(1), "width": np.int32(64), "guidance": np.float32(2)}
    assert pipe("a cat", **whole) == pipe("a cat", seed=3, steps=1, width=64, guidance=2)


@pytest.mark.parametrize("kind", ["plain", "dev"])
def test_a_batch_is_its_single_runs(nx, kind, folders):
    pipe, seeds = load(folders[kind], nx), [3, 2**40]
    *_, batch = steps_of(pipe, PROMPTS, seed=seeds, steps=3)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        *_, single = steps_of(pipe, prompt, seed=seed, steps=3)
        assert compare.relative_error(nx.to_numpy(batch.x)[i], nx.to_numpy(single.x)[0]) <= 1e-5
        assert np.abs(pipe.decode(batch.x)[i].astype(int) - pipe.decode(single.x)[0]).max() <= 1


def test_one_seed_for_a_batch_counts_on(pipe):
    first, second = pipe(["a cat", "a cat"], seed=[3, 4], steps=1)
    again = pipe(["a cat", "a cat"], seed=3, steps=1)
    assert [first, second] == again
    assert first != second


def test_latents_take_the_place_of_the_seed(nx, folder):
    pipe, nchw = load(folder, nx), noise(7, (1, 4, 6, 8))
    (expected,) = steps_of(pipe, "a cat", steps=1, width=64, height=48, seed=7)
    for latents in (nchw, nx.array(nchw), torch.from_numpy(nchw), nchw.tolist()):
        (got,) = steps_of(pipe, "a cat", steps=1, width=64, height=48, latents=latents)
        np.testing.assert_array_equal(nx.to_numpy(got.x), nx.to_numpy(expected.x))


# -- one step at a time --------------------------------------------------------------------------------------


def test_the_call_is_made_of_its_steps(nx, folders):
    for folder in folders.values():
        pipe = load(folder, nx)
        text = pipe.encode(PROMPTS)
        *_, last = pipe.sample(text, seed=3, steps=2)
        images = pipe(PROMPTS, seed=3, steps=2)
        np.testing.assert_array_equal(pipe.decode(last.x), np.stack(images))


def test_conditioning_has_a_negative_prompt_where_the_model_needs_one(folders):
    plain, dev = (minflux.load(folders[kind]) for kind in ("plain", "dev"))
    text = plain.encode(PROMPTS)
    assert (text.txt.shape, text.y.shape) == ((2, 24, 24), (2, 16))
    assert (text.negative.txt.shape, text.negative.y.shape) == ((2, 24, 24), (2, 16))
    assert plain.encode(PROMPTS, guidance=1.0).negative is None
    assert dev.encode(PROMPTS).negative is None
    assert dev.encode(PROMPTS, "a hat").negative is not None
    assert dev.encode(PROMPTS, true_cfg_scale=2).negative is not None


def test_steps_are_counted_and_fall_to_0(pipe):
    steps = list(pipe.sample(pipe.encode(PROMPTS, guidance=1.0), steps=3, guidance=1.0))
    assert [(step.index, step.x.shape) for step in steps] == [(i, (2, 8, 8, 4)) for i in range(3)]
    np.testing.assert_allclose([step.t for step in steps], [2 / 3, 1 / 3, 0], atol=1e-6)


def test_a_run_may_be_stopped_early(pipe, monkeypatch):
    calls = []
    count = flux1.velocity
    monkeypatch.setattr(flux1, "velocity", lambda *args, **how: calls.append(args) or count(*args, **how))
    text = pipe.encode("a cat")
    whole = list(pipe.sample(text, steps=5))
    calls.clear()
    part = list(islice(pipe.sample(text, steps=5), 3))
    assert len(calls) == 3
    np.testing.assert_array_equal(part[2].x, whole[2].x)


def test_sampling_goes_on_from_where_it_stopped(nx, folders):
    """As img2img does: other latents to begin with, and the timesteps that are left."""
    for folder in folders.values():
        pipe = load(folder, nx)
        text = pipe.encode(PROMPTS)
        timesteps = pipe.schedule.timesteps(5, tokens=24)
        whole = list(pipe.sample(text, seed=3, steps=5, width=96, height=64))
        rest = list(pipe.sample(text, start=whole[1].x, timesteps=timesteps[2:]))
        assert [step.t for step in rest] == [step.t for step in whole[2:]]
        assert compare.relative_error(nx.to_numpy(rest[-1].x), nx.to_numpy(whole[-1].x)) <= 1e-5


def test_a_velocity_that_is_wrapped_is_followed(pipe):
    """As an edit does: v' made of v, the same solvers."""
    text, x = pipe.encode("a cat", guidance=1.0), noise(3, (1, 8, 8, 4))
    v = pipe.velocity(text, (8, 8), Guidance())
    timesteps = pipe.schedule.timesteps(2, tokens=16)
    held = [step.x for step in SOLVERS["euler"](lambda x, t: 0 * v(x, t), x, timesteps)]
    np.testing.assert_array_equal(held, [x, x])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_comes_to_its_own_image(nx, folder, solver):
    pipe = load(folder, nx)
    settings = {"seed": 3, "steps": 6, "guidance": 1.0}
    euler, other = (np.asarray(pipe("a cat", **settings, solver=name), float) for name in ("euler", solver))
    assert np.abs(euler - other).mean() < 20
    assert (solver == "euler") == bool((euler == other).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_a_solver_needs_is_computed_ahead(pipe, monkeypatch, solver):
    """Modulations, more than a quarter of FLUX.1's weights, are computed once an image, not once an evaluation."""
    calls = []
    once = flux1.modulations
    monkeypatch.setattr(flux1, "modulations", lambda *args: calls.append(args) or once(*args))
    pipe("a cat", steps=3, solver=solver)
    assert len(calls) == 1


def test_a_velocity_is_there_at_every_t(nx, folders):
    """At a t that was announced, and at one that was not."""
    for folder in folders.values():
        pipe = load(folder, nx)
        guidance = Guidance(3.5 if pipe.built_in_guidance else None)
        text, x = pipe.encode("a cat"), nx.array(noise(3, (1, 8, 8, 4)))
        announced = pipe.velocity(text, (8, 8), guidance, [0.0, 0.3, 1.0])
        fresh = pipe.velocity(text, (8, 8), guidance)
        for t in (0.0, 0.3, 1.0, np.float32(0.3)):
            error = compare.relative_error(nx.to_numpy(fresh(x, t)), nx.to_numpy(announced(x, t)))
            assert error <= 1e-5


def test_on_step_is_called_after_every_step(pipe):
    steps: list[Step] = []
    image = pipe("a cat", steps=3, on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2]
    np.testing.assert_array_equal(np.asarray(image), pipe.decode(steps[-1].denoised)[0])


def test_what_is_not_given_is_the_models_default(pipe):
    """DEFAULTS of tests/tiny_model.py."""
    image = pipe("a cat", seed=0, steps=4, guidance=2.0, negative_prompt="", width=64, height=64)
    assert pipe("a cat") == image
    assert pipe("a cat", guidance=2.5) != image


def test_a_prompt_too_long_is_cut_with_one_warning(pipe):
    """T5 reads 24 tokens of it; that CLIP reads no more either goes without saying."""
    with pytest.warns(PromptTruncated) as caught:
        pipe.encode(["a cat " * 30])
    assert len(caught) == 1


# -- bad input -----------------------------------------------------------------------------------------------

NAN = np.full((1, 4, 8, 8), np.nan, np.float32)
BAD = {
    "prompt": [{"prompt": bad} for bad in (3, None, [], (), ["a cat", 3], b"a cat", {"a": "cat"})],
    "steps": [{"steps": bad} for bad in (0, -1, 2.0, "4", True)],
    "seed": [{"seed": bad} for bad in (-1, 0.5, "7", True, 2**64, [1, 2], [], [-1])],
    "guidance": [{"guidance": bad} for bad in (-1, float("nan"), float("inf"), "2", True, 10**400)],
    "true_cfg_scale": [{"true_cfg_scale": bad} for bad in (-1, float("nan"), "2")],
    "solver": [{"solver": bad} for bad in ("rk4", "", None, 3, ["euler"])],
    "negative_prompt": [{"negative_prompt": bad} for bad in (3, ["a hat"])],
    "width": [{"width": bad} for bad in (65, 8, 0, -64, 64.0, "64", True, float("nan"), float("inf"))],
    "height": [{"height": bad} for bad in (60, 2**70 + 1)],
    "latents": [{"latents": bad} for bad in (NAN, NAN[0], np.ones((1, 8, 8, 4)), np.ones((2, 4, 8, 8)), "noise", {})],
}


@pytest.mark.parametrize(
    ("argument", "settings"),
    [pytest.param(name, bad, id=f"{bad}"[:40]) for name, several in BAD.items() for bad in several],
)
def test_bad_input_is_named_in_one_line(pipe, argument, settings):
    with pytest.raises(ArgumentError, match=rf"^{argument}\b") as caught:
        pipe(**{"prompt": "a cat", "steps": 1} | settings)
    assert "\n" not in str(caught.value)


def test_the_nearest_size_is_named(pipe):
    with pytest.raises(ArgumentError, match="width must be a multiple of 16 pixels, got 70; the nearest is 64"):
        pipe("a cat", width=70)


def test_bad_input_is_told_before_anything_is_computed(pipe, monkeypatch):
    monkeypatch.setattr(flux1, "t5_encoder", None)
    for bad in ({"steps": 0}, {"width": 65}, {"seed": -1}, {"latents": NAN}, {"negative_prompt": 3}, {"solver": "rk4"}):
        with pytest.raises(ArgumentError):
            pipe("a cat", **bad)


def test_bad_input_is_told_before_the_first_step(pipe):
    text = pipe.encode("a cat")
    with pytest.raises(ArgumentError, match="steps must be"):
        pipe.sample(text, steps=0)  # not iterated


@pytest.mark.parametrize("guidance", [0, 1.0])
def test_a_negative_prompt_without_guidance_is_refused(pipe, guidance):
    with pytest.raises(ArgumentError, match="negative_prompt has no effect at guidance 1: raise guidance, or leave it"):
        pipe("a cat", guidance=guidance, negative_prompt="a hat")
    assert pipe("a cat", guidance=guidance, negative_prompt="") == pipe("a cat", guidance=1)


def test_two_names_of_one_scale_are_refused(pipe):
    with pytest.raises(ArgumentError, match=r"true_cfg_scale: this model has no built-in guidance, .* one of them"):
        pipe("a cat", guidance=2.0, true_cfg_scale=2.0)
    assert pipe("a cat", true_cfg_scale=2.0) == pipe("a cat", guidance=2.0)


def test_conditioning_that_lacks_what_guidance_needs_is_refused(pipe):
    with pytest.raises(ArgumentError, match=r"^conditioning has no negative prompt, which a guidance scale of 3 needs"):
        pipe.sample(pipe.encode("a cat", guidance=1), guidance=3.0)
    with pytest.raises(ArgumentError, match=r"^conditioning has no negative prompt; encode"):
        pipe.velocity(pipe.encode("a cat", guidance=1), (8, 8), Guidance(scale=3.0))


def test_a_negative_prompt_that_was_encoded_in_vain_is_refused(folders):
    pipe = minflux.load(folders["dev"])
    text = pipe.encode("a cat", "a hat")
    with pytest.raises(ArgumentError, match=r"conditioning has a negative prompt, which has no effect .*_cfg_scale"):
        pipe.sample(text, guidance=2.0)
    (asked,) = pipe.sample(text, steps=1, true_cfg_scale=1)
    (without,) = pipe.sample(pipe.encode("a cat"), steps=1)
    np.testing.assert_allclose(asked.x, without.x, rtol=1e-4, atol=1e-5)


def test_a_start_or_timesteps_that_cannot_be(pipe):
    text = pipe.encode("a cat")
    with pytest.raises(ArgumentError, match=r"start must have shape \(1, 8, 8, 4\) \(batch, height, width, channels\)"):
        pipe.sample(text, start=np.zeros((1, 4, 8, 8)), width=64, height=64)
    with pytest.raises(ArgumentError, match="timesteps take the place of steps"):
        pipe.sample(text, steps=3, timesteps=[1, 0.5, 0])


def test_a_negative_prompt_beside_built_in_guidance_alone_is_refused(folders):
    with pytest.raises(ArgumentError, match=r"negative_prompt has no effect .*: raise true_cfg_scale, or leave it out"):
        minflux.load(folders["dev"])("a cat", negative_prompt="a hat")


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_latents_that_cannot_be_decoded(nx, folder):
    with pytest.raises(ArgumentError, match="latents: the image came out as NaN"):
        load(folder, nx).decode(nx.array(np.full((1, 8, 8, 4), 3e38, np.float32)))
    with pytest.raises(ArgumentError, match="latents must be finite numbers"):
        load(folder, nx).decode(nx.array(NAN.transpose(0, 2, 3, 1)))


# -- loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "dev"])
def test_a_saved_model_is_the_same_model(kind, folders):
    made, loaded = tiny_model.pipeline(guidance=kind == "dev"), minflux.load(folders[kind])
    assert (loaded.schedule, loaded.defaults, loaded.name) == (made.schedule, made.defaults, str(folders[kind]))
    for part in ("flux", "vae", "clip", "t5"):
        (cfg, p), (expected_cfg, expected) = getattr(loaded, part), getattr(made, part)
        assert cfg == expected_cfg
        for name, weight in flatten(expected).items():
            np.testing.assert_array_equal(flatten(p)[name], weight, err_msg=name, strict=True)


@pytest.mark.parametrize(("kind", "expected"), [("plain", SCHNELL_DEFAULTS), ("dev", DEV_DEFAULTS)])
def test_a_folder_of_others_is_drawn_with_as_schnell_or_dev(kind, expected, folders, tmp_path):
    copy = shutil.copytree(folders[kind], tmp_path / "model")
    (copy / DEFAULTS).unlink()
    assert minflux.load(copy).defaults == expected


@pytest.mark.parametrize("kind", ["plain", "dev"])
def test_a_transformer_under_bfls_names_inside_a_folder(kind, folders, tmp_path):
    """As flux1-dev.safetensors lies in FLUX.1-dev; the file itself says whether guidance is built in."""
    file = shutil.copytree(folders["plain"], tmp_path / "model") / "flux1.safetensors"
    write_safetensors(file, flatten(minflux.load(folders[kind]).flux[1]))
    (got_cfg, got), (cfg, expected) = minflux.load(file).flux, minflux.load(folders[kind]).flux
    assert got_cfg == cfg
    for name, weight in flatten(expected).items():
        np.testing.assert_array_equal(flatten(got)[name], weight, err_msg=name, strict=True)


def test_auto_is_numpy_unless_mlx_has_a_gpu(folder, monkeypatch):
    pytest.importorskip("mlx.core")
    for on_gpu, expected in ((False, "numpy"), (True, "mlx")):
        monkeypatch.setattr(type(get_backend("mlx")), "on_gpu", on_gpu)
        assert minflux.load(folder, backend="auto").nx.name == expected


def test_an_unknown_model():
    with pytest.raises(ArgumentError, match=r"^model 'nonsense' is neither a folder nor a file"):
        minflux.load("nonsense")


def test_an_unknown_backend(folder):
    with pytest.raises(BackendError, match="unknown backend 'torch': choose 'auto', 'mlx' or 'numpy'"):
        minflux.load(folder, backend="torch")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}: holds no part of FLUX.1"):
        minflux.load(tmp_path)


@pytest.mark.parametrize("missing", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "scheduler"])
def test_a_model_with_a_part_missing(missing, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(copy / missing)
    named = f"{copy}: expected the folder tokenizer" if missing == "tokenizer" else str(copy / missing)
    with pytest.raises(CheckpointError, match=named):
        minflux.load(copy)


# -- numbers that are none -----------------------------------------------------------------------------------


def test_nan_is_told_at_the_step_where_it_appears(model, nx):
    pipe = minflux.load(model, nx.name)
    weight = pipe.flux[1]["img_in"]["weight"]
    steps = pipe.sample(pipe.encode("a cat", guidance=1.0), steps=3, guidance=1.0)
    next(steps)
    pipe.flux[1]["img_in"]["weight"] = weight * float("nan")
    with pytest.raises(MinfluxError, match=r"^step 2 of 3: the numbers came out as NaN or infinity; load with dtype"):
        next(steps)


def test_nan_of_a_text_encoder_is_told_before_the_first_step(model, nx):
    pipe = minflux.load(model, nx.name)
    pipe.t5[1]["shared"]["weight"] = pipe.t5[1]["shared"]["weight"] * float("nan")
    with pytest.raises(MinfluxError, match=r"^the text encoders: the numbers came out as NaN"):
        pipe.encode("a cat")
