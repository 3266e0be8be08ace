"""What the race is made of: a contender, and the job that it makes of a work."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.bench.peak import peak_memory
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
    kinds: tuple[str, ...] = ()  # of the works it can do; all, unless some are named
    batched: bool = True  # whether it can do several images at once

    def can(self, work: Work) -> bool:
        """Return whether the contender can do a work of this kind and batch."""
        is_known = not self.kinds or work.kind in self.kinds
        return is_known and (self.batched or work.sizes.get("batch", 1) == 1)

    def missing(self) -> list[str]:
        """List the packages that the contender needs and that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


@dataclass
class Job:
    """A work that is loaded.

    `run` computes it once, to the end; `result` computes what is compared with the reference's; `peak`, in bytes, is
    the memory taken so far, unless this process's own tells it.
    """

    run: Callable[[], Any]
    result: Callable[[], np.ndarray]
    peak: Callable[[], int] = peak_memory
