"""Drawings of how data flows through FLUX.1, all in one style: light for the chapters, light and dark for the site.

    python -m chapters.diagrams            write docs/images/flow-*.png, two of each

A filled box has learned weights, an empty one has none. An arrow carries an array, and its shape stands beside it: I
image tokens, T text tokens, L = T + I of both, of width D, in H heads of K numbers. Lengths are inches.
"""

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import Circle, FancyBboxPatch
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "images"
LIGHT = {
    "paper": "#FCFCFC", "ink": "#222222", "faint": "#6E6E6E", "empty": "#FFFFFF", "img": "#0072B2", "txt": "#B45F06",
    "vec": "#8E4585", "pe": "#00795A", "both": "#444444", "img fill": "#D9EBF7", "txt fill": "#FBE8D0",
    "vec fill": "#F0DDEC", "pe fill": "#D5EEE5", "both fill": "#E6E6E6", "here": "#FFF0B8",
}  # fmt: skip
DARK = {
    "paper": "#1E2129", "ink": "#ECECEC", "faint": "#A9ADB8", "empty": "#2A2E38", "img": "#56B4E9", "txt": "#F0A649",
    "vec": "#DB97D0", "pe": "#4FC9A4", "both": "#C9CCD3", "img fill": "#1F4A66", "txt fill": "#5E4218",
    "vec fill": "#55304F", "pe fill": "#1B5141", "both fill": "#454A57", "here": "#6B5A12",
}  # fmt: skip
SMALL, NORMAL = 8.5, 10


class Sheet:
    """A sheet of paper of some inches, with boxes, lines and words on it in the colours of what flows there."""

    def __init__(self, width: float, height: float, dark: bool = False):
        self.colour = DARK if dark else LIGHT
        self.figure = plt.figure(figsize=(width, height), facecolor=self.colour["paper"], layout="none")
        self.ax = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), aspect="equal")
        self.ax.set_axis_off()

    def box(self, x: float, y: float, words: str, flow: str = "both", weights: bool = False, width=0.95, height=0.42):
        """Draw a box around (x, y): filled where it has learned weights."""
        fill = self.colour[f"{flow} fill"] if weights else self.colour["empty"]
        corner = (x - width / 2, y - height / 2)
        shape = "round,pad=0,rounding_size=0.08"
        edge = {"edgecolor": self.colour[flow], "facecolor": fill, "lw": 1.3}
        self.ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, zorder=3, **edge))
        self.words(x, y, words, size=NORMAL - 1)

    def line(self, *points: tuple[float, float], flow: str = "both", head: bool = True, lw: float = 1.3):
        """Draw a line through the points, with an arrow's head at its end."""
        xs, ys = zip(*points, strict=True)
        self.ax.plot(xs, ys, color=self.colour[flow], lw=lw, zorder=2, solid_joinstyle="round", solid_capstyle="round")
        if head:
            style = {"arrowstyle": "-|>", "color": self.colour[flow], "lw": lw, "shrinkA": 0, "shrinkB": 0}
            self.ax.annotate("", points[-1], points[-2], arrowprops=style | {"mutation_scale": 9 + 2 * lw}, zorder=2)

    def knot(self, x: float, y: float, sign: str, flow: str = "both"):
        """Draw a sum or a product: a sign in a circle."""
        circle = {"facecolor": self.colour["paper"], "edgecolor": self.colour[flow], "lw": 1.3, "zorder": 4}
        self.ax.add_patch(Circle((x, y), 0.12, **circle))
        self.words(x, y - 0.01, sign, size=NORMAL + 1)

    def words(self, x: float, y: float, words: str, flow: str = "ink", size=NORMAL, ha="center", va="center", **how):
        """Write words at (x, y)."""
        style = {"color": self.colour[flow], "fontsize": size, "linespacing": 1.15, "zorder": 5}
        self.ax.text(x, y, words, ha=ha, va=va, **style, **how)

    def shape(self, x: float, y: float, words: str, flow: str = "faint", **how):
        """Write the shape of an array beside its arrow."""
        self.words(x, y, words, flow, size=SMALL, **how)

    def here(self, x: float, y: float, width: float, height: float):
        """Light up a part of the sheet, around (x, y)."""
        corner, fill = (x - width / 2, y - height / 2), self.colour["here"]
        round_ = "round,pad=0,rounding_size=0.12"
        self.ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=round_, facecolor=fill, lw=0, zorder=0))


