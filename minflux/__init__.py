"""FLUX.1 from scratch: one readable source, NumPy to read and MLX to run, every line held to PyTorch.

import minflux
pipe = minflux.load("tiny", backend="numpy")
image = pipe("a cat left of an apple on a blue background", seed=7, steps=20)
"""

from minflux.backend.blas import let_threads_sleep
from minflux.errors import ArgumentError, BackendError, CheckpointError, MinfluxError

__all__ = ["ArgumentError", "BackendError", "CheckpointError", "MinfluxError", "load"]
__version__ = "0.1.0"

let_threads_sleep()


def __getattr__(name: str):
    """Import `load` only when it is asked for: `import minflux` itself costs nothing."""
    if name == "load":
        from minflux.pipeline import load

        return load
    raise AttributeError(f"module 'minflux' has no attribute {name!r}")
