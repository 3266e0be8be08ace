"""Training: the optimiser is PyTorch's, and a run that was stopped ends as one that never was."""

import csv
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minflux
from minflux import zoo
from minflux.backend import get_backend
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten, leaves, tree_map
from minflux.errors import ArgumentError, CheckpointError, MinfluxError
from minflux.inference.load import SCHEDULER, read_schedule
from minflux.model.flux import PRESETS, FluxConfig
from minflux.sampling.timesteps import Schedule
from minflux.train import checkpoint, loop, recipe
from minflux.train.autoencoder import train_autoencoder
from minflux.train.loop import Plan, train
from minflux.train.optimizer import AdamW, clip_by_global_norm, init_state, learning_rate, schedule, update
from minflux.train.workers import Team, assemble
from tests import compare, tiny_model

ROOT = Path(minflux.__file__).parent.parent
RECIPE = Path(__file__).with_name("small.toml")


@pytest.fixture
def mlx(monkeypatch):
    """MLX as it trains, but that nothing is compiled (g++ takes longer than these few steps)."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    monkeypatch.setattr(type(nx), "compile", lambda self, function: function)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    return nx


# -- the optimiser -------------------------------------------------------------------------------------------


def arrays(nx, tensors: dict[str, torch.Tensor]) -> dict:
    return {name: nx.array(t.detach().numpy().copy()) for name, t in tensors.items()}


def test_adamw_is_torchs(nx):
    """Weight decay is for matrices alone: two groups of weights in PyTorch."""
    opt = AdamW(lr=0.1, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.3, warmup=3, ema=0.4)
    weights = {"w": torch.nn.Parameter(torch.randn(3, 4)), "b": torch.nn.Parameter(torch.randn(4))}
    groups = [{"params": [weights["w"]]}, {"params": [weights["b"]], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, opt.lr, (opt.beta1, opt.beta2), opt.eps, opt.weight_decay)
    state, average = init_state(nx, arrays(nx, weights)), {name: w.clone() for name, w in weights.items()}
    for step in range(8):
        now = schedule(opt, step, 8)
        for group in theirs.param_groups:
            group["lr"] = now["lr"]
        for w in weights.values():
            w.grad = torch.randn(w.shape)
        grads = arrays(nx, {name: w.grad for name, w in weights.items()})
        theirs.step()
        state = update(nx, opt, state, grads, {k: nx.array(v, dtype=nx.float32) for k, v in now.items()})
        for name, w in weights.items():
            average[name] = now["decay"] * average[name] + (1 - now["decay"]) * w
            compare.assert_close(nx, state["params"][name], w, compare.COMPONENT)
            compare.assert_close(nx, state["ema"][name], average[name], compare.COMPONENT)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_clipping_is_torchs(nx, size):
    grads = {"w": size * torch.randn(3, 4), "b": size * torch.randn(4)}
    got, norm = clip_by_global_norm(nx, arrays(nx, grads), limit=1.0)
    weights = [torch.nn.Parameter(g.clone()) for g in grads.values()]
    for w in weights:
        w.grad = w.data.clone()
    compare.assert_close(nx, norm, torch.nn.utils.clip_grad_norm_(weights, 1.0), compare.COMPONENT)
    for ours, w in zip(got.values(), weights, strict=True):
        compare.assert_close(nx, ours, w.grad, compare.COMPONENT)


def test_the_learning_rate_rises_then_falls_to_a_hundredth():
    opt = AdamW(lr=2.0, warmup=4)
    rates = [learning_rate(opt, step, steps=20) for step in range(21)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[12] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[20] == pytest.approx(0.02)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_average_is_short_at_first():
    decays = [schedule(AdamW(ema=0.9), step, 100)["decay"] for step in range(100)]
    assert decays[0] == 0.1
    assert decays[8] == 0.5
    assert decays[-1] == 0.9


# -- the loop ------------------------------------------------------------------------------------------------

TARGET = np.array([1.0, -2.0, 3.0], np.float32)


def distances(rng: np.random.Generator) -> tuple[np.ndarray]:
    """A batch for `fit`: where to measure."""
    return (rng.standard_normal((8, 3), np.float32),)


def fit(mlx, folder: Path, steps: int, on_sample=None, batch=distances, **plan):
    """Learn three numbers."""
    opt, p = AdamW(lr=0.3, warmup=1, ema=0.5), {"w": mlx.zeros(3, dtype=mlx.float32)}

    def loss(p, x):
        return mlx.mean((x @ (p["w"] - mlx.array(TARGET))[:, None]) ** 2)

    return train(mlx, Team(), Plan(folder, steps, **plan), opt, p, batch, loss, on_sample)


def log_rows(folder: Path) -> list[list[str]]:
    """log.csv without its last column, the seconds."""
    with (folder / loop.LOG).open() as file:
        return [row[:-1] for row in csv.reader(file)]


def test_training_learns(mlx, tmp_path):
    weights = fit(mlx, tmp_path, steps=60)
    np.testing.assert_allclose(np.array(weights["w"]), TARGET, atol=0.05)


def test_every_step_is_logged(mlx, tmp_path):
    fit(mlx, tmp_path, steps=3)
    header, *rows = log_rows(tmp_path)
    assert header == ["step", "loss", "gradient_norm", "learning_rate"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(float(x) > 0 for row in rows for x in row)


def test_samples_are_drawn_on_the_way(mlx, tmp_path):
    seen = []
    fit(mlx, tmp_path, steps=7, sample_every=3, on_sample=lambda ema, step: seen.append((step, ema["w"].shape)))
    assert seen == [(3, (3,)), (6, (3,))]


@pytest.mark.parametrize("bad", [math.nan, 1e30])  # the second: a finite loss, but a gradient too large to square
def test_a_loss_that_is_no_number_ends_the_run(mlx, tmp_path, bad):
    calls = []

    def batch(rng):
        calls.append(rng)
        return (np.full((1, 3), bad if len(calls) == 3 else 1e-3, np.float32),)

    with pytest.raises(MinfluxError, match=r"step 3: the loss is .*; lower the learning rate"):
        fit(mlx, tmp_path, steps=5, batch=batch, checkpoint_every=1)
    state, done = checkpoint.load(tmp_path, mlx)
    assert done == 2
    assert all(np.isfinite(np.array(w)).all() for _, w in leaves(state))


def test_the_log_is_cut_back_to_the_checkpoint(mlx, tmp_path):
    """Steps that were logged but lost are done, and logged, again; one that is missing shifts nothing."""
    fit(mlx, tmp_path, steps=4)
    rows = (tmp_path / loop.LOG).read_text().splitlines()
    lost = [row.replace(row[0], str(step), 1) for row, step in zip(rows[1:3], (5, 6), strict=True)]
    (tmp_path / loop.LOG).write_text("\n".join([rows[0], *rows[2:], *lost, ""]))
    fit(mlx, tmp_path, steps=5)
    assert [row[0] for row in log_rows(tmp_path)[1:]] == ["2", "3", "4", "5"]


# -- stopping and going on -----------------------------------------------------------------------------------


class Crash(Exception):
    pass


@pytest.mark.parametrize(("stop", "kept"), [(Crash, 2), (KeyboardInterrupt, 3)])
def test_a_stopped_run_ends_as_one_that_never_stopped(mlx, tmp_path, stop, kept):
    """Stopped after step 3: a crash loses what came after the checkpoint of step 2, Ctrl-C nothing."""
    whole, stopped, every = tmp_path / "whole", tmp_path / "stopped", {"checkpoint_every": 2, "sample_every": 3}
    fit(mlx, whole, 5, **every)

    def on_sample(*args):
        raise stop

    with pytest.raises(stop):
        fit(mlx, stopped, 5, on_sample, **every)
    assert checkpoint.load(stopped, mlx)[1] == kept
    fit(mlx, stopped, 5, **every)
    assert (stopped / checkpoint.NAME).read_bytes() == (whole / checkpoint.NAME).read_bytes()
    assert log_rows(stopped) == log_rows(whole)
    assert len(log_rows(whole)) == 1 + 5


def test_a_checkpoint_there_and_back(nx, tmp_path):
    params = tree_map(nx.array, tiny_model.random_tree(t5_shapes(tiny_model.T5), np.random.default_rng(0)))
    state = init_state(nx, params)
    assert checkpoint.load(tmp_path, nx) is None
    checkpoint.save(tmp_path, nx, state, 7)
    got, step = checkpoint.load(tmp_path, nx)
    assert step == 7
    assert flatten(got).keys() == flatten(state).keys()
    for name, expected in leaves(state):
        np.testing.assert_array_equal(nx.to_numpy(flatten(got)[name]), nx.to_numpy(expected), strict=True)


def test_what_is_no_checkpoint(nx, tmp_path):
    write_safetensors(tmp_path / checkpoint.NAME, {"w": np.zeros(3)})
    with pytest.raises(CheckpointError, match="expected the key 'step' of a training run"):
        checkpoint.load(tmp_path, nx)


@given(st.integers(1, 4), st.integers(1, 12))
def test_a_team_shares_every_row_once(size, rows):
    shares = [Team(rank, size).share(np.arange(rows)) for rank in range(size)]
    assert sorted(np.concatenate(shares)) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# -- recipes -------------------------------------------------------------------------------------------------


def recipe_with(old: str, new: str) -> str:
    """The small recipe with its first `old` replaced."""
    text = RECIPE.read_text()
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "is not a TOML file"),
        (recipe_with("lr =", "learning_rate ="), "the recipe has learning_rate, which AdamW has not"),
        (recipe_with("steps = 3", ""), "the recipe lacks steps, which Training needs"),
        (
            recipe_with("[vae.crops.optimizer]", "[vae.crops.optimiser]"),
            "the recipe has no section [vae.crops.optimizer]",
        ),
        ("vae = 3", "the recipe has no section [vae.model]"),
    ],
)
def test_a_recipe_with_a_mistake(mlx, tmp_path, text, words):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=re.escape(words)):
        train_autoencoder(recipe.read_recipe(path), tmp_path, mlx)


@pytest.mark.weights
def test_the_small_model_has_one_size():
    settings = recipe.read_recipe("tiny")
    shipped, _ = load_component(zoo.FOLDER / "tiny", "transformer", get_backend("numpy"))
    assert recipe.section(FluxConfig, recipe.part(settings, "flow.model")) == shipped == PRESETS["tiny"]


@pytest.mark.weights
def test_the_small_model_draws_on_the_schedule_that_it_was_trained_on():
    settings = recipe.read_recipe("tiny")
    shipped = read_schedule(zoo.FOLDER / "tiny" / SCHEDULER)
    assert recipe.section(Schedule, recipe.part(settings, "schedule")) == shipped


def test_a_process_leads_a_team_once(monkeypatch):
    monkeypatch.setenv("MLX_RANK", "0")  # as the first team leaves it
    with pytest.raises(MinfluxError, match="workers: this process has already led a team"):
        assemble(2)
    assert assemble(1).size == 1


# -- two workers --------------------------------------------------------------------------------------------


def command(recipe: Path, folder: Path) -> subprocess.Popen:
    """Start `minflux train vae`, which starts its second worker itself."""
    args = [sys.executable, "-m", "minflux", "train", "vae", "--recipe", str(recipe), "--folder", str(folder)]
    return subprocess.Popen(args, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(recipe: Path, folder: Path) -> None:
    with command(recipe, folder) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


@pytest.mark.slow
def test_two_workers_killed_midway_end_as_if_nothing_had_happened(mlx, tmp_path):
    two, whole, killed = (tmp_path / name for name in ("two.toml", "whole", "killed"))
    two.write_text(recipe_with("[vae]", "[vae]\nworkers = 2").replace("steps = 3", "steps = 12"))
    finish(two, whole)
    log, saved = (killed / "vae/crops" / name for name in (loop.LOG, checkpoint.NAME))
    with command(two, killed) as process:
        while not saved.exists() or len(log.read_text().splitlines()) < 6:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()  # SIGKILL, to the first worker alone
        process.communicate(timeout=30)  # the other holds the same pipe: it has ended too
    assert len(log_rows(killed / "vae/crops")) < 13
    finish(two, killed)
    assert log_rows(killed / "vae/crops") == log_rows(whole / "vae/crops")
    for file in ("vae/sharp/checkpoint.safetensors", "model/vae/diffusion_pytorch_model.safetensors"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
