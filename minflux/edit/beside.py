"""Show a model more channels beside the latents: a control image's, or a masked image's and its mask's.

FLUX.1 Fill, Canny and Depth are FLUX.1-dev with a wider first matrix: a token begins with the 64 numbers of the noisy
latents, and what is shown follows, the same at every step. Since packing goes channel by channel, that is the same as
more channels of latents. Sources: BFL `flux/sampling.py`; diffusers `pipelines/flux/pipeline_flux_fill.py`,
`pipelines/flux/pipeline_flux_control.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of
from minflux.edit.base import Edit
from minflux.images import from_uint8
from minflux.sampling.solvers import Velocity


@dataclass(frozen=True, eq=False)
class Beside(Edit):
    """Edit as `inner` does, and show the model `channels` (1 or B, h, w, C) beside the latents."""

    inner: Edit
    channels: Array

    @property
    def image(self) -> Array | None:  # type: ignore[override]
        """Return the inner edit's image."""
        return self.inner.image

    @property
    def draws(self) -> int:  # type: ignore[override]
        """Return how many noises the inner edit takes."""
        return self.inner.draws

    @property
    def shown(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return height, width and count of the channels."""
        return tuple(self.channels.shape[1:])

    def timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Return the inner edit's timesteps."""
        return self.inner.timesteps(timesteps)

    def start(self, noises: Sequence[Array], t: float) -> Array:
        """Return the inner edit's start."""
        return self.inner.start(noises, t)

    def velocity(self, model: Velocity, noises: Sequence[Array], ahead: Sequence[float]) -> Velocity:
        """Return the inner edit's velocity, made of the model's at [x, channels]."""

        def seeing(x: Array, t: float) -> Array:
            nx = backend_of(x)
            channels = nx.broadcast_to(self.channels, (*x.shape[:-1], self.channels.shape[-1]))
            return model(nx.concatenate([x, channels], axis=-1), t)

        return self.inner.velocity(seeing, noises, ahead)


def masked_image(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3), uint8, in [-1, 1] and 0 where the mask (H, W) is: (1, H, W, 3) float32."""
    return (from_uint8(pixels) * ~mask[..., None])[None]


def mask_channels(mask: np.ndarray, downscale: int) -> np.ndarray:
    """Return a mask (H, W) as channels of latents, the pixels of each row by row: (1, H/8, W/8, 64) float32."""
    height, width = (side // downscale for side in mask.shape)
    blocks = mask.reshape(height, downscale, width, downscale).transpose(0, 2, 1, 3)
    return blocks.reshape(1, height, width, downscale**2).astype(np.float32)
