"""What the chapters share: one figure style, pictures in a row, MLX where it is installed, agreement of two arrays.

A chapter starts with `import figures`; a notebook of solutions/ with `sys.path.append("..")` before it, for Jupyter
runs a notebook in its own folder.
"""

import os
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython

from minflux.backend import Backend, backend_of, get_backend
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
    count = len(pictures)
    width = min(7.5, 1.6 * count)
    fig, axes = plt.subplots(1, count, figsize=(width, width / count + 0.3), squeeze=False)
    for i, ax in enumerate(axes[0]):
        picture(ax, pictures[i], None if titles is None else titles[i])
    return fig


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
