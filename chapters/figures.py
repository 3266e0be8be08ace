"""What the chapters share: one figure style, pictures in a row, MLX where it is installed, agreement of two arrays.

A chapter starts with `import figures`; a notebook of solutions/ with `sys.path.append("..")` before it, for Jupyter
runs a notebook in its own folder.
"""

import os
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython

from minflux.backend import Backend, backend_of, blas, get_backend
from minflux.errors import BackendError
from minflux.images import to_uint8

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8A8A8A"
CYCLE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)  # Okabe and Ito's: told apart by the colour-blind too
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
SKIPPED = "skipped:"  # a cell that prints this is not compared with its committed output (chapters/check.py)

STYLE = {
    "figure.facecolor": "#FCFCFC",  # opaque, so that a dark page shows the same figure
    "savefig.facecolor": "#FCFCFC",
    "axes.facecolor": "#FCFCFC",
    "figure.dpi": 100,
    "figure.figsize": (7.5, 3.5),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "image.cmap": SEQUENTIAL,
    "image.interpolation": "nearest",
    "lines.linewidth": 1.6,
}


def use_style() -> None:
    """Give every figure that follows the chapters' one style, and exactly the size in pixels that it asks for."""
    plt.rcParams.update(STYLE)
    if get_ipython() is not None:
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance().print_figure_kwargs = {"bbox_inches": None}  # not cropped to what is drawn


def picture(ax, array, title: str | None = None) -> None:
    """Show a picture (H, W, 3), uint8 or floats in [-1, 1], of either backend, without axes."""
    ax.imshow(as_uint8(array))
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)


def strip(pictures: Sequence, titles: Sequence[str] | None = None):
    """Show pictures side by side in a figure of their own, and return it."""
    return wall(pictures, titles, len(pictures))


def wall(pictures: Sequence, titles: Sequence[str] | None, columns: int, side: float = 1.6):
    """Show pictures in rows of `columns`, each below its title, `side` inches or what fits, and return the figure."""
    rows, side = -(-len(pictures) // columns), min(side, 7.5 / columns)
    fig, axes = plt.subplots(rows, columns, figsize=(side * columns, rows * (side + 0.3)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(pictures):
            picture(ax, pictures[i], None if titles is None else titles[i])
    return fig


def coarse(array, step: int) -> np.ndarray:
    """Return a picture whose levels are rounded to `step` of 255, which makes a smaller file."""
    return as_uint8(array) // step * step + step // 2


def mlx() -> Backend | None:
    """Return the MLX backend, or None after one line that says why there is none."""
    if "mlx" not in os.environ.get("MINFLUX_TEST_BACKENDS", "mlx"):
        print(SKIPPED, "MLX is left out here (MINFLUX_TEST_BACKENDS)")
        return None
    try:
        return get_backend("mlx")
    except BackendError:
        print(SKIPPED, "MLX is not installed here; the chapter goes on with NumPy alone")
        return None


def mlx_to_train() -> Backend | None:
    """Return the MLX backend where it trains in a chapter's time, or None after one line that says why not."""
    nx = mlx()
    if nx is not None and not nx.on_gpu and blas.is_missing():
        print(SKIPPED, f"MLX has no fast BLAS here, and would train for a quarter of an hour: {blas.INSTALL}")
        return None
    return nx


def agree(name: str, ours, theirs, tolerance: float) -> None:
    """Print the relative error |ours - theirs| / |theirs| of two arrays of either backend, and assert it small.

    Raises AssertionError when the shapes differ, or the error (Euclidean norms over all entries) is over `tolerance`.
    """
    ours, theirs = as_numpy(ours).astype(np.float64), as_numpy(theirs).astype(np.float64)
    assert ours.shape == theirs.shape, f"{name}: shapes {ours.shape} and {theirs.shape} differ"
    error = float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))
    assert error <= tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}"
    print(f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}" if tolerance > 0 else f"{name}: equal")


