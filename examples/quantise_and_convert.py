"""Convert a model into other formats, and see what each costs: BFL's, diffusers' in bfloat16, minflux's in 4 bits.

The same as `minflux convert MODEL TARGET --format …` on the command line.
"""

from pathlib import Path

import numpy as np

import minflux
from minflux.commands.convert import convert

PROMPT = "an umbrella on a green background"


def image(model: str) -> np.ndarray:
    """Generate the prompt's image."""
    return np.asarray(minflux.load(model)(PROMPT, seed=1, steps=8), np.float32)


(transformer,) = convert("tiny", "tiny.safetensors", "bfl")  # a file under BFL's names, one network
convert("tiny", "tiny-bfloat16", "diffusers", dtype="bfloat16")
convert("tiny", "tiny-4bit", "minflux", bits=4, report=print)
print(f"{transformer}: {transformer.stat().st_size / 1e6:.1f} MB")

plain = image("tiny")
for folder in ("tiny-bfloat16", "tiny-4bit"):
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 1e6
    change = np.abs(image(folder) - plain).mean()
    print(f"{folder}: {size:.1f} MB, pixels change by {change:.2f} of 255 on average")