def chain(sheet: Sheet, y: float, boxes: Sequence[tuple], flow: str) -> None:
    """Draw boxes (x, words, weights, width) in a row, with arrows from each to the next."""
    for x, words, weights, width in boxes:
        sheet.box(x, y, words, flow, weights, width)
    for (x, _, _, width), (x_next, _, _, width_next) in pairwise(boxes):
        sheet.line((x + width / 2, y), (x_next - width_next / 2, y), flow=flow)


# -- the drawings ----------------------------------------------------------------------------------------------------


def plain_block(dark: bool = False) -> plt.Figure:
    """Draw the block of a plain transformer: the stream below, what is added to it above."""
    s = Sheet(7.5, 2.5, dark)
    stream, above = 0.62, 1.7
    s.line((0.15, stream), (7.4, stream), flow="img", lw=2.6)
    s.shape(0.18, stream - 0.2, "x: L × D", ha="left")
    s.words(3.75, stream - 0.36, "the residual stream", "img", size=SMALL)
    looks = [(0.9, "norm", False, 0.6), (1.75, "to q, k, v", True, 0.8), (3.1, "softmax\n(q kᵀ / √K) v", False, 1.05)]
    looks += [(4.15, "linear", True, 0.65)]
    chain(s, above, looks, "img")
    chain(s, above, [(5.5, "norm", False, 0.6), (6.4, "MLP", True, 0.7)], "img")
    for start, first, last, end in ((0.35, 0.6, 4.475, 4.7), (4.98, 5.2, 6.75, 7.0)):
        s.line((start, stream), (start, above), (first, above), flow="img")
        s.line((last, above), (end, above), (end, stream + 0.12), flow="img")
        s.knot(end, stream, "+", "img")
    s.shape(2.36, above + 0.36, "H × L × K, three times")
    s.shape(4.15, above + 0.36, "L × D")
    s.shape(6.4, above + 0.36, "L × 4 D inside")
    s.words(2.5, above - 0.55, "attention: tokens look at each other", size=SMALL)
    s.words(5.95, above - 0.55, "each token alone", size=SMALL)
    s.words(7.35, 2.35, "filled: has weights", "faint", size=SMALL, ha="right")
    return s.figure


def adaln(dark: bool = False) -> plt.Figure:
    """Draw how `vec` steers a layer: shift and scale before it, a gate after it."""
    s = Sheet(7.5, 2.85, dark)
    stream, layer, steer = 0.5, 1.3, 2.4
    s.line((0.15, stream), (7.4, stream), flow="img", lw=2.6)
    s.shape(0.18, stream - 0.2, "x: L × D", ha="left")
    s.line((0.55, stream), (0.55, layer), (0.85, layer), flow="img")
    s.box(1.2, layer, "norm", "img", width=0.7)
    s.box(4.75, layer, "attention, or MLP", "img", weights=True, width=1.6)
    for start, end in ((1.55, 2.58), (2.82, 3.18), (3.42, 3.95), (5.55, 6.08)):
        s.line((start, layer), (end, layer), flow="img")
    s.line((6.32, layer), (6.8, layer), (6.8, stream + 0.12), flow="img")
    s.knot(6.8, stream, "+", "img")
    s.words(0.4, steer, "vec", "vec")
    s.shape(0.4, steer - 0.2, "D")
    chain(s, steer, [(1.2, "SiLU", False, 0.6), (2.05, "linear", True, 0.65)], "vec")
    s.line((0.58, steer), (0.9, steer), flow="vec")
    s.line((2.375, steer), (6.2, steer), flow="vec", head=False)
    s.shape(4.75, steer + 0.16, "3 D, cut in three")
    for x, sign, name in ((2.7, "×", "1 + scale"), (3.3, "+", "shift"), (6.2, "×", "gate")):
        s.knot(x, layer, sign, "img")
        s.line((x, steer), (x, layer + 0.12), flow="vec")
        s.words(x - 0.08, layer + 0.62, name, "vec", size=SMALL, ha="right")
    s.words(4.0, 0.2, "gate 0: the layer adds nothing, and x passes as it is", "faint", size=SMALL)
    return s.figure


