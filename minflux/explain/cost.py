"""What each part of a drawing took: operations, counted from its sizes, and seconds, measured while it was drawn."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minflux.model import flops


@dataclass(frozen=True)
class Part:
    """A part of the model in a drawing: its operations and its seconds, all steps together."""

    name: str
    flops: int
    seconds: float


def operations(pipe: Any, size: tuple[int, int], steps: int, passes: int) -> dict[str, int]:
    """Count the operations of one drawing by part; size: of the latents; passes: with guidance of two, two a step."""
    height, width = size
    text = pipe.defaults.text_length
    parts = flops.flux_parts(pipe.flux[0], text, height * width // 4)
    each = {name: steps * passes * count for name, count in parts.items()}
    encoders = flops.t5(pipe.t5[0], text) + flops.clip(pipe.clip[0], pipe.clip[0].max_position_embeddings)
    return {
        "text encoders": passes * encoders,
        "double blocks": each["double blocks"],
        "single blocks": each["single blocks"],
        "modulation, first and last maps": each["modulation"] + each["maps in"] + each["last layer"],
        "VAE, to pixels": flops.vae_decode(pipe.vae[0], height, width),
    }


def seconds(before: float, blocks: dict[str, list[float]], rest: float, after: float) -> dict[str, float]:
    """Return the seconds by part, from those before and after the steps, of each block at every step, and the rest's.

    A block counts by its median, for the first one waits for the modulations of all steps; that is of the rest too.
    """
    kinds = {"double": 0.0, "single": 0.0}
    for name, times in blocks.items():
        kinds[name.partition("_")[0]] += len(times) * float(np.median(times))
    return {
        "text encoders": before,
        "double blocks": kinds["double"],
        "single blocks": kinds["single"],
        "modulation, first and last maps": max(0.0, rest + sum(map(sum, blocks.values())) - sum(kinds.values())),
        "VAE, to pixels": after,
    }


def parts(counted: dict[str, int], measured: dict[str, float]) -> list[Part]:
    """Put operations and seconds of each part together."""
    return [Part(name, count, measured[name]) for name, count in counted.items()]
