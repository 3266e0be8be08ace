"""An array in a file, before it is read: what its header says of it."""

import math
from dataclasses import dataclass
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
