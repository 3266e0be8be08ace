"""`minflux train distill-guidance`, `distill-steps` and `editing`: a trained model in, its sibling beside it out."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minflux.images import grid, to_uint8
from minflux.inference.flux1 import Flux1
from minflux.inference.load import load, save_model
from minflux.inference.pipeline import Defaults
from minflux.sampling.timesteps import Schedule
from minflux.train.editing import KINDS, Example, train_editing
from minflux.train.flow import CLIP_TOKENIZER, T5_TOKENIZER
from minflux.train.guidance import distill_guidance
from minflux.train.recipe import part, read_recipe, section
from minflux.train.reflow import distill_steps
from minflux.train.run import SAMPLES, plot_loss
from minflux.world.captions import plain_caption
from minflux.world.scenes import sample


def load_to_train(model: Path) -> Flux1:
    """Load a model for training: on MLX, whole, and in float32, whatever its files are in."""
    return load(model, "mlx", dtype="float32", memory="resident")


def run_guidance(recipe: str, folder: Path) -> None:
    """Distil the guidance of the model in folder/model into a student, and write it to folder/dev.

    Checkpoints, samples and a loss plot are left in folder/guidance. Raises `CheckpointError` where no model is.
    """
    home, base = folder / "guidance", load_to_train(folder / "model")

    def on_sample(cfg, p, step):
        draw_samples(replace(base, flux=(cfg, p))).save(home / f"step-{step}.png")

    student = distill_guidance(read_recipe(recipe), home, base, base.nx, on_sample)
    write_sibling(replace(base, flux=student), folder / "model", folder / "dev")
    plot_loss(home)


def run_steps(recipe: str, folder: Path) -> None:
    """Distil the steps of the model in folder/dev into a student, and write it to folder/schnell.

    Checkpoints, samples and a loss plot are left in folder/steps. Raises `CheckpointError` where no model is.
    """
    home, settings, base = folder / "steps", read_recipe(recipe), load_to_train(folder / "dev")
    sibling = replace(
        base,
        schedule=section(Schedule, part(settings, "steps.schedule")),
        defaults=section(Defaults, part(settings, "steps.defaults")),
    )

    def on_sample(cfg, p, step):
        draw_samples(replace(sibling, flux=(cfg, p))).save(home / f"step-{step}.png")

    student = distill_steps(settings, home, base, base.nx, on_sample)
    write_sibling(replace(sibling, flux=student), folder / "dev", folder / "schnell")
    plot_loss(home)


def run_editing(name: str, recipe: str, folder: Path) -> None:
    """Train a sibling of the model in folder/model that edits, of one of `KINDS`, and write it to folder/NAME.

    Checkpoints, samples and a loss plot are left in folder/NAME-training. Raises `CheckpointError` where no model is.
    """
    home, base = folder / f"{name}-training", load_to_train(folder / "model")

    def sibling(configs, p) -> Flux1:
        flux_cfg, clip_cfg, t5_cfg = configs
        return replace(
            base,
            flux=(flux_cfg, p["transformer"]),
            clip=(clip_cfg, p["clip"]),
            t5=(t5_cfg, p["t5"]),
            trained=replace(base.trained, words=(), references=name == "kontext"),
        )

    def on_sample(configs, p, step):
        draw_edits(sibling(configs, p), name).save(home / f"step-{step}.png")

    trained = train_editing(read_recipe(recipe), name, home, base, on_sample)
    write_sibling(sibling(*trained), folder / "model", folder / name)
    plot_loss(home)


def draw_edits(pipe: Flux1, name: str):
    """Draw a grid of pairs: what the model is shown, and what it makes of it."""
    rng, images = np.random.default_rng(0), []
    for seed in range(SAMPLES // 2):
        example = KINDS[name].example(rng, (pipe.defaults.width, pipe.defaults.height))
        images += [to_uint8(example.seen), np.asarray(pipe(example.prompt, seed=seed, **shown_to(name, example)))]
    return grid(images, columns=8)


def shown_to(name: str, example: Example) -> dict[str, Any]:
    """Return what a call of a pipeline is given of an example, by argument."""
    if example.mask is not None:
        return {"image": to_uint8(example.image), "mask": example.mask}
    return {"reference" if name == "kontext" else "control": to_uint8(example.seen)}


def draw_samples(pipe: Flux1):
    """Draw a grid of scenes, at the model's default size and settings; every second scene is held out."""
    rng = np.random.default_rng(0)
    size = pipe.defaults.width, pipe.defaults.height
    wanted = [sample(rng, *size, held_out=i % 2 == 1) for i in range(SAMPLES)]
    images = pipe([plain_caption(scene) for scene in wanted])
    return grid([np.asarray(image) for image in images], columns=8)


def write_sibling(pipe: Flux1, model: Path, folder: Path) -> None:
    """Write a model that has the tokenizers of the one in `model`."""
    save_model(pipe, folder)
    for name in (CLIP_TOKENIZER, T5_TOKENIZER):
        shutil.copytree(model / name, folder / name, dirs_exist_ok=True)
