"""From a recipe to a model in two commands: it draws, diffusers draws the same with it, and runs resume."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import leaves
from minflux.commands import main as cli
from minflux.errors import ArgumentError, CheckpointError
from minflux.train import autoencoder, checkpoint, loop
from minflux.train.recipe import read_recipe, workers
from minflux.train.run import run_flow
from minflux.train.velocity import begun, train_velocity

RECIPE = Path(__file__).with_name("small.toml")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def patched():
    """MLX as it trains, but that nothing is compiled; latents are measured on few scenes."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    measured = autoencoder.normalised
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(nx), "compile", lambda self, function: function)
        patch.setattr(loop, "keep_freed_memory", lambda: None)
        patch.setattr(autoencoder, "normalised", lambda cfg, p, nx: measured(cfg, p, nx, count=16))
        yield nx


@pytest.fixture(scope="module")
def folder(patched, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for command in ("vae", "flow"):
        result = CliRunner().invoke(cli.main, ["train", command, "--recipe", str(RECIPE), "--folder", str(folder)])
        assert result.exit_code == 0, result.output
    return folder


def test_samples_losses_and_logs_are_left_behind(folder):
    for path in (
        "vae/crops/step-2.png",
        "vae/sharp/step-2.png",
        "vae/sharp/loss.png",
        "flow/small/step-2.png",
        "flow/every/step-3.png",
        "flow/every/log.csv",
    ):
        assert (folder / path).exists(), path


def test_the_model_draws_as_its_recipe_says(folder):
    pipe = minflux.load(folder / "model")
    assert (pipe.defaults.width, pipe.defaults.text_length, pipe.schedule.shift) == (80, 40, 5.0)
    assert pipe.vae[0].scale_factor != 1.0
    assert pipe("a cat", seed=3).size == (80, 64)


def test_diffusers_draws_the_same_with_its_own_lengths_of_text(folder):
    """CLIP's 77 tokens and T5's 512, which diffusers pads to unless told otherwise."""
    pipe = minflux.load(folder / "model")
    theirs = FluxPipeline.from_pretrained(folder / "model")
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "width": 80, "height": 64, "output_type": "np"}
    prompt = 'A star above a sign that says "HELLO".'
    for length in (40, 512):
        generator = torch.Generator().manual_seed(3)
        expected = theirs(prompt, generator=generator, max_sequence_length=length, **settings).images[0]
        ours = replace(pipe, defaults=replace(pipe.defaults, text_length=length))
        got = np.asarray(ours(prompt, seed=3, guidance=1.0))
        assert np.abs(got / 255 - expected).max() <= 2 / 255


def test_a_flow_without_an_autoencoder_is_refused(patched, tmp_path):
    with pytest.raises(CheckpointError, match="run `minflux train vae` first"):
        run_flow(str(RECIPE), tmp_path)


def test_a_stopped_flow_ends_as_one_that_never_stopped(patched, folder, tmp_path):
    settings = read_recipe(RECIPE)

    def stop(configs, p, stage, step):
        if stage == "every":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_velocity(settings, tmp_path, folder / "model", patched, stop)
    train_velocity(settings, tmp_path, folder / "model", patched)
    first, second = ((path / "every" / checkpoint.NAME).read_bytes() for path in (folder / "flow", tmp_path))
    assert first == second


def test_a_training_that_starts_from_a_model_begins_with_its_weights(patched, folder, tmp_path):
    """With no steps at all, it ends with them too."""
    recipe = tmp_path / "none.toml"
    recipe.write_text(re.sub(r"(?m)^steps = \d+$", "steps = 0", RECIPE.read_text()))
    run_flow(str(recipe), tmp_path, start=folder / "model")
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        one, two = (dict(leaves(load_component(path / "model", part, patched)[1])) for path in (folder, tmp_path))
        assert one.keys() == two.keys()
        for name, x in one.items():
            np.testing.assert_array_equal(np.array(x), np.array(two[name]), err_msg=name)


