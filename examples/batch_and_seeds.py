"""Generate several images at once: a batch is faster than one after the other, and each image is the same.

A list of prompts is one batch. A single seed n stands for n, n + 1, …; or give each prompt its own.
"""

import numpy as np

import minflux
from minflux.images import grid

pipe = minflux.load("tiny")
prompts = [
    "a small car on a white background",
    "a bee above a hat on a pink background",
    "a small star on a blue background",
]
images = pipe(prompts, seed=[5, 6, 7], steps=8)
alone = pipe(prompts[1], seed=6, steps=8)
difference = np.abs(np.asarray(images[1], np.int16) - np.asarray(alone, np.int16)).max()
print(f"the second image of the batch and the same alone differ by at most {difference} of 255")

many = pipe([prompts[0]] * 4, seed=0, steps=8)  # one prompt, the seeds 0 to 3
grid([np.asarray(image) for image in many], columns=4, zoom=2).save("cars.png")
print("cars.png: one prompt, four seeds")
