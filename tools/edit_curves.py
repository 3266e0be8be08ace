"""Edits that need no training: how often what was asked for is there, against how much of the rest is changed.

    python -m tools.edit_curves --out docs/images/edit-curves.png | python -m tools.insert curves docs/editing.md

True images of one or two things of the small model's world; in each one thing is to become another. Three ways, each
with a dial that changes more the further it is turned: image-to-image by its strength, FlowEdit by the steps that it
takes, and RF-inversion by the strength with which the image draws back. An edit is right if the image shows all that
its new prompt says, read as `minflux evaluate` reads. What is changed of the rest is counted outside the thing's place,
in levels of 255.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

import minflux
from minflux.arrays import Int
from minflux.edit.rf_inversion import RFInversion, invert
from minflux.inference.flux1 import Flux1
from minflux.sampling.guidance import Guidance
from minflux.sampling.noise import noise
from minflux.world.captions import plain_caption
from minflux.world.evaluate import confidence_interval
from minflux.world.reader import score
from minflux.world.render import render
from minflux.world.scenes import THINGS, Scene, Thing, boxes, pick, sample
from tools.model_card import table

STEPS, GUIDANCE = 28, 3.0
DIALS = {  # each from the least change to the most
    "image-to-image, strength": (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "FlowEdit, steps of 28": (10, 14, 17, 20, 23, 26),
    "RF-inversion, η": (0.9, 0.6, 0.4, 0.2, 0.0),
}
HEADING = ["way", "dial", "edited right (95% interval)", "rest changed, levels of 255"]


@dataclass(frozen=True)
class Wish:
    """A scene, and the same with one of its things, the place-th, exchanged for another of the same size."""

    before: Scene
    after: Scene
    place: int

    @property
    def image(self) -> Image.Image:
        """The true image of the scene before."""
        return Image.fromarray(render(self.before))

    @property
    def size(self) -> dict[str, int]:
        """The scene's width and height, as settings of a call."""
        return {"width": self.before.width, "height": self.before.height}

    def rest(self) -> np.ndarray:
        """Mark the pixels outside the exchanged thing, (height, width)."""
        mask = np.ones((self.before.height, self.before.width), bool)
        left, top, width, height = boxes(self.before)[self.place]
        mask[top : top + height, left : left + width] = False
        return mask


def wishes(count: int, seed: int = 0) -> list[Wish]:
    """Draw edits of single things and of pairs, half of each."""
    rng = np.random.default_rng(seed)
    return [wish(sample(rng, kind=("single", "pair")[i % 2]), rng) for i in range(count)]


def wish(before: Scene, rng: np.random.Generator) -> Wish:
    """Exchange one of a scene's things for one that it doesn't show."""
    place = int(rng.integers(len(before.items)))
    things = [item for item in before.items if isinstance(item, Thing)]  # all: single things and pairs have no signs
    shown = [thing.name for thing in things]
    new = Thing(pick(rng, [name for name in THINGS if name not in shown]), things[place].size)
    items = (*before.items[:place], new, *before.items[place + 1 :])
    return Wish(before, replace(before, items=items), place)


# -- the ways --------------------------------------------------------------------------------------------------


def by_strength(pipe: Flux1, asked: Wish, strength: float, seed: int) -> Image.Image:
    """Image-to-image: noised to the share of the steps that is taken, and drawn anew from there."""
    settings: dict[str, Any] = {"seed": seed, "steps": STEPS, "guidance": GUIDANCE} | asked.size
    return pipe(plain_caption(asked.after), image=asked.image, strength=strength, **settings)


def by_flow(pipe: Flux1, asked: Wish, n_max: float, seed: int) -> Image.Image:
    """FlowEdit: along the difference of both prompts' velocities."""
    settings: dict[str, Any] = {"steps": STEPS, "guidance": GUIDANCE, "n_max": int(n_max)} | asked.size
    return pipe.edit(asked.image, plain_caption(asked.before), plain_caption(asked.after), seed=seed, **settings)


def by_inversion(pipe: Flux1, asked: Wish, eta: float, seed: int) -> Image.Image:
    """RF-inversion: from the noise that the image comes from, drawn to the image in 0.8 of the steps."""
    latents = pipe.encode_image(asked.image)
    _, h, w, channels = latents.shape
    drawn_to = pipe.nx.array(noise(seed, (1, channels, h, w)).transpose(0, 2, 3, 1))
    null = pipe.velocity(pipe.encode("", guidance=1), (h, w), Guidance())
    start = invert(null, latents, drawn_to, pipe.schedule.timesteps(STEPS, h * w // 4))
    text, edit = pipe.encode(plain_caption(asked.after), guidance=GUIDANCE), RFInversion(latents, eta, (0.0, 0.8))
    *_, step = pipe.sample(text, steps=STEPS, start=start, edit=edit, guidance=GUIDANCE)
    return Image.fromarray(pipe.decode(step.x)[0])


WAYS: dict[str, Callable[[Flux1, Wish, float, int], Image.Image]] = dict(
    zip(DIALS, (by_strength, by_flow, by_inversion), strict=True)
)


# -- measuring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One setting of one way's dial: how many edits of how many are right, and the mean change of the rest."""

    way: str
    dial: float
    right: int
    count: int
    changed: float


def changed(asked: Wish, image: Int[np.ndarray, "H W 3"]) -> float:
    """Return the mean change outside the exchanged thing, in levels of 255."""
    return float(np.abs(image.astype(int) - render(asked.before))[asked.rest()].mean())


def measure(pipe: Flux1, asked: Sequence[Wish]) -> list[Point]:
    """Edit every image by each way at each setting."""
    points = []
    for way, dials in DIALS.items():
        for dial in tqdm(dials, desc=way, unit="setting"):
            images = [np.asarray(WAYS[way](pipe, one, dial, seed)) for seed, one in enumerate(asked)]
            right = sum(score(one.after, image)["all"] for one, image in zip(asked, images, strict=True))
            rest = np.mean([changed(one, image) for one, image in zip(asked, images, strict=True)])
            points.append(Point(way, dial, right, len(asked), float(rest)))
    return points


def rows(points: Sequence[Point]) -> list[list[str]]:
    """Lay the points out as a table."""
    cells = []
    for p in points:
        low, high = (100 * x for x in confidence_interval(p.right, p.count))
        share = f"{100 * p.right / p.count:.0f}% ({low:.0f} to {high:.0f})"
        cells.append([p.way, f"{p.dial:g}", share, f"{p.changed:.1f}"])
    return [HEADING, *cells]


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw what is right over what is changed of the rest, a line a way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for way in DIALS:
        of = [p for p in points if p.way == way]
        label = f"{way}: {of[0].dial:g} to {of[-1].dial:g}"
        axes.plot([p.changed for p in of], [100 * p.right / p.count for p in of], marker="o", label=label)
    axes.set(xlabel="change of the rest, levels of 255", ylabel="edited right, %", ylim=(0, 105))
    axes.legend()
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--model", default="tiny", show_default=True)
@click.option("--edits", default=24, show_default=True, help="How many images are edited, at each setting.")
@click.option("--out", type=click.Path(path_type=Path), help="The curves, a .png.")
def main(model: str, edits: int, out: Path | None) -> None:
    """Print the table, and draw the curves."""
    points = measure(minflux.load(model), wishes(edits))
    print(table(rows(points)))
    if out:
        plot(points, out)


if __name__ == "__main__":
    main()
