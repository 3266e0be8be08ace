"""Watch an image come about: after each step, decode the clean latents that the model is aiming at.

`step.x` is still noisy; `step.denoised` is x - t · v, where the model would land if it went straight on from here.
"""

from PIL import Image

import minflux

pipe = minflux.load("tiny")
text = pipe.encode(["a rocket left of a tree on an orange background"])
frames = []
for step in pipe.sample(text, seed=4, steps=12):
    pixels = pipe.decode(step.denoised)[0]
    frames.append(Image.fromarray(pixels).resize((192, 192), Image.Resampling.NEAREST))
    print(f"step {step.index + 1:2}: now at t = {step.t:.2f}")
frames[0].save("rocket.gif", save_all=True, append_images=frames[1:], duration=150, loop=0)
print(f"rocket.gif: {len(frames)} frames")
