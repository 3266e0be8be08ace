"""Hold a model in three ways, and see that the image is the same.

`resident` reads all weights once; `staged` holds each network while it works; `streamed` reads a matrix when it is
needed, again at every step. For a model of 27 MB that is an exercise; for FLUX.1 it is 67 GB, 35 GB or 1.4 GB.
"""

import time

import numpy as np

import minflux

images = {}
for mode in ("resident", "staged", "streamed"):
    pipe = minflux.load("tiny", memory=mode)
    start = time.perf_counter()
    images[mode] = np.asarray(pipe("a hat on a purple background", seed=1, steps=4))
    print(f"{mode:8}: {time.perf_counter() - start:.2f} s")
same = all((image == images["resident"]).all() for image in images.values())
print("the images are equal" if same else "the images differ")

minflux.load("tiny", memory="auto", report=print)  # takes the first that fits, and says so if it is a slow one
