"""Change an image in three ways: begin with it, redraw a part of it, or lead it from one sentence to another.

Image-to-image redraws all of it, the more the higher its strength. Inpainting redraws what is white in the mask, and
leaves the rest to the bit. FlowEdit changes what the sentences say, where it stands.
"""

import numpy as np

import minflux
from minflux.images import grid

pipe = minflux.load("tiny")
before, after = "a cat left of a tree on a blue background", "a frog left of a tree on a blue background"
cat = pipe(before, seed=2)

half = cat.width // 2
mask = np.zeros((cat.height, cat.width), bool)
mask[:, :half] = True  # the left half
edits = {
    "the image": cat,
    "image-to-image, strength 0.3": pipe(after, seed=1, image=cat, strength=0.3),
    "image-to-image, strength 0.8": pipe(after, seed=1, image=cat, strength=0.8),
    "inpainting": pipe(after, seed=1, image=cat, mask=mask, strength=1.0),
    "FlowEdit": pipe.edit(cat, before, after, seed=1, n_max=18, guidance=3.0),
}
for name, image in edits.items():
    change = np.abs(np.asarray(image, np.int16) - np.asarray(cat, np.int16))
    left, right = change[:, :half].mean(), change[:, half:].mean()
    print(f"{name:28} changes the left half by {left:4.1f} of 255, the right half by {right:4.1f}")
grid([np.asarray(image) for image in edits.values()], columns=5, zoom=2).save("edits.png")
print("edits.png: the image and its edits, in this order")
