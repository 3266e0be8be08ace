"""Encode an image to latents and decode it again, and walk from one image to another in between.

Latents are an eighth of the image's width and height, 16 numbers each: of 64 × 64 × 3 numbers 1024 are left.
"""

import numpy as np

import minflux
from minflux.images import grid

pipe = minflux.load("tiny")
cat, car = pipe(["a large cat on a blue background", "a large car on a pink background"], seed=2)

latents = pipe.encode_image(cat)  # (1, 8, 8, 16)
again = pipe.decode(latents)[0]
error = np.abs(again.astype(np.int16) - np.asarray(cat)).mean()
print(f"latents {tuple(latents.shape)}; there and back, pixels change by {error:.1f} of 255 on average")

a, b = latents, pipe.encode_image(car)
between = [pipe.decode((1 - share) * a + share * b)[0] for share in np.linspace(0, 1, 6, dtype=np.float32)]
grid(between, columns=6, zoom=2).save("between.png")
print("between.png: halfway between two latents is no new thing, but both at once")
