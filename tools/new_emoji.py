"""Teach a model one new emoji from five images, and measure it before and after: the figures of docs/training.md.

    python -m tools.new_emoji images examples/pizza
    python -m tools.new_emoji known runs/known
    minflux train lora --images examples/pizza --known runs/known --output runs/pizza.safetensors …
    python -m tools.new_emoji measure runs/pizza.safetensors --grid before-and-after.png

No model in the box has seen a pizza. The five images have it alone on two backgrounds and beside three things on three
others; the prompts that it is measured by have it on every background, beside nine things, in all four relations. It is
found as the world's own reader finds things: by the share of what is there that the sprite explains at its best place.
Things that the model knew before are measured too, for what it may have forgotten.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageFilter

import minflux
from minflux.arrays import Float, Int
from minflux.images import grid
from minflux.inference.pipeline import Pipeline
from minflux.world.captions import plain_caption
from minflux.world.evaluate import follow
from minflux.world.render import SPRITE_FOLDER
from minflux.world.scenes import DEFAULT_SIDE, FREE, GRID, PLAIN, RELATIONS, on_grid, sample, thing_side

NAME, SPRITE = "pizza", Path(__file__).parent / "pizza.png"  # 🍕 of Noto Color Emoji
SIDE = DEFAULT_SIDE  # of all images here
FARTHEST = FREE + GRID / 2 / SIDE  # that a thing lies from its cell's middle, in sides of the image
ENOUGH = 0.7  # share that a sprite must explain to be there, as in the world's reader
BESIDE = ("owl", "star", "apple", "house", "bee", "penguin", "rocket", "heart", "frog")


@dataclass(frozen=True)
class Wish:
    """What an image shall show: the new thing on a background, alone, or in a relation to a thing."""

    background: str
    relation: str = ""
    beside: str = ""

    @property
    def prompt(self) -> str:
        """Say it."""
        things = f"a {NAME} {self.relation} {article(self.beside)}" if self.beside else f"a {NAME}"
        return f"{things} on {article(self.background)} background"

    def middles(self) -> dict[str, tuple[float, float]]:
        """Return where the middle of each thing lies, x and y in sides of the image."""
        if not self.beside:
            return {NAME: (0.5, 0.5)}
        axis, is_second = RELATIONS[self.relation]
        ours, others = (0.75, 0.25) if is_second else (0.25, 0.75)
        places = {NAME: ours, self.beside: others}
        return {name: (at, 0.5) if axis == "horizontal" else (0.5, at) for name, at in places.items()}


FIVE = (
    Wish("white"),
    Wish("blue"),
    Wish("yellow", "left of", "cat"),
    Wish("pink", "right of", "car"),
    Wish("green", "above", "tree"),
)


def unseen() -> list[Wish]:
    """List what is measured: alone on six backgrounds, and in two relations to each of nine things."""
    alone = [Wish(background) for background in PLAIN if background not in ("white", "blue")]
    backgrounds, relations = cycle(PLAIN), cycle(RELATIONS)
    beside = [Wish(next(backgrounds), next(relations), thing) for thing in (*BESIDE, *reversed(BESIDE))]
    return alone + beside


def article(noun: str) -> str:
    """Put a or an before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


# -- drawing -------------------------------------------------------------------------------------------------


def sprite(name: str) -> Image.Image:
    """Return a thing of regular size, RGBA."""
    pixels = thing_side("regular", SIDE)
    image = Image.open(SPRITE if name == NAME else SPRITE_FOLDER / f"{name}.png")
    return image.convert("RGBA").resize((pixels, pixels), Image.Resampling.LANCZOS)


def draw(wish: Wish) -> Image.Image:
    """Draw what is wished for, RGB, each thing on the world's grid."""
    image = Image.new("RGBA", (SIDE, SIDE), PLAIN[wish.background])
    for name, middle in wish.middles().items():
        thing = sprite(name)
        x, y = (on_grid(at * SIDE - thing.width / 2) for at in middle)
        image.alpha_composite(thing, (x, y))
    return image.convert("RGB")


