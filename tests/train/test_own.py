"""Training on one's own images: what is drawn in a step, what is kept, and runs that end as one that never stopped."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.safetensors import read_metadata, read_safetensors
from minflux.checkpoints.open import open_model
from minflux.commands.convert import convert
from minflux.errors import ArgumentError
from minflux.inference.flux1 import Flux1
from minflux.inference.text import PromptTruncated
from minflux.sampling.timesteps import Schedule
from minflux.train import loop, own, own_run
from minflux.train.captioned import read_folder
from minflux.train.latents import LatentsCache
from minflux.train.own_data import OwnTraining, draw_times, open_subject, prepare
from minflux.train.own_run import LoraSettings, Task, finetune, train_lora
from tests import tiny_model

HOW = OwnTraining(steps=4, lr=0.01, batch=2)
LORA = LoraSettings(rank=2, alpha=3.0)


@pytest.fixture(autouse=True)
def mlx(monkeypatch):
    """MLX as it trains, but that nothing is compiled (g++ takes longer than these few steps)."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    monkeypatch.setattr(type(nx), "compile", lambda self, function: function)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    return nx


@pytest.fixture
def photos(tmp_path):
    """Four images of three shapes, with captions."""
    return put_photos(tmp_path / "photos", [(64, 64), (100, 60), (64, 64), (60, 120)])


def put_photos(folder, sizes):
    folder.mkdir()
    rng = np.random.default_rng(len(sizes))
    for i, (width, height) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a cat number {i}")
    return folder


def task(tmp_path, model, photos, **settings) -> Task:
    return Task(str(model), photos, tmp_path / "cache", **{"how": HOW, "every": 2} | settings)


def subject_of(model, tmp_path, mlx):
    return open_subject(open_model(str(model)), mlx, "model", tmp_path / "cache")


# -- times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [256, 1024])
def test_times_are_logit_normal_and_shifted_as_the_steps_of_sampling(tokens):
    """Of FLUX.1-dev: the logits are normal, their mean being the logarithm of the shift, which grows with the size."""
    dev = Schedule(shift=3.0, use_dynamic_shifting=True)
    for schedule, mean in ((dev, dev.mu(tokens)), (Schedule(shift=3.0), np.log(3))):
        t = draw_times(np.random.default_rng(0), 20_000, schedule, tokens)
        assert t.dtype == np.float32
        logits = np.sort(np.log(t / (1 - t)))
        expected = np.array([NormalDist(mean, 1).cdf(x) for x in logits])
        apart = np.abs(expected - np.arange(1, 20_001) / 20_000).max()
        assert apart < 1.63 / np.sqrt(20_000)  # Kolmogorov and Smirnov, at 1%


# -- what a step draws ---------------------------------------------------------------------------------------


