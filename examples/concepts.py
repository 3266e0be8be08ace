"""Ask where in an image a word's meaning is: a heat map for each of a few concepts, while the image is drawn.

Concept attention compares what the transformer makes of a word with what it makes of each image token. The concepts
listen to the image, and change nothing of it. FLUX.1's 19 double blocks tell a cat from its background in this way; the
small model has two of them and 64 image tokens, and its maps say little: look at them beside the image.
"""

import numpy as np
from PIL import Image

import minflux
from minflux.images import grid
from minflux.model.concepts import Concepts

PROMPT, WORDS = "a cat left of an apple on a blue background", ["cat", "apple", "background"]
pipe = minflux.load("tiny")
rows, columns = pipe.defaults.height // 16, pipe.defaults.width // 16  # image tokens, 16 × 16 pixels each

tokens = pipe.encode(WORDS).txt[:, 0]  # each word's first token, as T5 understands it
concepts = Concepts(pipe.flux[1], tokens)
image = pipe(PROMPT, seed=7, on_block=concepts)

maps = concepts.maps()[0].reshape(len(WORDS), rows, columns)  # of the first in the batch, the prompt itself
for word, heat in zip(WORDS, maps, strict=True):
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    print(f"{word:12} {heat.mean():.0%} of the image, most in row {row + 1}, column {column + 1}")


def drawn(heat: np.ndarray) -> np.ndarray:
    """Return a map as pixels of the image's size, white where it is largest."""
    grey = Image.fromarray((255 * heat / maps.max()).astype(np.uint8))
    return np.asarray(grey.resize(image.size, Image.Resampling.NEAREST).convert("RGB"))


assert image == pipe(PROMPT, seed=7)  # to the bit
grid([np.asarray(image), *map(drawn, maps)], columns=1 + len(WORDS), zoom=2).save("concepts.png")
print("concepts.png: the image, then where each word is")
