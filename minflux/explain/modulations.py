"""How a block was steered at a step: the size of each shift, scale and gate, and a few of their channels.

A double block has them in four places, attention and MLP of the image's stream and of the text's, and a single block in
one, for its attention and MLP run side by side.
"""

from typing import Any

import numpy as np

from minflux.backend import backend_of
from minflux.explain.choice import evenly

CHANNELS = 32  # shown of each
PLACES = {
    "double": ("image, attention", "image, MLP", "text, attention", "text, MLP"),
    "single": ("attention and MLP",),
}


def of_block(mod: Any) -> np.ndarray:
    """Return the modulations of a block of the first image in a batch: (places, 3, D), shift, scale and gate."""
    streams = [mod["img"], mod["txt"]] if isinstance(mod, dict) else [mod]
    nx = backend_of(*streams)
    rows = [nx.to_numpy(nx.as_float32(stream[0])) for stream in streams]
    return np.stack(rows).reshape(2 * len(rows) if len(rows) == 2 else 1, 3, -1)


def sizes(mod: np.ndarray) -> np.ndarray:
    """Return the root of the mean square over channels: (..., D) -> (...)."""
    return np.sqrt(np.mean(mod * mod, axis=-1))


def some_channels(mod: np.ndarray) -> np.ndarray:
    """Return evenly spread channels, at most `CHANNELS` of them: (..., D) -> (..., n)."""
    return mod[..., list(evenly(mod.shape[-1], CHANNELS))]
