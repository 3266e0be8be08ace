"""A ControlNet before it is trained: a copy of the model's first blocks that adds nothing, so that nothing changes.

What it adds goes through projections that begin as zeros. The first gradient moves them alone, and from then on the
copy learns too. Here they are moved by hand, a little and at random, and the image changes.
"""

import numpy as np

import minflux
from minflux.checkpoints.components import CONTROLNET
from minflux.checkpoints.formats.json_files import write_json
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.tree import flatten
from minflux.images import grid
from minflux.model.controlnet import ControlNetConfig

pipe = minflux.load("tiny")
config, weights = pipe.flux
small = ControlNetConfig(**vars(config) | {"depth": 1, "depth_single_blocks": 1})
copied = flatten(weights)
rng = np.random.default_rng(0)
prompt, edges = "a cat left of an apple on a blue background", pipe("a star", seed=1, steps=4)
images = [pipe(prompt, seed=7, steps=4)]

for spread in (0.0, 0.02):
    net = {}
    for name, shape in CONTROLNET.shapes(small).items():
        net[name] = copied.get(name, (spread * rng.standard_normal(shape)).astype(np.float32))
    write_safetensors("controlnet.safetensors", CONTROLNET.own_naming.from_ours(net))
    write_json("config.json", CONTROLNET.write_config(small))
    controlled = minflux.load("tiny", controlnet="controlnet.safetensors")
    images.append(controlled(prompt, seed=7, steps=4, control=edges))
    change = np.abs(np.asarray(images[-1], np.int16) - np.asarray(images[0], np.int16)).mean()
    print(f"projections of spread {spread:.2f} change the image by {change:.1f} of 255")
grid([np.asarray(image) for image in (edges, *images)], columns=4, zoom=2).save("controlled.png")
print("controlled.png: the control image, then the image without a ControlNet, and with the two")
