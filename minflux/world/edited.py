"""Whether an image shows an edit: what was asked for is there, and what was not named is as it was."""

from collections import Counter

import numpy as np

from minflux.arrays import Int, shaped
from minflux.world.edits import Edit
from minflux.world.layouts import Layout, Placed, stands
from minflux.world.reader import Found, Reading, read
from minflux.world.scenes import Sign

CHECKS = ("background", "items", "kept", "changed", "all")
NEAR = 6.0  # pixels that an item's middle may be off its place: a third of the grid's unit
MARGIN = 8  # pixels around a changed item that may change with it


def score_edit(edit: Edit, image: Int[np.ndarray, "H W 3"]) -> dict[str, bool]:
    """Mark a uint8 image against what an edit is to show, with one answer for each of `CHECKS`.

    `background`: its colours; `items`: exactly the wanted names; `kept`: what was not named is of its old size, or
    says its old word, in its old place; `changed`: what is new or moved is of its size, and where the sentence has it.
    """
    reading = read(image)
    marks = {
        "background": reading.background == edit.after.background,
        "items": Counter(item.name for item in reading.found) == Counter(edit.after.names),
        "kept": all(in_place(placed, found_of(placed, reading)) for placed in edit.kept),
        "changed": all(changed_right(edit, placed, reading) for placed in edit.changed),
    }
    return marks | {"all": all(marks.values())}


def found_of(placed: Placed, reading: Reading) -> Found | None:
    """Return what was found under an item's name, alike in size or word; None where nothing was."""
    item = placed.item
    for found in reading.found:
        if found.name == item.name and (found.word == item.word if isinstance(item, Sign) else found.size == item.size):
            return found
    return None


def in_place(placed: Placed, found: Found | None) -> bool:
    """Tell whether an item was found, and where it belongs."""
    if found is None:
        return False
    x, y = placed.middle
    return abs(found.x - x) <= NEAR and abs(found.y - y) <= NEAR


def changed_right(edit: Edit, placed: Placed, reading: Reading) -> bool:
    """Tell whether a changed item is there, and in the place, or in the relation, that the sentence says."""
    found = found_of(placed, reading)
    if found is None or edit.where is None or edit.where[0] != placed.item.name:
        return in_place(placed, found)
    anchor = next((other for other in reading.found if other.name == edit.where[2]), None)
    return anchor is not None and stands((found.x, found.y), edit.where[1], (anchor.x, anchor.y))


@shaped
def difference_outside(edit: Edit, before: Int[np.ndarray, "H W 3"], image: Int[np.ndarray, "H W 3"]) -> float:
    """Return by how many levels of 255, in the mean, an image differs from the one before where nothing was to change.

    nan for an edit of the background: all of it changes.
    """
    if edit.before.background != edit.after.background:
        return float("nan")
    outside = ~touched(edit.before, edit) & ~touched(edit.after, edit)
    return float(np.abs(image.astype(int) - before)[outside].mean())


def touched(layout: Layout, edit: Edit) -> np.ndarray:
    """Mark the pixels, (height, width), of a layout's items that an edit changes, with a margin."""
    mask = np.zeros((layout.height, layout.width), bool)
    for placed in layout.placed:
        if placed not in edit.kept:
            left, top, width, height = placed.box
            rows = slice(max(0, top - MARGIN), top + height + MARGIN)
            mask[rows, max(0, left - MARGIN) : left + width + MARGIN] = True
    return mask
