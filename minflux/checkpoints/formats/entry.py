"""An array in a file, before it is read: what its header says of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minflux.checkpoints.formats.dtypes import BLOCKS, DTYPES


@dataclass(frozen=True)
class Stored:
    """An array in a file: its dtype's tag, its shape, and where its bytes begin."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Return how many bytes it takes in the file."""
        count = math.prod(self.shape)
        if self.dtype in BLOCKS:
            numbers, taken = BLOCKS[self.dtype]
            return count // numbers * taken
        return count * np.dtype(DTYPES[self.dtype]).itemsize


@dataclass(frozen=True)
class Coded(Stored):
    """A weight that another program quantised: the numbers that it stands for, and the arrays that it is made of.

    `shape` is the weight's own; `start` is where its codes begin. `widen` makes float32 of the parts, as they lie in
    the file, floats as float32.
    """

    parts: dict[str, Stored] = field(default_factory=dict)
    widen: Callable[[dict[str, np.ndarray]], np.ndarray] = field(kw_only=True)

    @property
    def size(self) -> int:
        """Return how many bytes its codes take in the file."""
        return self.parts["codes"].size
