"""What an image shows, item by item: a scene's things and signs with their places, which may lie anywhere.

A `Scene` keeps its items in cells, so that a caption can tell it. What an edit leaves behind is no scene at times: take
one of two things away, and the other one stays at the side.
"""

from dataclasses import dataclass

import numpy as np

from minflux.arrays import Int, shaped
from minflux.world.render import background, paint
from minflux.world.scenes import GRID, RELATIONS, Box, Item, Scene, boxes, on_grid


@dataclass(frozen=True)
class Placed:
    """An item, and its place: (left, top, width, height) in pixels."""

    item: Item
    box: Box

    @property
    def middle(self) -> tuple[float, float]:
        """The middle of its place, (x, y) in pixels."""
        left, top, width, height = self.box
        return left + width / 2, top + height / 2


@dataclass(frozen=True)
class Layout:
    """A background and the items on it, in an image of width × height."""

    background: str
    placed: tuple[Placed, ...]
    width: int
    height: int

    @property
    def short(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)

    @property
    def names(self) -> tuple[str, ...]:
        """The items' names, in their order."""
        return tuple(placed.item.name for placed in self.placed)


def layout_of(scene: Scene) -> Layout:
    """Return a scene's items with their places."""
    placed = tuple(Placed(item, box) for item, box in zip(scene.items, boxes(scene), strict=True))
    return Layout(scene.background, placed, scene.width, scene.height)


@shaped
def render_layout(layout: Layout) -> Int[np.ndarray, "H W 3"]:
    """Draw a layout: (height, width, 3) uint8."""
    image = background(layout.background, layout.width, layout.height).copy()
    for placed in layout.placed:
        paint(image, placed.item, placed.box)
    return image


# -- room ------------------------------------------------------------------------------------------------------


def at_middle(middle: tuple[float, float], extent: tuple[int, int]) -> Box:
    """Return the place on the grid whose middle is nearest to a point."""
    return on_grid(middle[0] - extent[0] / 2), on_grid(middle[1] - extent[1] / 2), *extent


def stands(middle: tuple[float, float], relation: str, other: tuple[float, float]) -> bool:
    """Tell whether one point stands in a relation to another, further that way than across.

    >>> stands((10, 0), "above", (0, 64)), stands((10, 0), "left of", (0, 64))
    (True, False)
    """
    axis, comes_second = RELATIONS[relation]
    along, across = middle[0] - other[0], middle[1] - other[1]
    if axis == "vertical":
        along, across = across, along
    return abs(along) > abs(across) and (along > 0) == comes_second


def overlap(a: Box, b: Box) -> bool:
    """Tell whether two places have a pixel in common.

    >>> overlap((0, 0, 16, 16), (16, 0, 16, 16)), overlap((0, 0, 32, 32), (16, 16, 32, 32))
    (False, True)
    """
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def fits(layout: Layout) -> bool:
    """Tell whether all items lie in the image, and none over another."""
    inside = all(
        left >= 0 and top >= 0 and left + width <= layout.width and top + height <= layout.height
        for left, top, width, height in (placed.box for placed in layout.placed)
    )
    places = [placed.box for placed in layout.placed]
    return inside and not any(overlap(a, b) for i, a in enumerate(places) for b in places[:i])


def beside(layout: Layout, anchor: Placed, extent: tuple[int, int], relation: str) -> list[Box]:
    """List the places on the grid in a relation to an item, such as "left of" it: in line with it, wholly beside it."""
    left, top, width, height = anchor.box
    across, down = at_middle(anchor.middle, extent)[:2]
    if relation in ("left of", "right of"):
        first, end = (0, left) if relation == "left of" else (left + width, layout.width)
        return [(x, down, *extent) for x in range(first, end - extent[0] + 1, GRID)]
    first, end = (0, top) if relation == "above" else (top + height, layout.height)
    return [(across, y, *extent) for y in range(first, end - extent[1] + 1, GRID)]