def test_a_model_that_does_not_fit_the_recipe_is_not_begun_with(nx):
    fresh = {"a": {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}}
    bias = nx.array(np.ones(2, np.float32))
    weights = begun(fresh, {"a": {"bias": bias}}, nx)
    assert (nx.to_numpy(weights["a"]["bias"]) == 1).all()
    assert (nx.to_numpy(weights["a"]["weight"]) == 0).all()
    with pytest.raises(CheckpointError, match=r"a.weight is \(2,\) .* and the recipe has \(2, 3\)"):
        begun(fresh, {"a": {"weight": bias}}, nx)
    with pytest.raises(CheckpointError, match=r"b.bias is \(2,\) .* no such weight"):
        begun(fresh, {"b": {"bias": bias}}, nx)


def test_the_weights_saved_are_the_averaged_ones(patched, folder):
    state, step = checkpoint.load(folder / "flow" / "every", patched)
    assert step == 4
    _, p = load_component(folder / "model", "transformer", patched)
    for name in ("img_in", "txt_in"):
        np.testing.assert_array_equal(
            np.array(p[name]["weight"]), np.array(state["ema"]["transformer"][name]["weight"])
        )


def test_a_sibling_takes_its_guidance_as_an_input_and_diffusers_draws_the_same(patched, folder):
    given = ["train", "distill-guidance", "--recipe", str(RECIPE), "--folder", str(folder)]
    result = CliRunner().invoke(cli.main, given)
    assert result.exit_code == 0, result.output
    assert (folder / "guidance" / "step-2.png").exists()
    assert checkpoint.load(folder / "guidance", patched)[1] == 2
    pipe = minflux.load(folder / "dev", "numpy")
    assert pipe.built_in_guidance
    theirs = FluxPipeline.from_pretrained(folder / "dev")
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "width": 80, "height": 64, "guidance_scale": 3.0, "output_type": "np"}
    expected = theirs("a cat", generator=torch.Generator().manual_seed(3), max_sequence_length=40, **settings).images[0]
    got = np.asarray(pipe("a cat", seed=3, guidance=3.0))
    assert np.abs(got / 255 - expected).max() <= 2 / 255


def test_a_sibling_of_few_steps_is_drawn_alike_by_diffusers(patched, folder):
    for command in ("distill-guidance", "distill-steps"):
        given = ["train", command, "--recipe", str(RECIPE), "--folder", str(folder)]
        result = CliRunner().invoke(cli.main, given)
        assert result.exit_code == 0, result.output
    pipe = minflux.load(folder / "schnell", "numpy")
    assert (pipe.built_in_guidance, pipe.schedule.shift, pipe.defaults.steps) == (False, 1.0, 2)
    theirs = FluxPipeline.from_pretrained(folder / "schnell")
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "width": 80, "height": 64, "output_type": "np"}
    expected = theirs("a cat", generator=torch.Generator().manual_seed(3), max_sequence_length=40, **settings).images[0]
    got = np.asarray(pipe("a cat", seed=3))
    assert np.abs(got / 255 - expected).max() <= 2 / 255


# -- two workers ---------------------------------------------------------------------------------------------


def losses(stage: Path) -> list[float]:
    """Return the loss of each step of a stage."""
    with (stage / loop.LOG).open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_one_team_of_two_trains_all_stages_as_one_process_does(folder, tmp_path):
    text = RECIPE.read_text()
    for part in ("[vae]\n", "[flow]\n"):
        assert part in text
        text = text.replace(part, f"{part}workers = 2\n")
    (tmp_path / "two.toml").write_text(text)
    for part in ("vae", "flow"):
        given = ["train", part, "--recipe", str(tmp_path / "two.toml"), "--folder", str(tmp_path)]
        done = subprocess.run([sys.executable, "-m", "minflux", *given], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "vae/crops"), losses(folder / "vae/crops"), rtol=2e-3)
    first, *_ = losses(tmp_path / "vae/sharp")  # later ones differ: the judge's share, a ratio, is averaged over halves
    assert first == pytest.approx(losses(folder / "vae/sharp")[0], rel=2e-3)
    assert len(losses(tmp_path / "flow/every")) == 4
    assert minflux.load(tmp_path / "model")("a cat", seed=3).size == (80, 64)


def test_workers_belong_to_the_whole_part(tmp_path):
    recipe = read_recipe(RECIPE)
    recipe["vae"]["sharp"]["training"]["workers"] = 2
    with pytest.raises(ArgumentError, match=r"\[vae.sharp.training\] has workers: all stages share those of \[vae\]"):
        workers(recipe, "vae")
