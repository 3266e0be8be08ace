"""Who is measured: how each loads the weights in a folder, and computes a work in a process of its own."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.works import Work


@dataclass(frozen=True)
class Contender:
    """A library in one precision. `modules` is what must be installed for it."""

    name: str
    library: str
    dtype: str
    modules: tuple[str, ...]
    tolerance: float = 1e-4  # relative error against the reference
    compiled: bool = False

    def missing(self) -> list[str]:
        """List the packages it needs that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


TORCH = ("torch", "diffusers", "transformers")
CONTENDERS = {
    "cpu": (
        Contender("minflux NumPy", "numpy", "float32", ("numpy",)),
        Contender("minflux MLX", "mlx", "float32", ("mlx",)),
        Contender("torch float32", "torch", "float32", TORCH),
        Contender("torch bfloat16", "torch", "bfloat16", TORCH, 5e-2),
        Contender("torch float32 compiled", "torch", "float32", TORCH, compiled=True),
    ),
    "gpu": (
        Contender("minflux MLX", "mlx", "bfloat16", ("mlx",), 5e-2),
        Contender("torch bfloat16", "torch", "bfloat16", TORCH, 5e-2),
        Contender("torch bfloat16 compiled", "torch", "bfloat16", TORCH, 5e-2, compiled=True),
    ),
}
REFERENCE = {"cpu": "torch float32", "gpu": "torch bfloat16"}  # of agreement and of the ratios


@dataclass
class Job:
    """A work that is loaded: `run` computes it once, to the end, and `numpy` turns its result into a NumPy array."""

    run: Callable[[], Any]
    numpy: Callable[[Any], np.ndarray]
    peak: Callable[[], int] | None = None  # bytes, where the device has memory of its own


def prepare(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load what the work needs from `folder`."""
    if contender.library == "torch":
        from benchmarks.bench.with_torch import job
    else:
        from benchmarks.bench.with_minflux import job
    return job(contender, work, folder, device)
