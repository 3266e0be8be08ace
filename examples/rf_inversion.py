"""Find the noise that an image comes from, and draw another sentence from there: inversion, plain and controlled.

First the way there and back with one prompt, which ends the nearer to the image the more steps it takes. Then
RF-inversion: on the way back the image draws the latents to itself in the first steps, the more the larger η is.
"""

import numpy as np

import minflux
from minflux.edit.rf_inversion import RFInversion, invert
from minflux.images import grid
from minflux.sampling.guidance import Guidance
from minflux.sampling.noise import noise

pipe = minflux.load("tiny")
before, after = "a cat left of a tree on a blue background", "a frog left of a tree on a blue background"
cat = pipe(before, seed=2)
image = pipe.encode_image(cat)  # (1, h, w, C)
h, w = image.shape[1:3]
drawn_to = pipe.nx.array(noise(5, (1, image.shape[3], h, w)).transpose(0, 2, 3, 1))


def inverted(prompt: str, steps: int, gamma: float):
    """Return the latents at t = 1 that lead to the image."""
    velocity = pipe.velocity(pipe.encode(prompt, guidance=1), (h, w), Guidance())
    return invert(velocity, image, drawn_to, pipe.schedule.timesteps(steps, h * w // 4), gamma)


for steps in (5, 10, 20):
    there = inverted(before, steps, gamma=0)
    *_, back = pipe.sample(pipe.encode(before, guidance=1), steps=steps, start=there, guidance=1)
    print(f"{steps:2} steps there and back: off by {np.linalg.norm(back.x - image) / np.linalg.norm(image):.1%}")

start, edits = inverted("", 28, gamma=0.5), [np.asarray(cat)]
for eta in (0.0, 0.5, 0.9):
    edit = RFInversion(image, eta, window=(0.0, 0.8))
    *_, step = pipe.sample(pipe.encode(after), steps=28, start=start, edit=edit)
    edits.append(pipe.decode(step.x)[0])
    changed = np.abs(edits[-1].astype(int) - np.asarray(cat)).mean()
    print(f"η = {eta}: the image changes by {changed:4.1f} of 255")
grid(edits, columns=4, zoom=2).save("rf_inversion.png")
print("rf_inversion.png: the cat, then a frog with η = 0, 0.5 and 0.9")
