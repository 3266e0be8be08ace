"""Who is measured: how each loads the weights in a folder, and computes a work in a process of its own."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench.peak import peak_memory
from benchmarks.bench.works import Work
from minflux.backend import blas


@dataclass(frozen=True)
class Contender:
    """A library in one precision. `modules` is what must be installed for it."""

    name: str
    library: str
    dtype: str
    modules: tuple[str, ...]
    tolerance: float = 1e-4  # relative error against the reference
    compiled: bool = False
    kinds: tuple[str, ...] = ()  # of the works it can do; all, unless some are named

    def can(self, work: Work) -> bool:
        """Tell whether it does a work of this kind."""
        return not self.kinds or work.kind in self.kinds

    def missing(self) -> list[str]:
        """List the packages it needs that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


TORCH = ("torch", "diffusers", "transformers")
MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
MFLUX = Contender("mflux", "mflux", "float32", ("mlx", "mflux"), 1e-2, kinds=("transformer", "vae"))
CONTENDERS = {
    "cpu": (
        Contender("minflux NumPy", "numpy", "float32", ("numpy",), kinds=("product", *MODELS, "generate", "import")),
        Contender("minflux MLX", "mlx", "float32", ("mlx",), kinds=("product", *MODELS, "train", "generate")),
        Contender("torch float32", "torch", "float32", TORCH),
        Contender("torch bfloat16", "torch", "bfloat16", TORCH, 5e-2, kinds=("product", *MODELS)),
        Contender("torch float32 compiled", "torch", "float32", TORCH, compiled=True, kinds=("transformer", "vae")),
        MFLUX,
        Contender("Python alone", "nothing", "", (), kinds=("import",)),
    ),
    "gpu": (
        Contender("minflux MLX", "mlx", "bfloat16", ("mlx",), 5e-2),
        Contender("torch bfloat16", "torch", "bfloat16", TORCH, 5e-2),
        Contender(
            "torch bfloat16 compiled", "torch", "bfloat16", TORCH, 5e-2, compiled=True, kinds=("transformer", "vae")
        ),
        replace(MFLUX, dtype="bfloat16", tolerance=5e-2),
    ),
}
REFERENCE = {"cpu": "torch float32", "gpu": "torch bfloat16"}  # of agreement and of the ratios
PROCESSES = ("generate", "import")  # the works that are whole commands


@dataclass
class Job:
    """A work that is loaded.

    `run` computes it once, to the end; `result` computes what is compared with the reference's; `peak`, in bytes, is
    the memory taken so far, unless this process's own tells it.
    """

    run: Callable[[], Any]
    result: Callable[[], np.ndarray]
    peak: Callable[[], int] = peak_memory


def prepare(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load what the work needs from `folder`."""
    if work.kind in PROCESSES:
        from benchmarks.bench.commands import job
    elif contender.library == "torch":
        from benchmarks.bench.with_torch import job
    elif contender.library == "mflux":
        blas.load_fast_blas()  # ahead of MLX: mflux alone would run on the slow one of MLX's wheel for Linux
        from benchmarks.bench.with_mflux import job
    else:
        from benchmarks.bench.with_minflux import job
    return job(contender, work, folder, device)
