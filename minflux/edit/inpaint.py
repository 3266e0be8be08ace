"""Inpainting with any model: inside a mask the model's velocity, outside the one that leads back to the image.

    v' = m · v + (1 - m) · (noise - image)

Outside the mask the path from the noised image to the image is known, and straight. So at every t the latents there
are (1 - t) · image + t · noise, whichever solver follows v': what diffusers' `pipelines/flux/pipeline_flux_inpaint.py`
puts there after each step of Euler's method.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minflux.arrays import Array
from minflux.edit.image_to_image import ImageToImage
from minflux.errors import ArgumentError
from minflux.sampling.solvers import Velocity


@dataclass(frozen=True, eq=False, kw_only=True)
class Inpaint(ImageToImage):
    """Redraw where `mask` (1, h, w, 1) is 1 and keep the image where it is 0."""

    mask: Array

    def velocity(self, model: Velocity, noises: Sequence[Array], ahead: Sequence[float]) -> Velocity:
        """Return m · v + (1 - m) · (noise - image)."""
        inside, outside = self.mask, 1 - self.mask
        back = outside * (noises[-1] - self.image)
        return lambda x, t: inside * model(x, t) + back


def latent_mask(mask: np.ndarray, downscale: int) -> np.ndarray:
    """Return the mask of latents (1, H/8, W/8, 1), float32: 1 where the mask (H, W) is true.

    Of every 8 × 8 pixels the one at the top left decides, as in diffusers, which shrinks to the nearest pixel. Raises
    `ArgumentError` when that leaves nothing to redraw.
    """
    shrunk = mask[::downscale, ::downscale]
    if not shrunk.any():
        raise ArgumentError(
            f"mask: nothing of it is white, or only what is smaller than {downscale} × {downscale} pixels of the image "
            "as the model sees it; paint white what is to be redrawn, or crop nearer to it"
        )
    return shrunk[None, ..., None].astype(np.float32)
