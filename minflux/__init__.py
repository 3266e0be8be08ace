"""FLUX.1, the text-to-image model, from scratch: one readable source, on NumPy to read it and on MLX to run it.

    import minflux

    pipe = minflux.load("tiny")                    # a small model that ships with the package; "schnell", "dev", a path
    image = pipe("a cat left of an apple on a blue background", seed=7)
    image.save("cat.png")

`load` returns a pipeline. Calling it generates images, and `help(pipe)` lists its settings. The call is made of four
steps that you can take one by one:

    text = pipe.encode("a cat left of an apple on a blue background")    # prompts -> conditioning
    for step in pipe.sample(text, seed=7, steps=20):                     # noise -> latents, a step at a time
        print(step.index, step.t)
    images = pipe.decode(step.x)                                         # latents -> uint8 images (B, H, W, 3)
    latents = pipe.encode_image(images)                                  # images -> latents

Where to go on:

    minflux.model        the networks: short functions of arrays and a tree of weights
    minflux.sampling     noise, timesteps, solvers, guidance
    minflux.inference    the pipeline: from a prompt to an image
    minflux.checkpoints  weight files and model folders
    minflux.backend      the ops that differ between NumPy and MLX
    minflux.train        training of the small model
    minflux.errors       the errors that minflux raises on purpose

On the command line: `minflux generate "a cat on a blue background"`, and `minflux --help`.
"""

import os

from minflux.errors import ArgumentError, BackendError, CheckpointError, MinfluxError
from minflux.version import __version__

TYPE_CHECKING = False  # type checkers take it for True; typing's own would take 10 ms to import
if TYPE_CHECKING:
    from minflux.inference.load import load as load

__all__ = ["ArgumentError", "BackendError", "CheckpointError", "MinfluxError", "__version__", "load"]

# OpenBLAS reads this when NumPy loads it: its threads are to sleep between two products. They would wait for the next
# one awake, for some 25 ms, on the cores that `backend/threads.py` wants for other ops. 2^16 ticks are 25 µs.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")


def __getattr__(name: str) -> object:
    """Import `load` when it is first asked for, so that `import minflux` alone takes 2 ms."""
    if name == "load":
        from minflux.inference.load import load

        return load
    raise AttributeError(f"module 'minflux' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the module's names, with those that are imported when asked for."""
    return sorted({*globals(), *__all__})