def test_a_batch_holds_the_images_own_latents_and_texts(mlx, model, photos, tmp_path):
    images = read_folder(photos)
    data = prepare(subject_of(model, tmp_path, mlx), [images], replace(HOW, side=64, batch=2))
    pipe = minflux.load(model, mlx)
    for seed in range(6):
        x0, noise, t, txt, y = data.batch(np.random.default_rng(seed))
        chosen = data.choose(np.random.default_rng(seed))
        assert x0.shape == noise.shape == (2, chosen[0].size[1] // 8, chosen[0].size[0] // 8, 4)
        assert t.shape == (2,)
        for i, sample in enumerate(chosen):
            text = pipe.encode([sample.caption], guidance=1.0)
            np.testing.assert_array_equal(txt[i], mlx.to_numpy(text.txt)[0])
            np.testing.assert_array_equal(y[i], mlx.to_numpy(text.y)[0])
    square = Image.open(photos / "0.png")
    (sample,) = [sample for sample in data.samples if sample.caption == "a cat number 0"]
    np.testing.assert_array_equal(np.load(sample.latents), mlx.to_numpy(pipe.encode_image(square))[0])


def test_a_batch_is_of_one_size_and_folders_are_drawn_from_evenly(mlx, model, photos, tmp_path):
    known = put_photos(tmp_path / "known", [(64, 64)] * 12)
    data = prepare(subject_of(model, tmp_path, mlx), [read_folder(photos), read_folder(known)], replace(HOW, side=64))
    rng, drawn = np.random.default_rng(0), Counter()
    for _ in range(2000):
        chosen = data.choose(rng)
        assert len({sample.size for sample in chosen}) == 1
        drawn[chosen[0].weight] += 1
    assert drawn[1 / 4] / 2000 == pytest.approx(0.5, abs=0.05)


def test_no_image_is_twice_in_a_batch_while_there_are_enough(mlx, model, tmp_path):
    photos = put_photos(tmp_path / "photos", [(64, 64)] * 3)
    data = prepare(subject_of(model, tmp_path, mlx), [read_folder(photos)], replace(HOW, side=64, batch=3))
    for seed in range(20):
        assert len({sample.latents for sample in data.choose(np.random.default_rng(seed))}) == 3


def test_captions_are_left_out_as_often_as_asked(mlx, model, photos, tmp_path):
    how = replace(HOW, side=64, empty_captions=0.3)
    data = prepare(subject_of(model, tmp_path, mlx), [read_folder(photos)], how)
    empty, _ = data.text("")
    batches = [data.batch(np.random.default_rng(seed))[3] for seed in range(150)]
    share = np.mean([(row == empty[0]).all() for txt in batches for row in txt])
    assert share == pytest.approx(0.3, abs=0.08)


def test_a_caption_that_is_cut_is_told_of_once(mlx, model, photos, tmp_path, recwarn):
    (photos / "0.txt").write_text("a cat " * 30)
    data = prepare(subject_of(model, tmp_path, mlx), [read_folder(photos)], replace(HOW, side=64))
    for seed in range(10):
        data.batch(np.random.default_rng(seed))
    assert {warning.category for warning in recwarn} == {PromptTruncated}
    assert 1 <= len(recwarn) <= 2


# -- what is kept --------------------------------------------------------------------------------------------


def test_what_is_encoded_once_is_not_encoded_again(mlx, model, photos, tmp_path, monkeypatch):
    folders = [read_folder(photos)]
    first = prepare(subject_of(model, tmp_path, mlx), folders, replace(HOW, side=64))
    monkeypatch.setattr(Flux1, "_run_encoders", None)
    monkeypatch.setattr(Flux1, "_encode_pixels", None)
    again = prepare(subject_of(model, tmp_path, mlx), folders, replace(HOW, side=64))
    assert again.samples == first.samples
    for ours, theirs in zip(*(data.batch(np.random.default_rng(0)) for data in (first, again)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_caption_is_pushed_out_by_another(mlx, model, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MINFLUX_CACHE_GB", "0")
    data = prepare(subject_of(model, tmp_path, mlx), [read_folder(photos)], replace(HOW, side=64))
    assert all(data.pipe.is_kept(sample.caption) for sample in data.samples)


def test_latents_are_encoded_afresh_for_another_image_size_or_vae_and_where_damaged(photos, tmp_path):
    image, other, *_ = read_folder(photos)
    cache, made = LatentsCache(tmp_path / "kept", "one"), []

    def encode(pixels):
        made.append(pixels.shape)
        return np.ones((2, 2, 4), np.float32)

    path = cache.keep(image, (64, 64), encode)
    assert cache.keep(image, (64, 64), encode) == path
    assert made == [(64, 64, 3)]
    others = [cache.keep(image, (64, 80), encode), cache.keep(other, (64, 64), encode)]
    others.append(LatentsCache(tmp_path / "kept", "two").keep(image, (64, 64), encode))
    assert len({path, *others}) == len(made) == 4
    path.write_bytes(path.read_bytes()[:-8])
    cache.keep(image, (64, 64), encode)
    assert len(made) == 5
    assert np.load(path).shape == (2, 2, 4)


# -- stopping and going on -----------------------------------------------------------------------------------


class Crash(Exception):
    pass


def stopped_at(monkeypatch, step: int, stop) -> None:
    """Have the draw of a step's batch stop the run, once."""
    drawn = own.OwnData.batch
    monkeypatch.setattr(own.OwnData, "batch", lambda self, rng: stopping(self, rng))
    count = iter(range(1, 1000))

    def stopping(self, rng):
        if next(count) == step:
            monkeypatch.setattr(own.OwnData, "batch", drawn)
            raise stop
        return drawn(self, rng)


def test_a_lora_of_a_stopped_run_is_that_of_one_that_never_stopped(model, photos, tmp_path, monkeypatch):
    """Stopped in step 4: after a crash it goes on from the checkpoint of step 2, after Ctrl-C from step 3."""
    whole = tmp_path / "whole.safetensors"
    train_lora(task(tmp_path, model, photos), LORA, whole)
    for stop in (Crash, KeyboardInterrupt):
        stopped = tmp_path / f"{stop.__name__}.safetensors"
        stopped_at(monkeypatch, 4, stop)
        with pytest.raises(stop):
            train_lora(task(tmp_path, model, photos), LORA, stopped)
        assert not stopped.exists()
        train_lora(task(tmp_path, model, photos), LORA, stopped)
        assert stopped.read_bytes() == whole.read_bytes()
        for name in ("checkpoint.safetensors", "step-2.safetensors", "step-4.safetensors"):
            assert (stopped.with_suffix("") / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "whole" / "step-4.safetensors").read_bytes() == whole.read_bytes()
    assert (tmp_path / "whole" / "step-2.safetensors").read_bytes() != whole.read_bytes()


def test_a_model_of_a_stopped_run_is_that_of_one_that_never_stopped(model, photos, tmp_path, monkeypatch):
    finetune(task(tmp_path, model, photos), tmp_path / "whole")
    stopped_at(monkeypatch, 4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        finetune(task(tmp_path, model, photos), tmp_path / "stopped")
    finetune(task(tmp_path, model, photos), tmp_path / "stopped")
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "model").rglob("*.*"))
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_goes_on_as_it_began_or_not_at_all(mlx, model, dev_model, photos, tmp_path):
    def begin(folder=model, how=HOW, **others):
        subject = subject_of(folder, tmp_path, mlx)
        settings = own.settings_of(subject, [read_folder(photos)], how, **{"rank": 2} | others)
        own.claim(tmp_path / "run", settings)

    begin()
    begin()
    for change, words in (
        ({"how": replace(HOW, steps=5, lr=0.1)}, "is a run with lr 0.01, steps 4; go on with that"),
        ({"rank": 3}, "is a run with rank 2; go on with that"),
        ({"folder": dev_model}, "is a run with other model; go on with that"),
    ):
        with pytest.raises(ArgumentError, match=words):
            begin(**change)
    (photos / "0.txt").write_text("another caption")
    with pytest.raises(ArgumentError, match="is a run with other images; go on with that"):
        begin()


def test_a_run_among_the_images_is_refused(model, photos, tmp_path):
    with pytest.raises(ArgumentError, match="would be written among the images; choose a place outside"):
        train_lora(task(tmp_path, model, photos), LORA, photos.with_suffix(".safetensors"))
    assert read_folder(photos)


# -- what comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["schnell", "dev"])
def test_diffusers_draws_with_the_lora_what_minflux_draws(model, dev_model, photos, tmp_path, kind):
    folder, path = model if kind == "schnell" else dev_model, tmp_path / "mine.safetensors"
    train_lora(task(tmp_path, folder, photos, how=replace(HOW, steps=20, lr=0.03)), LORA, path)
    settings = {"num_inference_steps": 3, "width": 64, "height": 48, "max_sequence_length": 24, "output_type": "np"}
    theirs = FluxPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)

    def drawn() -> np.ndarray:
        return theirs("a cat", generator=torch.Generator().manual_seed(7), guidance_scale=2.0, **settings).images[0]

    plain = drawn()
    theirs.load_lora_weights(str(path))
    ours = minflux.load(folder, "mlx", lora=str(path))
    guidance = 2.0 if kind == "dev" else 1.0
    image = np.asarray(ours("a cat", seed=7, steps=3, width=64, height=48, guidance=guidance)) / 255
    assert np.abs(image - drawn()).max() <= 2 / 255
    assert np.abs(plain - drawn()).max() > 10 / 255


def test_the_file_is_as_peft_and_diffusers_write_it(model, photos, tmp_path):
    path = tmp_path / "mine.safetensors"
    train_lora(task(tmp_path, model, photos), replace(LORA, targets=("attn.to_q", "proj_out")), path)
    weights = read_safetensors(path, get_backend("numpy"))
    names = [
        "transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.1.attn.to_q",
        "single_transformer_blocks.1.proj_out",
    ]
    for name in names:
        assert weights[f"transformer.{name}.lora_A.weight"].shape[0] == 2
        assert weights[f"transformer.{name}.lora_B.weight"].shape[1] == 2
    settings = json.loads(read_metadata(path)["lora_adapter_metadata"])
    assert settings["transformer.r"] == settings["transformer.lora_alpha"] == 2
    assert set(names) <= set(settings["transformer.target_modules"])
    found = FluxPipeline.lora_state_dict(str(path), return_lora_metadata=True)
    assert set(found[0]) == set(weights)


def test_a_quantised_model_gets_a_lora_and_stays_as_it_is(model, photos, tmp_path):
    wide, packed, cfg = tmp_path / "wide", tmp_path / "packed", replace(tiny_model.FLUX, hidden_size=64, num_heads=4)
    shutil.copytree(model, wide)
    save_component(wide, "transformer", cfg, tiny_model.random_tree(flux_shapes(cfg), np.random.default_rng(0)))
    convert(wide, packed, "minflux", bits=8)
    before = {path: path.read_bytes() for path in packed.rglob("*.safetensors")}
    train_lora(task(tmp_path, packed, photos), LORA, tmp_path / "mine.safetensors")
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(ArgumentError, match="a quantised model can't be trained whole"):
        finetune(task(tmp_path, packed, photos), tmp_path / "whole")


def test_training_lowers_the_loss_of_the_images_it_is_shown(model, tmp_path):
    photos = put_photos(tmp_path / "photos", [(64, 64)])
    how = replace(HOW, steps=60, lr=0.02, batch=4)
    finetune(task(tmp_path, model, photos, how=how, every=60), tmp_path / "run", from_nothing=True)
    losses = [float(row.split(",")[1]) for row in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]]
    assert np.mean(losses[-15:]) < 0.9 * np.mean(losses[:5])
    trained = minflux.load(tmp_path / "run" / "model")
    assert trained.defaults == minflux.load(model).defaults
    theirs = FluxTransformer2DModel.from_pretrained(tmp_path / "run" / "model" / "transformer")
    assert sum(weight.numel() for weight in theirs.parameters()) > 1000


def test_images_are_generated_on_the_way(model, photos, tmp_path):
    train_lora(task(tmp_path, model, photos, prompts=("a cat", "a dog")), LORA, tmp_path / "mine.safetensors")
    with Image.open(tmp_path / "mine" / "step-4.png") as sheet:
        assert sheet.size == (4 * 64 + 3 * 4, 64)
    assert not list(tmp_path.glob("mine/*step-1.png"))


def test_images_that_are_enlarged_are_named(model, tmp_path):
    photos = put_photos(tmp_path / "photos", [(64, 64), (80, 40)])
    with pytest.warns(UserWarning, match=r"1 images are smaller than they are trained at: 1\.png"):
        train_lora(task(tmp_path, model, photos), LORA, tmp_path / "mine.safetensors")


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": 1.0}, {"empty_captions": 1.0}])
def test_settings_that_train_nothing(wrong):
    with pytest.raises(ArgumentError, match="must be at least 1"):
        replace(HOW, **wrong)


@pytest.mark.parametrize("side", [16, 40, -64])
def test_a_size_that_no_token_fits(side):
    with pytest.raises(ArgumentError, match=f"size must be a multiple of 16, at least 32, got {side}"):
        replace(HOW, side=side)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": 2000}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_a_lora_of_no_rank(wrong):
    with pytest.raises(ArgumentError, match="expected a rank from 1 to 1024 and an alpha above 0"):
        LoraSettings(**wrong)


def test_large_models_are_computed_twice_unless_told(model, photos, tmp_path, mlx, monkeypatch):
    subject = subject_of(model, tmp_path, mlx)
    one = task(tmp_path, model, photos)
    assert one.run_block(subject, bool) is own_run.run
    assert replace(one, recompute=True).run_block(subject, bool) is not own_run.run
    monkeypatch.setattr(own_run, "LARGE", 1000)
    assert one.run_block(subject, bool) is not own_run.run
    assert replace(one, recompute=False).run_block(subject, bool) is own_run.run
