"""`minflux train`: a recipe and a folder in, a model in diffusers' layout out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Tree
from minflux.backend import Backend, get_backend
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.read import load_component
from minflux.errors import CheckpointError
from minflux.images import grid, to_uint8
from minflux.inference.flux1 import Flux1
from minflux.inference.load import save_model
from minflux.inference.pipeline import Defaults
from minflux.model.vae import decode
from minflux.sampling.timesteps import Schedule
from minflux.train import checkpoint
from minflux.train.autoencoder import reconstruct, train_autoencoder
from minflux.train.loop import read_log
from minflux.train.noise_prediction import sample_latents, train_prediction
from minflux.train.reading import train_reading
from minflux.train.recipe import part, read_recipe, section, stages
from minflux.train.trained import trained_on
from minflux.train.velocity import CLIP_TOKENS, tokenizers_of, train_velocity
from minflux.world import reader, scenes
from minflux.world.captions import plain_caption
from minflux.world.render import render_batch
from minflux.world.tokenizers import train_tokenizers

SAMPLES = 16


def run_vae(recipe: str, folder: Path) -> None:
    """Train the VAE stage by stage in folder/vae, with samples and a loss plot there, and write it to folder/model."""
    nx, home, settings = get_backend("mlx"), folder / "vae", read_recipe(recipe)
    rng = np.random.default_rng(0)
    truth = render_batch([scenes.sample(rng, held_out=i % 2 == 1) for i in range(SAMPLES)])

    def on_sample(cfg, p, stage, step):
        pairs = list(zip(truth, reconstruct(cfg, p, nx, truth), strict=True))
        grid([image for pair in pairs for image in pair], columns=8).save(home / stage / f"step-{step}.png")

    cfg, p = train_autoencoder(settings, home, nx, on_sample)
    save_component(folder / "model", "vae", cfg, p)
    for stage in stages(settings, "vae"):
        plot_loss(home / stage)


def run_text(recipe: str, folder: Path) -> None:
    """Train T5 on captions in folder/text, and write it to folder/model.

    `run_flow` goes on with what is in folder/text.
    """
    nx, home, model, settings = get_backend("mlx"), folder / "text", folder / "model", read_recipe(recipe)
    train_tokenizers(model)
    cfg, p = train_reading(settings, home, tokenizers_of(model)[1], nx)
    save_component(model, "text_encoder_2", cfg, p)
    plot_loss(home)


def run_flow(recipe: str, folder: Path, start: Path | None = None) -> None:
    """Train transformer and text encoders in folder/flow, stage by stage, and write the whole model to folder/model.

    start: a model whose weights are trained further, its VAE as it is; unless given, the VAE in folder/model is used,
    and the T5 that `minflux train text` has left in folder/text. Samples are drawn at the first size of each stage's
    mixture; every second scene is held out.
    """
    nx, home, model = get_backend("mlx"), folder / "flow", folder / "model"
    settings = read_recipe(recipe)
    if start is not None:
        shutil.copytree(start / "vae", model / "vae", dirs_exist_ok=True)
    check_vae(model)
    train_tokenizers(model)
    clip, t5 = tokenizers_of(model)
    schedule, defaults = section(Schedule, part(settings, "schedule")), section(Defaults, part(settings, "defaults"))

    def pipeline(configs, p) -> Flux1:
        flux_cfg, clip_cfg, t5_cfg = configs
        return Flux1(
            nx=nx,
            flux=(flux_cfg, p["transformer"]),
            vae=load_component(model, "vae", nx),
            clip=(clip_cfg, p["clip"]),
            t5=(t5_cfg, p["t5"]),
            clip_tokenizer=clip,
            t5_tokenizer=t5,
            schedule=schedule,
            defaults=defaults,
            trained=trained_on(settings),
        )

    def on_sample(configs, p, stage, step):
        width, height, _ = part(settings, f"flow.{stage}.mixture")["sizes"][0]
        rng = np.random.default_rng(0)
        wanted = [scenes.sample(rng, width, height, held_out=i % 2 == 1) for i in range(SAMPLES)]
        drawn = pipeline(configs, p)([plain_caption(scene) for scene in wanted], width=width, height=height)
        show_samples(home / stage, step, wanted, [np.asarray(image) for image in drawn])

    configs, p = train_velocity(settings, home, model, nx, on_sample, first_weights(settings, folder, start, nx))
    save_model(pipeline(configs, p), model)
    for stage in stages(settings, "flow"):
        plot_loss(home / stage)


def first_weights(recipe: dict[str, Any], folder: Path, start: Path | None, nx: Backend) -> Tree:
    """Return what the flow begins with: a model's "transformer", "clip" and "t5"; or the T5 of folder/text; or nothing.

    Raises `CheckpointError` where T5's training has not come to its end.
    """
    if start is not None:
        parts = {"transformer": "transformer", "clip": "text_encoder", "t5": "text_encoder_2"}
        return {name: load_component(start, component, nx, "float32")[1] for name, component in parts.items()}
    read = checkpoint.load(folder / "text", nx)
    if read is None:
        return {}
    state, step = read
    steps = part(recipe, "text.training")["steps"]
    if step < steps:
        raise CheckpointError(
            f"{folder / 'text'}: {step} of {steps} steps are done; run `minflux train text` to its end"
        )
    return {"t5": state["ema"]["t5"]}


def check_vae(model: Path) -> None:
    """Raise `CheckpointError` unless a trained VAE is in the model's folder."""
    if not (model / "vae").is_dir():
        raise CheckpointError(
            f"{model / 'vae'}: expected a trained autoencoder, found none; run `minflux train vae` first"
        )


