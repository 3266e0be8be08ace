"""Generate an image of a sentence, and write it to owl.png."""

import minflux

pipe = minflux.load("tiny")  # or "schnell", "dev", a folder, a .safetensors file
image = pipe("a large owl on a green background", seed=3)
image.save("owl.png")
print(f"owl.png: {image.width} × {image.height} pixels, by {pipe}")