def double_block(dark: bool = False) -> plt.Figure:
    """Draw the double-stream block: text above, image below, one attention between them."""
    s = Sheet(7.5, 4.1, dark)
    middle = 2.05
    s.here(3.45, middle, 1.2, 2.0)
    s.box(3.45, middle, "join\nH × (T+I) × K\n\nturn q, k\n\nattention\n\npart", width=1.0, height=1.75)
    s.line((2.3, middle), (2.95, middle), flow="pe")
    s.words(2.25, middle, "positions: pe", "pe", size=SMALL, ha="right")
    for flow, y, name, sign in (("txt", 3.55, "T", 1), ("img", 0.55, "I", -1)):
        inner = y - sign * 0.8
        s.line((0.15, y), (7.4, y), flow=flow, lw=2.6)
        s.shape(0.18, y + sign * 0.2, f"{flow}: {name} × D", ha="left")
        s.line((0.35, y), (0.35, inner), (0.5, inner), flow=flow)
        chain(s, inner, [(0.88, "norm,\nsteer", False, 0.76), (1.83, "q, k, v;\nnorm q, k", True, 0.78)], flow)
        s.line((2.22, inner), (2.95, inner), flow=flow)
        s.shape(2.56, inner + sign * 0.16, f"H × {name} × K")
        s.line((3.95, inner), (4.15, inner), flow=flow)
        s.box(4.45, inner, "linear", flow, True, 0.6)
        s.line((4.75, inner), (5.05, inner), (5.05, y - sign * 0.12), flow=flow)
        s.line((5.3, y), (5.3, inner), (5.45, inner), flow=flow)
        chain(s, inner, [(5.83, "norm,\nsteer", False, 0.76), (6.67, "MLP", True, 0.6)], flow)
        s.line((6.97, inner), (7.12, inner), (7.12, y - sign * 0.12), flow=flow)
        for x in (5.05, 7.12):
            s.knot(x, y, "+", flow)
            s.knot(x, y - sign * 0.42, "×", "vec")
            s.words(x - 0.17, y - sign * 0.42, "gate", "vec", size=SMALL, ha="right")
        for x in (0.88, 5.83):
            s.words(x, inner - sign * 0.34, "shift, scale", "vec", size=SMALL)
    s.words(5.75, middle, "vec steers: 6 × D for each stream", "vec", size=SMALL)
    return s.figure


def single_block(dark: bool = False) -> plt.Figure:
    """Draw the single-stream block: one list, attention and MLP side by side between two matrices."""
    s = Sheet(7.5, 2.95, dark)
    stream, low, high, middle = 0.5, 1.35, 2.35, 1.85
    s.line((0.15, stream), (7.4, stream), lw=2.6)
    s.shape(0.18, stream - 0.2, "x: L × D, text and image in one list", ha="left")
    s.line((0.45, stream), (0.45, middle), (0.6, middle))
    chain(s, middle, [(1.02, "norm,\nsteer", False, 0.84), (2.0, "linear1", True, 0.72)], "both")
    s.words(1.02, middle + 0.34, "shift, scale", "vec", size=SMALL)
    s.line((2.36, middle), (2.6, middle), (2.6, high), (2.85, high))
    s.line((2.6, middle), (2.6, low), (3.5, low))
    chain(s, high, [(3.25, "norm q, k", True, 0.8), (4.4, "turn, attention", False, 1.1)], "both")
    s.box(3.85, low, "GELU", width=0.7)
    s.line((4.95, high), (5.35, high), (5.35, middle), (5.6, middle))
    s.line((4.2, low), (5.35, low), (5.35, middle), head=False)
    s.box(5.96, middle, "linear2", weights=True, width=0.72)
    s.line((6.32, middle), (6.95, middle), (6.95, stream + 0.12))
    s.knot(6.95, stream, "+")
    s.knot(6.95, 1.15, "×", "vec")
    s.words(6.78, 1.15, "gate", "vec", size=SMALL, ha="right")
    s.shape(2.52, high + 0.3, "L × 3 D: q, k, v", ha="center")
    s.shape(2.66, low - 0.15, "L × 4 D", ha="left")
    s.shape(5.0, high + 0.16, "L × D", ha="left")
    s.shape(4.3, low - 0.15, "L × 4 D", ha="left")
    s.shape(5.42, middle + 0.3, "L × 5 D", ha="left")
    s.line((4.4, 2.85), (4.4, high + 0.21), flow="pe")
    s.words(4.5, 2.8, "positions: pe", "pe", size=SMALL, ha="left")
    return s.figure


