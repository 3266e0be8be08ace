"""What of a drawing a page has room for: attention is L² numbers a head, block and step, and a file is not endless."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BYTES = 2_200_000  # of attention, one a number and four a row; 2.9 MB as text
STEPS, CELLS = 32, 16  # at most: steps that are shown at all, and cells along the image's longer side
ENOUGH = {"steps": 4, "blocks": 12, "heads": 6, "cells": 8}  # what is beyond this goes first


@dataclass(frozen=True)
class Choice:
    """What is kept of attention: the steps' and heads' numbers, the blocks' names, cells along the longer side."""

    steps: tuple[int, ...]
    blocks: tuple[str, ...]
    heads: tuple[int, ...]
    cells: int


def evenly(count: int, most: int) -> tuple[int, ...]:
    """Return at most so many of the numbers 0 … count - 1, evenly spread, with the first and the last.

    >>> evenly(20, 5), evenly(3, 5), evenly(9, 1)
    ((0, 5, 10, 14, 19), (0, 1, 2), (0,))
    """
    places = np.linspace(0, count - 1, min(count, most))
    return tuple(int(place + 0.5) for place in places)


def grid_of(rows: int, columns: int, cells: int) -> tuple[int, int]:
    """Return the rows and columns of a grid of at most `cells` along the longer side, of the image's aspect.

    >>> grid_of(64, 32, 16), grid_of(4, 4, 16)
    ((16, 8), (4, 4))
    """
    larger = max(1.0, max(rows, columns) / cells)
    return max(1, round(rows / larger)), max(1, round(columns / larger))


def choose(
    steps: Sequence[int], blocks: Sequence[str], heads: int, words: int, grid: tuple[int, int], most: int = BYTES
) -> Choice:
    """Choose what fits into `most` bytes, the fewest things left out first of what there is most of.

    steps: those that the page shows. words: tokens beside the image's. grid: the image's rows and columns of tokens.
    """
    counts = {"steps": len(steps), "blocks": len(blocks), "heads": heads, "cells": min(CELLS, max(grid))}

    def size() -> int:
        rows, columns = grid_of(*grid, counts["cells"])
        tokens = words + rows * columns
        return counts["steps"] * counts["blocks"] * counts["heads"] * tokens * (tokens + 4)

    while size() > most and max(counts.values()) > 1:
        name = max(counts, key=lambda name: counts[name] / ENOUGH[name] if counts[name] > 1 else 0)
        counts[name] -= 1
    return Choice(
        steps=tuple(steps[i] for i in evenly(len(steps), counts["steps"])),
        blocks=tuple(blocks[i] for i in evenly(len(blocks), counts["blocks"])),
        heads=evenly(heads, counts["heads"]),
        cells=counts["cells"],
    )
