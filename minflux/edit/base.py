"""What an edit is: which timesteps are visited, where they begin, and which velocity is followed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minflux.arrays import Array
from minflux.sampling.solvers import Velocity


class Edit:
    """An edit; unless a kind of it says otherwise, all timesteps, from noise, by the model's own velocity.

    image: the clean latents (1 or B, h, w, C) of the image to edit, None without one. draws: how many arrays of noise
    an edit takes from each seed, as PyTorch's generator draws them one after another; the last one is noised with.
    shown: height, width and count of the channels that the model is shown beside the latents, () for none.
    """

    image: Array | None
    draws: int
    shown: tuple[int, ...] = ()

    def timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Return those of the timesteps that are visited."""
        return timesteps

    def start(self, noises: Sequence[Array], t: float) -> Array:
        """Return the latents (B, h, w, C) to begin with at t, the first timestep."""
        return noises[-1]

    def velocity(self, model: Velocity, noises: Sequence[Array], ahead: Sequence[float]) -> Velocity:
        """Return the velocity to follow, made of the model's; `ahead` are the timesteps at which it will be asked."""
        return model


@dataclass(frozen=True)
class TextToImage(Edit):
    """The edit without an image, which changes nothing."""

    draws: int = 1
    image = None


TEXT_TO_IMAGE = TextToImage()


def noised(image: Array, noise: Array, t: float) -> Array:
    """Return x_t = (1 - t) · image + t · noise, the point at t of the straight path between the two."""
    return (1 - t) * image + t * noise