def as_numpy(array) -> np.ndarray:
    """Return an array of either backend, or anything NumPy can read, as a NumPy array."""
    try:
        return backend_of(array).to_numpy(array)
    except TypeError:
        return np.asarray(array)


def as_uint8(array) -> np.ndarray:
    """Return a picture in uint8: itself, or [-1, 1] mapped to 0 … 255."""
    array = as_numpy(array)
    return array if array.dtype == np.uint8 else to_uint8(array)


# -- the weights of a model (chapter 20) -----------------------------------------------------------------------------


def stacked(ax, rows: Sequence[str], parts: dict[str, Sequence[float]]) -> None:
    """Draw a bar for each row, from the top, of parts side by side, and write its sum behind it."""
    ends = np.zeros(len(rows))
    for name, lengths in parts.items():
        ax.barh(rows, lengths, left=ends, label=name)
        ends += np.asarray(lengths)
    for row, end in enumerate(ends):
        ax.text(end, row, f" {end:.1f}", va="center")
    ax.invert_yaxis()
    ax.legend(loc="lower right")


def on_levels(ax, numbers, rounded, levels) -> None:
    """Draw numbers as circles, what they are rounded to as crosses, and all levels as lines."""
    ax.hlines(levels, -1, len(numbers), color=GREY, lw=0.7)
    ax.plot(numbers, "o", ms=3.5, color=BLUE, label="a weight")
    ax.plot(rounded, "x", ms=4.5, color=VERMILLION, label="rounded")
    ax.set(xlabel="place in the group")


def banded(ax, x, rows: Sequence[Sequence[float]], colour: str, **how) -> None:
    """Draw the middle one of each row over x, and a band from the row's least to its most."""
    ax.plot(x, [np.median(row) for row in rows], "o-", ms=4, color=colour, **how)
    ax.fill_between(x, [min(row) for row in rows], [max(row) for row in rows], color=colour, alpha=0.15, lw=0)


def dots(ax, names: Sequence[str], rows: Sequence[Sequence[float]], mark: str, colour: str) -> None:
    """Draw each name's numbers as marks on a line of its own, the first name at the top."""
    for row, found in enumerate(rows):
        ax.plot(found, [row] * len(found), mark, ms=4, mfc="none", color=colour)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.5, -0.5)


def over_time(ax, times, taken, stages: dict[str, tuple[float, float]]) -> None:
    """Draw what is taken over time, above stages of work, each a span in a colour of its own."""
    for (name, span), colour in zip(stages.items(), (GREY, ORANGE, BLUE, GREEN), strict=True):
        ax.axvspan(*span, color=colour, alpha=0.2, lw=0, label=name)
    ax.plot(times, taken, color=BLACK, lw=1.2)
    ax.set(xlabel="seconds of work", ylim=(0, None))
    if ax.get_subplotspec().is_first_col():
        ax.set_ylabel("memory, MB")


def name_axis(ax, groups, x: str, y: str) -> None:
    """Name a line's points along the axis, and both axes, with a legend."""
    ax.set_xticks(range(len(groups)), groups)
    ax.set(xlabel=x, ylabel=y, ylim=(0, None))
    ax.legend(loc="upper left")


def error_axes(ax, right, errors: dict[str, Sequence[float]], other: float) -> None:
    """Add what 16 bits cost to errors over bits, and the line of other noise to distances, and name the axes."""
    for name, colour in (("bfloat16", GREEN), ("float16", PURPLE)):
        ax.semilogy([16], [np.median(errors[name])], "D", color=colour, label=name)
    ax.set(xlabel="bits a weight", ylabel="error of what a block adds")
    ax.legend()
    right.axhline(other, color=GREY, lw=1)
    right.text(8.5, other * 1.08, "other noise", ha="right", color="#606060")
    right.set(xlabel="bits a weight", ylabel="picture moved by, levels of 255")


# -- rooflines (chapter 21) ------------------------------------------------------------------------------------------


def roof(ax, peak: float, bandwidth: float) -> None:
    """Draw what a machine can do at most, in operations a second, over operations a byte."""
    across = np.array([0.08, peak / bandwidth, 200])
    ax.loglog(across, np.minimum(peak, bandwidth * across), color=BLACK, lw=1.2)
    ax.set(xlabel="operations a byte", xlim=(across[0], across[-1]))


