"""What a rectified flow is trained on: a point between image and noise, when it lies there, and the velocity asked for.

Source: Liu et al. 2022 (arXiv 2209.03003); Esser et al. 2024 (arXiv 2403.03206) §2 and §3.1.
"""

from typing import Any

import numpy as np

from minflux.arrays import Array, Float, Tree, shaped
from minflux.model.flux import FluxConfig, flux
from minflux.model.latents import image_ids, pack, text_ids
from minflux.sampling.timesteps import shifted


@shaped
def noised(
    x0: Float[Array, "B H W C"], noise: Float[Array, "B H W C"], t: Float[Array, "B"]
) -> Float[Array, "B H W C"]:
    """Return x_t = (1 - t) x₀ + t noise, each sample at its own t."""
    at = t[:, None, None, None]
    return (1 - at) * x0 + at * noise


def logit_normal(rng: np.random.Generator, count: int, shift: float) -> np.ndarray:
    """Draw `count` times, float32: sigmoid of a standard normal, shifted as the times of sampling are.

    Where there is little noise, the latents themselves show what the text says; only towards t = 1 must it be read.
    """
    return shifted(1 / (1 + np.exp(-rng.standard_normal(count))), shift).astype(np.float32)


@shaped
def velocity(
    p: Tree,
    cfg: FluxConfig,
    x_t: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    txt: Float[Array, "B T E"],
    y: Float[Array, "B P"],
    guidance: Float[Array, "B"] | None = None,
    **how: Any,
) -> Float[Array, "B I O"]:
    """Return a transformer's velocity of latents, as tokens; `how` is for `flux`."""
    ids = image_ids(x_t, *x_t.shape[1:3])
    return flux(p, cfg, pack(x_t), ids, txt, text_ids(txt), t, y, guidance, **how)
