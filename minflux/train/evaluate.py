"""Measuring a model exactly: draw prompts that it has never seen, and read each image back."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minflux.checkpoints.formats.atomic import written_whole
from minflux.errors import ArgumentError
from minflux.images import grid
from minflux.inference.flux1 import Flux1
from minflux.sampling.noise import check_seed
from minflux.train import reader, scenes
from minflux.train.vae import reconstruct

BATCH = 50
CAPTION_SEED = 20_000  # added to the seed, so that prompts and noise are drawn apart


@dataclass(frozen=True)
class Result:
    """What was asked for and what was read: for every prompt, each check's outcome on three kinds of image."""

    prompts: list[str]
    images: np.ndarray  # uint8 (N, H, W, 3), drawn by the model
    drawn: list[dict[str, bool]]
    reconstructed: list[dict[str, bool]]  # the true images, through the VAE: the ceiling
    rendered: list[dict[str, bool]]  # the true images themselves: the reader's own accuracy


def evaluate(pipe: Flux1, count: int, steps: int | None = None, guidance: float | None = None, seed: int = 0) -> Result:
    """Draw `count` held-out prompts with noise seeds `seed`, `seed` + 1, …, and read the images.

    Raises `ArgumentError` for a count below 1, and for what is no seed.
    """
    check_count(count)
    rng = np.random.default_rng(CAPTION_SEED + check_seed(seed))
    wanted = [scenes.sample(rng, held_out=True) for _ in range(count)]
    prompts = [scenes.caption(scene, rng) for scene in wanted]
    images = []
    for i in tqdm(range(0, count, BATCH), desc="drawing", unit="batch"):
        batch = pipe(prompts[i : i + BATCH], seed=seed + i, steps=steps, guidance=guidance)
        images += [np.asarray(image) for image in batch]
    truth = scenes.render_batch(wanted)
    through = np.concatenate([reconstruct(*pipe.vae, pipe.nx, truth[i : i + BATCH]) for i in range(0, count, BATCH)])
    read = [[reader.score(w, p) for w, p in zip(wanted, kind, strict=True)] for kind in (images, through, truth)]
    return Result(prompts, np.stack(images), *read)


def check_count(count: int) -> None:
    """Raise `ArgumentError` unless there is at least one prompt."""
    if count < 1:
        raise ArgumentError(f"prompts must be at least 1, got {count}")


def share(outcomes: list[dict[str, bool]], check: str) -> tuple[float, float, float]:
    """Return the share of images that pass a check, and its 95% confidence interval."""
    passed = sum(o[check] for o in outcomes)
    low, high = reader.confidence_interval(passed, len(outcomes))
    return passed / len(outcomes), low, high


def figures(result: Result) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Collect every check's share for the model, the VAE and the reader; "all" is prompt accuracy."""
    kinds = {"drawn": result.drawn, "reconstructed": result.reconstructed, "rendered": result.rendered}
    return {check: {kind: share(o, check) for kind, o in kinds.items()} for check in result.drawn[0]}


def table(result: Result) -> str:
    """Lay the figures out as a Markdown table: each share in percent, with its 95% interval for the model."""
    lines = [
        f"{len(result.prompts)} held-out prompts",
        "",
        "| right | the model's images (95% interval) | ceiling: VAE alone | reader on true images |",
        "| --- | --- | --- | --- |",
    ]
    for check, row in figures(result).items():
        value, low, high = (100 * x for x in row["drawn"])
        rest = " | ".join(f"{100 * row[kind][0]:.1f}%" for kind in ("reconstructed", "rendered"))
        lines.append(f"| {check} | {value:.1f}% ({low:.1f} to {high:.1f}) | {rest} |")
    return "\n".join(lines)


def save_grid(result: Result, path: Path, columns: int = 8, rows: int = 4) -> None:
    """Write the first images, uncurated, as a PNG."""
    with written_whole(path) as file:
        grid(list(result.images[: columns * rows]), columns, zoom=2).save(file, format="PNG")


def save_json(result: Result, path: Path) -> None:
    """Write the figures, and every prompt with what was right of it."""
    rows = [{"prompt": p, **o} for p, o in zip(result.prompts, result.drawn, strict=True)]
    with written_whole(path) as file:
        file.write(json.dumps({"figures": figures(result), "prompts": rows}, indent=1).encode())