def rope(dark: bool = False) -> plt.Figure:
    """Draw how three ids turn a head: each axis has pairs of its own, each pair a speed."""
    s = Sheet(7.5, 2.85, dark)
    axes = (("reference: 0", 16, 0), ("row: 5", 56, 16), ("column: 12", 56, 72))
    unit, left, bar = 4.9 / 128, 2.35, 1.1
    for name, part, start in axes:
        x, width = left + unit * start, unit * part
        edges = {"facecolor": s.colour["pe fill"], "edgecolor": s.colour["pe"], "lw": 1.3}
        s.ax.add_patch(plt.Rectangle((x, bar), width, 0.36, **edges))
        for pair in range(1, part // 2):
            s.line((x + 2 * unit * pair, bar), (x + 2 * unit * pair, bar + 0.36), flow="pe", head=False, lw=0.4)
        s.shape(x + width / 2, bar - 0.16, f"{part // 2} pairs")
        s.box(x + width / 2, 2.45, name, "pe", height=0.34, width=1.0)
        s.line((x + width / 2, 2.28), (x + width / 2, bar + 0.38), flow="pe")
        if name.startswith("row"):
            s.words(x + width / 2 + 0.1, 1.9, "times a speed for each pair:\nits angle", "pe", size=SMALL, ha="left")
    s.words(0.15, 2.45, "a token's ids", size=NORMAL - 1, ha="left")
    s.words(0.15, bar + 0.18, "a head of q, or of k:\nK = 128 numbers", size=NORMAL - 1, ha="left")
    s.words(left + 2.45, 0.55, "each pair of neighbours (a, b) becomes", size=SMALL)
    s.words(left + 2.45, 0.32, "(a cos − b sin,  a sin + b cos)", size=NORMAL)
    s.words(left + 2.45, 0.1, "v is not turned, and no weight takes part", "faint", size=SMALL)
    return s.figure


PLACES = {  # what `whole` can light up: middle, width and height
    "text": (1.12, 3.0, 1.95, 1.15), "time": (3.0, 2.78, 1.35, 1.3), "tokens": (6.0, 2.95, 1.25, 0.66),
    "rope": (4.9, 2.95, 1.05, 0.66), "adaln": (3.0, 1.92, 1.3, 0.58), "double": (2.3, 1.05, 1.65, 0.72),
    "single": (4.3, 1.05, 1.65, 0.72), "last": (6.05, 1.05, 1.1, 0.72), "steps": (6.15, 1.88, 1.35, 0.6),
    "vae": (7.02, 2.95, 0.78, 0.6),
}  # fmt: skip


def whole(*here: str, dark: bool = False) -> plt.Figure:
    """Draw the whole of FLUX.1, from the prompt to the image, with some of its parts lit up."""
    s = Sheet(7.5, 4.0, dark)
    for place in here:
        s.here(*PLACES[place])
    top, row, blocks = 3.75, 2.95, 1.05
    _inputs(s, top, row)
    for x, name, flow, width in (
        (2.3, "19 double blocks", "img", 1.4),
        (4.3, "38 single blocks", "both", 1.4),
        (6.05, "last layer", "img", 0.85),
    ):
        s.box(x, blocks, name, flow, True, width, 0.5)
    s.line((0.65, row - 0.5), (0.65, blocks + 0.12), (1.6, blocks + 0.12), flow="txt")
    s.words(0.73, 1.7, "linear map\nto T × D", "txt", size=SMALL, ha="left")
    s.line((5.5, row), (5.4, row), (5.4, 0.38), (0.4, 0.38), (0.4, blocks - 0.12), (1.6, blocks - 0.12), flow="img")
    s.words(2.9, 0.53, "pack: I × 64, then a linear map to I × D", "img", size=SMALL)
    s.line((3.0, blocks), (3.6, blocks))
    s.shape(3.3, blocks - 0.15, "L × D")
    s.line((5.0, blocks), (5.62, blocks), flow="img")
    s.words(5.2, blocks - 0.15, "I × D", "img", size=SMALL)
    s.line((3.0, 1.75), (3.0, 1.62), flow="vec", head=False)  # one line for all places that vec steers
    s.line((2.1, 1.62), (5.85, 1.62), flow="vec", head=False)
    s.line((2.5, 1.47), (4.9, 1.47), flow="pe", head=False)
    s.line((4.9, row - 0.21), (4.9, blocks + 0.25), flow="pe")
    for x, flow, bus in ((2.1, "vec", 1.62), (4.1, "vec", 1.62), (5.85, "vec", 1.62), (2.5, "pe", 1.47)):
        s.line((x, bus), (x, blocks + 0.25), flow=flow)
    s.line((6.25, blocks + 0.25), (6.25, 1.68), flow="img")
    s.words(6.3, 1.88, "velocity:\none step of 28", "img", size=SMALL)
    s.line((6.25, 2.06), (6.25, row - 0.21), flow="img")
    return s.figure


def _inputs(s: Sheet, top: float, row: float) -> None:
    """Draw what goes into the transformer, and the image that comes out: the upper half of `whole`."""
    s.words(1.12, top, "prompt")
    for x, name, flow, out in ((0.65, "T5", "txt", "txt: T × 4096"), (1.6, "CLIP", "vec", "y: 768")):
        s.line((1.12, top - 0.12), (x, row + 0.21), flow=flow)
        s.box(x, row, name, flow, True, 0.7)
        s.words(x, row - 0.37, out, flow, size=SMALL)
    s.words(3.0, top, "time t, guidance")
    s.line((3.0, top - 0.12), (3.0, row + 0.21), flow="vec")
    s.box(3.0, row, "sinusoids,\nMLP", "vec", True)
    s.line((3.0, row - 0.21), (3.0, 2.52), flow="vec")
    s.line((1.6, row - 0.47), (1.6, 2.4), (2.88, 2.4), flow="vec")
    s.words(2.2, 2.5, "MLP", "vec", size=SMALL)
    s.knot(3.0, 2.4, "+", "vec")
    s.line((3.0, 2.28), (3.0, 2.09), flow="vec")
    s.words(3.1, 2.2, "vec: D", "vec", size=SMALL, ha="left")
    s.box(3.0, 1.92, "modulation", "vec", True, 1.0, 0.34)
    s.words(4.8, top, "position ids")
    s.line((4.9, top - 0.12), (4.9, row + 0.21), flow="pe")
    s.box(4.9, row, "rope", "pe", width=0.8)
    s.words(4.82, 2.3, "pe: L × K/2", "pe", size=SMALL, ha="right")
    s.words(6.0, top, "noise")
    s.line((6.0, top - 0.12), (6.0, row + 0.21), flow="img")
    s.box(6.0, row, "latents\n16 channels", "img", width=1.0)
    s.line((6.5, row), (6.72, row), flow="img")
    s.box(7.02, row, "VAE", "img", True, 0.6)
    s.line((7.02, row + 0.21), (7.02, top - 0.14), flow="img")
    s.words(7.02, top, "image")


DRAWINGS = {
    "plain-block": plain_block, "adaln": adaln, "double-block": double_block, "single-block": single_block,
    "rope": rope, "whole": whole,
}  # fmt: skip


def write(folder: Path) -> None:
    """Write each drawing twice, for light pages and for dark ones."""
    from chapters import thumbnails  # a chapter, which runs in its own folder, has no `chapters`

    for name, draw in DRAWINGS.items():
        for dark in (False, True):
            figure, drawn = draw(dark=dark), io.BytesIO()
            figure.savefig(drawn, dpi=200)
            plt.close(figure)
            path = folder / f"flow-{name}-{'dark' if dark else 'light'}.png"
            path.write_bytes(thumbnails.png(Image.open(drawn), 64))


if __name__ == "__main__":
    write(FOLDER)
