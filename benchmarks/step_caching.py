"""What step caching costs in accuracy: the small model's images at several thresholds, beside the steps skipped.

    python -m benchmarks.step_caching --prompts 200 --out step-caching.png > table.md

Every prompt is drawn alone, with its own seed, and read back as `minflux evaluate` reads it. The share of steps that
were skipped is counted, not timed. Beside accuracy stands how far the images are from those of the same seeds without
caching. --out draws accuracy over the share, a line a rule.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import minflux
from minflux.inference.flux1 import Flux1
from minflux.inference.step_cache import StepCache
from minflux.world import reader, scenes
from minflux.world.captions import caption
from minflux.world.evaluate import PROMPT_SEED, confidence_interval
from tools.model_card import table

THRESHOLDS = {"first-block": (0.05, 0.1, 0.2, 0.4, 0.8), "teacache": (0.1, 0.25, 0.4, 0.6, 0.8)}
HEADING = ["rule", "threshold", "steps skipped", "all right (95% interval)", "levels from the image without"]


@dataclass(frozen=True)
class Point:
    """One threshold's figures: the share of steps skipped, the images read right, and their mean difference."""

    rule: str
    threshold: float
    skipped: float
    right: float
    interval: tuple[float, float]
    difference: float


@dataclass(frozen=True)
class Prompts:
    """What is drawn: scenes and their captions, held out from training."""

    wanted: list[scenes.Scene]
    captions: list[str]


def held_out(count: int) -> Prompts:
    """Draw the prompts that `minflux evaluate` draws first."""
    rng = np.random.default_rng(PROMPT_SEED)
    wanted = [scenes.sample(rng, held_out=True) for _ in range(count)]
    return Prompts(wanted, [caption(scene, rng) for scene in wanted])


def draw(pipe: Flux1, prompts: Prompts, steps: int, cache: StepCache | None) -> tuple[np.ndarray, float]:
    """Draw every prompt alone; return the images (N, H, W, 3), and the share of steps that were skipped."""
    images, skipped = [], 0
    for seed, prompt in enumerate(tqdm(prompts.captions, desc=str(cache or "without"), unit="image")):
        images.append(np.asarray(pipe(prompt, seed=seed, steps=steps, step_cache=cache)))
        skipped += len(cache.skipped) if cache else 0
    return np.stack(images), skipped / (steps * len(images))


def point(prompts: Prompts, images: np.ndarray, without: np.ndarray, skipped: float, cache: StepCache) -> Point:
    """Read images back, and compare them with those without caching."""
    right = sum(reader.score(w, x)["all"] for w, x in zip(prompts.wanted, images, strict=True))
    difference = np.abs(images.astype(np.float32) - without).mean()
    share, interval = right / len(images), confidence_interval(right, len(images))
    return Point(cache.rule, cache.threshold, skipped, share, interval, float(difference))


def measure(pipe: Flux1, count: int, steps: int) -> list[Point]:
    """Measure every rule at every threshold; without caching is the first point of each rule, its threshold 0."""
    prompts = held_out(count)
    without, _ = draw(pipe, prompts, steps, None)
    points = []
    for rule, thresholds in THRESHOLDS.items():
        nothing = point(prompts, without, without, 0.0, StepCache(rule, thresholds[0]))
        points.append(Point(**vars(nothing) | {"threshold": 0.0}))
        for threshold in thresholds:
            cache = StepCache(rule, threshold)
            images, skipped = draw(pipe, prompts, steps, cache)
            points.append(point(prompts, images, without, skipped, cache))
    return points


def rows(points: Sequence[Point]) -> list[list[str]]:
    """Lay the figures out as a table."""
    cells = []
    for p in points:
        low, high = (100 * x for x in p.interval)
        accuracy = f"{100 * p.right:.1f}% ({low:.1f} to {high:.1f})"
        cells.append([p.rule, f"{p.threshold:g}", f"{p.skipped:.0%}", accuracy, f"{p.difference:.2f}"])
    return [HEADING, *cells]


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw accuracy over the share of steps skipped, with its interval, a line a rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for rule in THRESHOLDS:
        own = sorted((p for p in points if p.rule == rule), key=lambda p: p.skipped)
        x, y = ([getattr(p, name) for p in own] for name in ("skipped", "right"))
        (line,) = axes.plot(x, y, marker="o", label=rule)
        axes.fill_between(x, *zip(*(p.interval for p in own), strict=True), color=line.get_color(), alpha=0.15)
    axes.set(xlabel="share of steps skipped", ylabel="images with all right", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.step_caching", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a model that was trained on the small world")
    parser.add_argument("--prompts", type=int, default=200, help="how many are drawn at each threshold (200)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, metavar="PNG", help="draw the curves")
    args = parser.parse_args(arguments)
    points = measure(minflux.load(args.model), args.prompts, args.steps)
    print(table(rows(points)))
    if args.out:
        plot(points, args.out)


if __name__ == "__main__":
    main()
