"""`minflux train lora` and `finetune`: a folder of images in, a LoRA or a model out, and one line for what can't be."""

import numpy as np
import pytest
from PIL import Image

from minflux.backend import get_backend
from minflux.train import loop
from tests.commands.runner import assert_refused, pixels, run


@pytest.fixture
def photos(here, monkeypatch):
    """Two images with captions, in the folder where the commands run; nothing is compiled."""
    pytest.importorskip("mlx.core")
    monkeypatch.setattr(type(get_backend("mlx")), "compile", lambda self, function: function)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("MINFLUX_CACHE", str(here / "cache"))
    folder = here / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a cat")
    return folder


LORA = ("train", "lora", "--images", "photos", "--output", "mine.safetensors", "--steps", 2, "--lr", 0.05, "--model")


def test_a_lora_that_generate_takes(photos, model, here):
    result = run(*LORA, model, "--rank", 2, "--targets", "attn.to_v, ff.net.2", "--prompt", "a cat", "--every", 1)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (here / "mine").iterdir()} == {
        *("checkpoint.safetensors", "log.csv", "settings.json"),
        *("step-1.png", "step-1.safetensors", "step-2.png", "step-2.safetensors"),
    }
    for name, lora in (("with.png", ["--lora", "mine.safetensors"]), ("without.png", [])):
        result = run("generate", "a cat", "--model", model, "--steps", 2, "--out", name, *lora)
        assert result.exit_code == 0, result.output
    assert (pixels("with.png") != pixels("without.png")).any()


def test_a_whole_model_that_generate_takes(photos, model, here):
    result = run(
        "train", "finetune", "--images", "photos", "--output", "run", "--steps", 1, "--model", model, "--from-nothing"
    )
    assert result.exit_code == 0, result.output
    result = run("generate", "a cat", "--model", "run/model", "--steps", 2, "--out", "cat.png")
    assert result.exit_code == 0, result.output
    assert pixels("cat.png").shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", "none"), "none: expected a folder of images, found none"),
        (("--output", "mine.bin"), "--output must end in .safetensors, got 'mine.bin'"),
        (("--output", "new/mine.safetensors"), "--output: the folder 'new' does not exist; make it first"),
        (("--output", "photos/mine.safetensors"), "would be written among the images; choose a place outside"),
        (("--known", "photos/none"), "none: expected a folder of images, found none"),
        (("--targets", "attn.to_q,"), "targets: '' fits no matrix of this model; it has x_embedder"),
        (("--targets", "mlp"), "targets: 'mlp' fits no matrix"),
        (("--rank", 0), "expected a rank from 1 to 1024 and an alpha above 0, got 0"),
        (("--steps", 0), "steps and batch must be at least 1"),
        (("--size", 100), "size must be a multiple of 16, at least 32, got 100"),
        (("--every", 0), "every must be at least 1, got 0"),
    ],
)
def test_what_can_not_be_is_one_line(photos, model, options, words):
    assert_refused(run(*LORA, model, *options), words)


def test_images_that_can_not_be_used_are_one_line(photos, model):
    (photos / "a.txt").unlink()
    (photos / "b.png").write_bytes(b"no image")
    result = run(*LORA, model)
    assert_refused(result, "2 of 2 images can't be used: photos/a.png: expected its caption in a.txt")
    assert "photos/b.png: can't be read as an image" in result.stderr


def test_the_small_model_unless_another_is_named(monkeypatch, tmp_path):
    """What the help says; once it was no model at all, and an error from deep inside."""
    seen = []
    monkeypatch.setattr("minflux.train.own_run.train_lora", lambda task, settings, output: seen.append(task.model))
    (tmp_path / "images").mkdir()
    result = run("train", "lora", "--images", tmp_path / "images", "--output", tmp_path / "a.safetensors")
    assert result.exit_code == 0, result.output
    assert seen == ["tiny"]
