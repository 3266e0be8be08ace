"""An array in a file, before it is read: what its header says of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from minflux.backend.base import GROUP
from minflux.checkpoints.formats.dtypes import BLOCKS, DTYPES


@dataclass(frozen=True)
class Stored:
    """An array in a file: its dtype's tag, its shape, where its bytes begin, and those bytes, if they are held."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    group: ClassVar[int] = GROUP  # how many numbers share one of these, if they are scales
    held: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Return how many bytes it takes in the file."""
        count = math.prod(self.shape)
        if self.dtype in BLOCKS:
            numbers, taken = BLOCKS[self.dtype]
            return count // numbers * taken
        return count * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def in_blocks(self) -> bool:
        """Return whether it is packed in GGUF's blocks, as which it is kept in memory, and widened at each use."""
        return self.dtype in BLOCKS

    @property
    def pieces(self) -> list["Stored"]:
        """List the arrays in the file that it is made of: itself."""
        return [self]

    def read_bytes(self) -> np.ndarray:
        """Return its bytes, uint8, from memory where they are held, else from the file."""
        return np.fromfile(self.path, np.uint8, self.size, offset=self.start) if self.held is None else self.held

    def hold(self) -> "Stored":
        """Return it with its bytes in memory."""
        return replace(self, held=self.read_bytes())


@dataclass(frozen=True)
class Coded(Stored):
    """A weight that another program quantised: the numbers that it stands for, and the arrays that it is made of.

    `shape` is the weight's own; `start` is where its codes begin. `widen` makes float32 of the parts, as they lie in
    the file, floats as float32.
    """

    parts: dict[str, Stored] = field(kw_only=True)
    widen: Callable[[dict[str, np.ndarray]], np.ndarray] = field(kw_only=True)

    @property
    def size(self) -> int:
        """Return how many bytes its codes take in the file."""
        return self.parts["codes"].size
