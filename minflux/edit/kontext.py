"""FLUX.1 Kontext: reference images as tokens after the image's own, which the model attends to and never changes.

A reference's tokens stay clean at every step. What tells them from the image's is their place: on RoPE's first axis
they stand at 1, where text and image stand at 0. Of the prediction, the image's part alone is kept. Sources: BFL
`flux/sampling.py` (`prepare_kontext`) and `flux/util.py` (the sizes); diffusers
`pipelines/flux/pipeline_flux_kontext.py`; several references as ComfyUI's `comfy/ldm/flux/model.py` places them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minflux.arrays import Array
from minflux.errors import check_choice

Size = tuple[int, int]  # width, height
Place = tuple[int, int, int]  # reference, row and column of a first token
SIDE = 1024  # of the square that the sizes below are for
NARROW = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
)  # fmt: skip
SIZES: tuple[Size, ...] = (*NARROW, (SIDE, SIDE), *((height, width) for width, height in reversed(NARROW)))
LAYOUTS = ("offset", "index")


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference image: its latents (1, h, w, C), and where its tokens begin."""

    latents: Array
    place: Place = (1, 0, 0)


def reference_size(size: Size, usual: Size, unit: int) -> Size:
    """Return the size at which a model sees a reference: of the trained ones that of the nearest aspect.

    For a model that is usually as large as `usual`, not 1024 × 1024, they are scaled, to multiples of `unit`.

    >>> reference_size((4000, 3000), (1024, 1024), 16), reference_size((100, 300), (64, 64), 16)
    ((1184, 880), (48, 96))
    """
    aspect = size[0] / size[1]
    width, height = min(SIZES, key=lambda trained: abs(aspect - trained[0] / trained[1]))
    scale = (usual[0] * usual[1]) ** 0.5 / SIDE
    return max(unit, round(width * scale / unit) * unit), max(unit, round(height * scale / unit) * unit)


def places(sizes: Sequence[Size], layout: str) -> list[Place]:
    """Return where the tokens of references begin, of `sizes` (columns, rows) in tokens.

    "index": each at 1, 2, 3, … of the first axis. "offset": all at 1, each right of the ones before it or below them,
    whichever keeps the canvas that holds them the smaller.

    >>> places([(4, 4), (4, 4), (2, 6)], "offset"), places([(4, 4), (4, 4)], "index")
    ([(1, 0, 0), (1, 4, 0), (1, 0, 4)], [(1, 0, 0), (2, 0, 0)])
    """
    check_choice("reference_layout", layout, LAYOUTS)
    if layout == "index":
        return [(number, 0, 0) for number in range(1, len(sizes) + 1)]
    found, width, height = [], 0, 0
    for columns, rows in sizes:
        is_right = height + rows > width + columns
        row, column = (0, width) if is_right else (height, 0)
        found.append((1, row, column))
        width, height = max(width, column + columns), max(height, row + rows)
    return found