def show_samples(folder: Path, step: int, wanted: list[scenes.Scene], images: list[np.ndarray]) -> None:
    """Save a step's samples as a grid, and print what share of them shows what was wanted."""
    grid(images, columns=8).save(folder / f"step-{step}.png")
    marks = [reader.score(scene, image) for scene, image in zip(wanted, images, strict=True)]
    shares = ", ".join(f"{check} {np.mean([mark[check] for mark in marks]):.0%}" for check in reader.CHECKS)
    print(f"{folder.name}, step {step}: of {SAMPLES} samples right: {shares}", flush=True)


def run_prediction(recipe: str, folder: Path) -> None:
    """Train what the recipe's [prediction] says in folder/prediction; write a U-Net and its T5 to folder/model.

    A transformer that predicts noise is no FLUX.1, so it stays in its run: `train_prediction` returns it. Samples are
    drawn at the first size of each stage's mixture, by Euler's method.
    """
    nx, home, model = get_backend("mlx"), folder / "prediction", folder / "model"
    settings = read_recipe(recipe)
    check_vae(model)
    train_tokenizers(model)
    tokenizers, drawing = tokenizers_of(model), section(Defaults, part(settings, "defaults"))
    vae_cfg, vae = load_component(model, "vae", nx)

    def on_sample(task, p, stage, step):
        width, height, _ = part(settings, f"flow.{stage}.mixture")["sizes"][0]
        rng = np.random.default_rng(0)
        wanted = [scenes.sample(rng, width, height, held_out=i % 2 == 1) for i in range(SAMPLES)]
        prompts = [plain_caption(scene) for scene in wanted] + [""] * SAMPLES
        ids = tuple(
            nx.array(tokens(prompts, length))
            for tokens, length in zip(tokenizers, (CLIP_TOKENS, drawing.text_length), strict=True)
        )
        shape = (SAMPLES, height // vae_cfg.downscale, width // vae_cfg.downscale, vae_cfg.z_channels)
        noise = nx.array(rng.standard_normal(shape, np.float32))
        latents = sample_latents(p, task, ids, noise, drawing.steps, drawing.guidance)
        show_samples(home / stage, step, wanted, list(to_uint8(nx.to_numpy(decode(vae, vae_cfg, latents)))))

    task, p = train_prediction(settings, home, model, nx, on_sample)
    if task.asked.network == "unet":
        save_component(model, "unet", task.unet, p["unet"])
        save_component(model, "text_encoder_2", task.flow[2], p["t5"])
    for stage in stages(settings, "flow"):
        plot_loss(home / stage)


def plot_loss(folder: Path) -> None:
    """Draw log.csv as loss.png: every step's loss, and its running mean over 100 steps; needs matplotlib."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no loss plot: pip install matplotlib")
        return
    rows = read_log(folder)
    if not rows:
        return
    steps, losses = ([row[key] for row in rows] for key in ("step", "loss"))
    window = min(100, len(losses))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, losses, color="0.8", label="each step")
    axes.plot(
        steps[window - 1 :], np.convolve(losses, np.ones(window) / window, "valid"), label=f"mean of {window} steps"
    )
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
    plt.close(figure)
