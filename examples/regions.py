"""Tell each part of an image something else: the left half has a blue background, the right half a yellow one.

The small model was never shown an image of two backgrounds. Two prompts go in side by side, and a bias of the
attention's logits lets each be heard by its own half of the image alone. Without it, both halves hear both.
"""

from dataclasses import replace

import numpy as np

import minflux
from minflux.images import grid
from minflux.inference.regions import regional

pipe = minflux.load("tiny")
prompts = ["a cat on a blue background", "a cat on a yellow background"]
rows, columns = pipe.defaults.height // 16, pipe.defaults.width // 16  # image tokens, 16 × 16 pixels each
left = np.broadcast_to(np.arange(columns) < columns // 2, (rows, columns))
text = regional([pipe.encode(prompt) for prompt in prompts], np.stack([left, ~left]))


def draw(text):
    """Return the pixels of an image."""
    *_, step = pipe.sample(text, seed=7)
    return pipe.decode(step.x)[0]


images = {"with regions": draw(text), "without": draw(replace(text, bias=None))}
for name, pixels in images.items():
    left, right = (np.round(corner.mean(axis=(0, 1))) for corner in (pixels[:8, :8], pixels[:8, -8:]))
    print(f"{name:12} red, green and blue are {left} in the corner at the left, {right} at the right")
grid(list(images.values()), columns=2, zoom=2).save("regions.png")
print("regions.png: with regions, and without")
