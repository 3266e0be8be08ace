"""Where the small model looks for a word: heat maps, and how much of each head's heat lies where its thing is.

    python -m tools.looks --pairs 48 --out docs/images/looks.png | python -m tools.insert looks docs/tiny-model-card.md

The table has the best heads over the names of so many pairs of things, and says which of them were taught
(`minflux.train.grounding`). The figure has one prompt: of two words, the heat in the best head of each block.
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image

import minflux
from minflux.images import grid
from minflux.inference.flux1 import Flux1
from minflux.train.grounding import Grounding
from minflux.train.recipe import part, read_recipe, section
from minflux.world.looking import heat_maps, looks
from tools.model_card import table

PROMPT, WORDS = "a cat left of an apple on a blue background", ("cat", "apple")
SHOWN = 8  # heads in the table

Head = tuple[str, int]


def taught() -> set[Head]:
    """Return the heads that training taught to look at the word that names what a token shows."""
    asked = section(Grounding, part(read_recipe("tiny"), "flow.grounding"))
    return {(block, 0) for block in asked.look_in}


def rows(shares: dict[Head, float]) -> list[list[str]]:
    """Lay out the heads that look best, and the mean of the best four of all and of those that were not taught."""
    ranked = sorted(shares, key=lambda head: -shares[head])
    own = [head for head in ranked if head not in taught()]
    cells = [[f"{b}, head {h}", f"{shares[b, h]:.2f}", "" if (b, h) in own else "yes"] for b, h in ranked[:SHOWN]]
    means = {"mean of the best four": ranked[:4], "mean of the best four that were not taught": own[:4]}
    cells += [[name, f"{np.mean([shares[head] for head in best]):.2f}", ""] for name, best in means.items()]
    return [["block and head", "share of the name's heat in its thing's half", "taught"], *cells]


def best_heads(shares: dict[Head, float]) -> list[Head]:
    """Return the best head of each block, in the blocks' order."""
    blocks = list(dict.fromkeys(block for block, _ in shares))
    return [max((head for head in shares if head[0] == block), key=lambda head: shares[head]) for block in blocks]


def drawn(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map as pixels of an image's size, white where it is largest."""
    grey = Image.fromarray((255 * heat / heat.max()).astype(np.uint8))
    return np.asarray(grey.resize(size, Image.Resampling.NEAREST).convert("RGB"))


def figure(pipe: Flux1, heads: list[Head], seed: int) -> Image.Image:
    """Draw the prompt's image, and beside it each head's heat of each word, a row a word."""
    image = np.asarray(pipe(PROMPT, seed=seed))
    lines = []
    for word in WORDS:
        maps = heat_maps(pipe, [PROMPT], [word], seed=seed)
        lines += [image, *(drawn(maps[block][0, head], image.shape[1::-1]) for block, head in heads)]
    return grid(lines, columns=1 + len(heads))


@click.command()
@click.option("--model", default="tiny", show_default=True)
@click.option("--pairs", default=48, show_default=True, help="Pairs of things whose names are measured.")
@click.option("--seed", default=7, show_default=True, help="Of the figure's image.")
@click.option("--out", type=click.Path(path_type=Path), help="The figure, a .png.")
def main(model: str, pairs: int, seed: int, out: Path | None) -> None:
    """Print where each head looks for a name, and draw one prompt's heat maps."""
    pipe = minflux.load(model)
    shares = looks(pipe, pairs)
    print(table(rows(shares)))
    if out:
        figure(pipe, best_heads(shares), seed).save(out, optimize=True)


if __name__ == "__main__":
    main()
