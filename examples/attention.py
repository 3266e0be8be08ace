"""Look into the transformer: which image tokens listen to the word "cat"?

`on_block` is called after each block with its name and the arrays that it saw. From queries and keys we work out the
attention weights, keep the rows of image tokens and the column of the word, and show them as a heat map. Don't expect
to see the cat's place light up: in the small model the image listens to a word elsewhere, and chapter 07 asks why.
"""

import numpy as np
from PIL import Image

import minflux
from minflux.model.attention import attention_weights

PROMPT, WORD = "a cat left of an apple on a blue background", 1  # "a" is token 0, "cat" token 1
pipe = minflux.load("tiny")
maps = []


def listen(name: str, seen: dict) -> None:
    """Keep what a double block's image tokens take from the word, the mean of all heads."""
    if name.startswith("double_blocks"):
        weights = attention_weights(seen["q"], seen["k"])  # (B, H, L, L), text tokens first
        text_length = seen["txt"].shape[1]
        maps.append(weights[0, :, text_length:, WORD].mean(axis=0))  # of the first in the batch, the prompt itself


image = pipe(PROMPT, seed=7, steps=8, on_block=listen)
rows, columns = image.height // 16, image.width // 16  # image tokens, 16 × 16 pixels each
heat = np.mean(maps, axis=0).reshape(rows, columns)
print(np.round(heat, 3))
pixels = (255 * heat / heat.max()).astype(np.uint8)
Image.fromarray(pixels).resize(image.size, Image.Resampling.NEAREST).save("attention.png")
image.save("cat.png")
print("cat.png and attention.png: bright where the image listens to the word")
