"""FLUX.1 from scratch: one readable source, NumPy to read and MLX to run, every line held to PyTorch.

import minflux
pipe = minflux.load("tiny", backend="numpy")
image = pipe("a cat left of an apple on a blue background", seed=7, steps=20)
"""

import os

from minflux.errors import ArgumentError, BackendError, CheckpointError, MinfluxError

__all__ = ["ArgumentError", "BackendError", "CheckpointError", "MinfluxError", "load"]
__version__ = "0.1.0"

# OpenBLAS reads this when NumPy loads it: its threads are to sleep between two products. They would wait for the next
# one awake, for some 25 ms, on the cores that `backend/threads.py` wants for other ops. 2^16 ticks are 25 µs.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")


def __getattr__(name: str):
    """Import `load` only when it is asked for: `import minflux` itself costs nothing."""
    if name == "load":
        from minflux.inference.load import load

        return load
    raise AttributeError(f"module 'minflux' has no attribute {name!r}")