def point(ax, name: str, at: tuple[float, float], left: bool) -> None:
    """Draw a point with its name on one of its sides: blue under a digit, red under a letter."""
    colour = BLUE if name.isdigit() else VERMILLION
    ax.plot(*at, "o", ms=5, color=colour)
    ax.annotate(name, at, (-8 if left else 8, 0), textcoords="offset points", ha="center", va="center", color=colour)


def against_all(ax, sizes, taken, label: str) -> None:
    """Draw times over sizes, the last size being all at once, whose time counts as 1."""
    ax.semilogx(sizes, np.array(taken) / taken[-1], "o-", ms=4, base=2)
    ax.axhline(1, color=GREY, lw=1)
    ax.set(xlabel=label, ylabel="time, all at once = 1", ylim=(0, None))


# -- training (chapter 11) -------------------------------------------------------------------------------------------


def needs(backend: Backend | None) -> bool:
    """Tell whether there is a backend to train with; where there is none, say so in a line."""
    if backend is None:
        print(SKIPPED, "there is nothing to train with; the first cell says why")
    return backend is not None


def two_floors(ax, times, floors: dict[str, Sequence[float]], shade: bool = True) -> None:
    """Draw a loss's floor over time, told the caption (the first) and not told, and shade what lies between."""
    for (name, floor), line in zip(floors.items(), ("-", "--"), strict=True):
        ax.plot(times, floor, line, color=BLACK, lw=1.2, label=f"floor, {name}")
    if shade:
        ax.fill_between(times, *floors.values(), color=BLUE, alpha=0.2, lw=0)
        ax.set_ylabel("least loss")


def over_training(film, steps: Sequence[int], times, losses: dict[int, Sequence[float]], fine, floors: dict) -> None:
    """Draw pictures (steps, prompts, H, W, 3) above the loss by time after some of the steps, with its floors."""
    fig = plt.figure(figsize=(7.5, 5.4))
    above, below = fig.subfigures(2, 1, height_ratios=(2.2, 3))
    for row, axes in enumerate(above.subplots(film.shape[1], len(steps))):
        for ax, shown, step in zip(axes, film[:, row], steps, strict=True):
            picture(ax, shown, None if row else f"step {step}")
    ax = below.subplots()
    two_floors(ax, fine, floors, shade=False)
    for (step, loss), colour in zip(losses.items(), (SKY, GREEN, BLUE), strict=True):
        ax.plot(times, loss, "o-", ms=3.5, color=colour, label=f"after step {step}")
    ax.set(xlim=(1.02, 0), ylim=(0, None), xlabel="t, from noise to picture", ylabel="loss at t")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


# -- small pictures (chapter 17) -------------------------------------------------------------------------------------


def small(pictures: Sequence, titles: Sequence[str]):
    """Show pictures in a row, about 100 pixels each and levels rounded to eights, for a small file, below titles."""
    fig = wall([coarse(shown, 8) for shown in pictures], titles, len(pictures), side=1.05)
    for ax in fig.axes:
        ax.title.set_fontsize(9)
    return fig


# -- rows of pictures (chapter 19) -----------------------------------------------------------------------------------


def in_rows(rows: dict[str, Sequence]):
    """Show rows of pictures, each row's name at its left; levels are rounded to sixteens, for a small file."""
    columns = max(map(len, rows.values()))
    side = min(1.0, 7.2 / columns)
    fig, axes = plt.subplots(len(rows), columns, figsize=(side * columns + 0.3, side * len(rows)), squeeze=False)
    for (name, shown), line in zip(rows.items(), axes, strict=True):
        line[0].text(-0.08, 0.5, name, rotation=90, ha="right", va="center", transform=line[0].transAxes)
        for ax in line:
            ax.set_axis_off()
        for ax, each in zip(line, shown, strict=False):
            picture(ax, coarse(each, 16))
    return fig
