"""A step as Jupyter shows it: latents have no colours, so their three main directions become red, green and blue."""

import numpy as np
from PIL import Image

from minflux.arrays import Array
from minflux.backend import backend_of
from minflux.images import data_url, encoded

SPREAD = 2.5  # standard deviations from the mean to a channel's end


def main_directions(latents: np.ndarray) -> np.ndarray:
    """Return the mean of latents (h, w, C) and below it the directions in which they vary most, (4, C).

    There are three, zeros where the latents have fewer; of each, the largest number is positive.
    """
    points = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    mean = points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(points - mean, full_matrices=False)
    found = directions * np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])[:, None]
    found = np.where(sizes[:, None] > 0, found, 0)[:3]
    return np.concatenate([mean[None], found, np.zeros((3 - len(found), len(mean)))])


def colours(latents: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return latents (h, w, C) as colours, uint8 (h, w, 3), along directions from `main_directions`."""
    along = (latents - directions[0]) @ directions[1:].T
    spread = np.maximum(along.std(axis=(0, 1)), 1e-12)
    return np.round(127.5 * (1 + np.clip(along / (SPREAD * spread), -1, 1))).astype(np.uint8)


def step_html(index: int, t: float, x: Array, denoised: Array) -> str | None:
    """Return a step's latents (B, h, w, C), the first of them, as a figure in HTML; None for what is no latents."""
    if x.ndim != 4 or x.shape != denoised.shape:
        return None
    both = [backend_of(each).to_numpy(each)[0] for each in (x, denoised)]
    directions = main_directions(both[1])
    files = [encoded(Image.fromarray(colours(latents, directions)), "PNG") for latents in both]
    style = "height: 128px; image-rendering: pixelated; margin-right: 4px; display: inline"
    names = f"x, now at t = {t:.2f}", "what it aims at"
    images = "".join(
        f'<img src="{data_url("PNG", file)}" alt="{name}" style="{style}">'
        for file, name in zip(files, names, strict=True)
    )
    caption = f"step {index + 1}: {names[0]}, and {names[1]}. Latents, not pixels: <code>pipe.decode(step.x)</code>."
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"