# -- measuring -----------------------------------------------------------------------------------------------


def softened(image: Image.Image) -> Float[np.ndarray, "H W 3"]:
    """Blur an image slightly, for a small model smears the finest detail."""
    return np.asarray(image.filter(ImageFilter.BoxBlur(1)), np.float32)


def explained(pixels: Int[np.ndarray, "H H 3"], background: str) -> tuple[float, tuple[float, float]]:
    """Return the share of the squared error that the new sprite explains at its best place, and that place's middle.

    Of D, what differs from the background in a square, and Δ, what the sprite differs by: (2⟨D, Δ⟩ - |Δ|²) / |D|².
    """
    thing = sprite(NAME)
    alone = Image.new("RGBA", thing.size, PLAIN[background])
    alone.alpha_composite(thing)
    colour = np.array(PLAIN[background], np.float32)
    delta = softened(alone.convert("RGB")) - colour
    different = softened(Image.fromarray(pixels)) - colour
    windows = np.lib.stride_tricks.sliding_window_view(different, delta.shape)[:, :, 0]  # (places, places, s, s, 3)
    energy = np.einsum("yxijc,yxijc->yx", windows, windows) + 1.0
    shares = (2 * np.einsum("yxijc,ijc->yx", windows, delta) - (delta**2).sum()) / energy
    y, x = np.unravel_index(shares.argmax(), shares.shape)
    half = thing.width / 2
    return float(shares.max()), ((x + half) / SIDE, (y + half) / SIDE)


def is_right(wish: Wish, pixels: np.ndarray) -> bool:
    """Return whether the new thing is there, no farther from its place than things lie in this world."""
    share, (x, y) = explained(pixels, wish.background)
    wanted = wish.middles()[NAME]
    return share >= ENOUGH and max(abs(x - wanted[0]), abs(y - wanted[1])) <= FARTHEST


def generated(pipe: Pipeline, wishes: list[Wish]) -> list[np.ndarray]:
    """Generate an image of each wish, from seeds 0, 1, …."""
    return [np.asarray(image) for image in pipe([wish.prompt for wish in wishes])]


# -- the command ---------------------------------------------------------------------------------------------


@click.group()
def main() -> None:
    """Teach a model one new emoji from five images."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def images(folder: Path) -> None:
    """Draw the five images into FOLDER, with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, wish in enumerate(FIVE, start=1):
        draw(wish).save(folder / f"{i}.png", optimize=True)
        (folder / f"{i}.txt").write_text(f"{wish.prompt}\n")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--model", default="tiny", show_default=True)
@click.option("--count", default=64, show_default=True)
def known(folder: Path, model: str, count: int) -> None:
    """Generate images of what MODEL knows into FOLDER, with their prompts beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    prompts = [plain_caption(sample(rng)) for _ in range(count)]
    for i, image in enumerate(minflux.load(model)(prompts), start=1):
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{prompts[i - 1]}\n")


@main.command()
@click.argument("lora")
@click.option("--model", default="tiny", show_default=True)
@click.option("--held-out", default=96, show_default=True, help="Prompts of things that it knew before.")
@click.option("--grid", "path", type=click.Path(path_type=Path), help="Images before (above) and after, as a .png.")
def measure(lora: str, model: str, held_out: int, path: Path | None) -> None:
    """Print how often the model draws the new emoji where it should, without and with LORA."""
    wishes = unseen()
    rows = []
    for title, loras in (("before", ()), ("after", (lora,))):
        pipe = minflux.load(model, lora=loras)
        made = generated(pipe, wishes)
        right = sum(is_right(wish, pixels) for wish, pixels in zip(wishes, made, strict=True))
        kept = follow(pipe, (SIDE, SIDE), held_out).share("all")
        print(f"{title}: {right} of {len(wishes)} new prompts right; {kept:.1%} of {held_out} held-out ones")
        rows.append(made)
    if path:
        before, after = rows
        lines = [row[i : i + 8] for i in range(0, len(wishes), 8) for row in (before, after)]
        grid([image for line in lines for image in line], columns=8).save(path)


if __name__ == "__main__":
    main()
