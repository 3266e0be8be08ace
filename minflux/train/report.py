"""All five measures of a model in one report: tables to print, figures as JSON, and a grid of images.

Beside each share stands what the VAE alone reaches: the same scenes, drawn exactly, encoded and decoded.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.checkpoints.formats.atomic import written_whole
from minflux.errors import ArgumentError
from minflux.images import grid
from minflux.inference.flux1 import Flux1
from minflux.sampling.noise import check_seed
from minflux.train.autoencoder import reconstruct
from minflux.world import reader
from minflux.world.evaluate import (
    SIZES,
    Diversity,
    Drawn,
    Size,
    confidence_interval,
    diversity,
    follow,
    quality,
    typography,
)
from minflux.world.render import render_batch

AT_ONCE = 16  # images through the VAE at once
PER_PROMPT = 10  # prompts measured for following, to one for diversity


@dataclass(frozen=True)
class Report:
    """The five measures of a model, and what its VAE alone reaches at each size."""

    drawn: dict[Size, Drawn]
    ceiling: dict[Size, float]
    letters: float
    diversity: Diversity
    quality: tuple[float, float]

    @property
    def usual(self) -> Drawn:
        """What was drawn at the default size."""
        return self.drawn[SIZES[0]]


def measure(pipe: Flux1, count: int, seed: int = 0, **how: Any) -> Report:
    """Draw `count` held-out prompts at each of `SIZES` and `count` held-out signs, and a tenth for diversity.

    `how`: steps and guidance. Raises `ArgumentError` for a count below 1, and for what is no seed.
    """
    check_count(count)
    check_seed(seed)
    drawn = {size: follow(pipe, size, count, seed, **how) for size in SIZES}
    return Report(
        drawn,
        {size: through_vae(pipe, of) for size, of in drawn.items()},
        typography(pipe, count, seed, **how),
        diversity(pipe, math.ceil(count / PER_PROMPT), seed, **how),
        quality(drawn[SIZES[0]]),
    )


def check_count(count: int) -> None:
    """Raise `ArgumentError` unless there is at least one prompt."""
    if count < 1:
        raise ArgumentError(f"prompts must be at least 1, got {count}")


def through_vae(pipe: Flux1, drawn: Drawn) -> float:
    """Return the share of the wanted scenes that are all right after encoding and decoding."""
    truth = render_batch(drawn.wanted)
    parts = [reconstruct(*pipe.vae, pipe.nx, truth[i : i + AT_ONCE]) for i in range(0, len(truth), AT_ONCE)]
    marks = [reader.score(scene, image) for scene, image in zip(drawn.wanted, np.concatenate(parts), strict=True)]
    return float(np.mean([mark["all"] for mark in marks]))


# -- what is printed and written -------------------------------------------------------------------------------


def table(report: Report) -> str:
    """Lay the report out as Markdown tables: sizes, what is right at the default size, the other measures."""
    count = len(report.usual.prompts)
    heading = f"{count} held-out prompts of each kind"
    return "\n\n".join([heading, size_table(report), check_table(report.usual), other_table(report)])


def size_table(report: Report) -> str:
    """Lay out the share that is all right at each size, with its 95% interval, beside the VAE's."""
    rows = [
        f"| {width}×{height} | {with_interval(of.share('all'), len(of.prompts))} | {percent(report.ceiling[size])} |"
        for size, of in report.drawn.items()
        for width, height in [size]
    ]
    return "\n".join(["| size | all right (95% interval) | VAE alone |", "| --- | --- | --- |", *rows])


def check_table(drawn: Drawn) -> str:
    """Lay out the share of images that are right in each respect."""
    cells = [percent(drawn.share(check)) for check in reader.CHECKS]
    lines = [reader.CHECKS, ["---"] * len(cells), cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def other_table(report: Report) -> str:
    """Lay out typography, diversity and quality."""
    detail, share = report.quality
    count = len(report.usual.prompts)
    rows = [
        ("typography: words right in every letter", with_interval(report.letters, count)),
        ("diversity: how far one prompt's thing moves, in sides of the image", f"{report.diversity.deviation:.3f}"),
        ("diversity: pairs of images with it in one place", percent(report.diversity.alike)),
        ("quality: fine detail, of true images'", percent(detail)),
        ("quality: what of a thing its sprite explains", percent(share)),
    ]
    return "\n".join(["| measure | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def percent(share: float) -> str:
    """Write a share in percent; "none" where there was nothing to measure."""
    return "none" if math.isnan(share) else f"{100 * share:.1f}%"


def with_interval(share: float, trials: int) -> str:
    """Write a share in percent with its 95% interval.

    >>> with_interval(0.95, 500)
    '95.0% (92.7 to 96.6)'
    """
    low, high = confidence_interval(round(share * trials), trials)
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def save_grid(report: Report, path: Path, columns: int = 8, rows: int = 4) -> None:
    """Write the first images of the default size, uncurated, as a PNG."""
    with written_whole(path) as file:
        grid(list(report.usual.images[: columns * rows]), columns).save(file, format="PNG")


def save_json(report: Report, path: Path) -> None:
    """Write the figures, and every prompt of every size with what was right of it."""
    figures = {
        "ceiling": {written(size): share for size, share in report.ceiling.items()},
        "letters": report.letters,
        "diversity": vars(report.diversity),
        "quality": [None if math.isnan(share) else share for share in report.quality],  # detail, and what is explained
        "prompts": {
            written(size): [{"prompt": p} | mark for p, mark in zip(of.prompts, of.marks, strict=True)]
            for size, of in report.drawn.items()
        },
    }
    with written_whole(path) as file:
        file.write(json.dumps(figures, indent=1).encode())


def written(size: Size) -> str:
    """Write a size as the command line has it: "96x160"."""
    return f"{size[0]}x{size[1]}"
