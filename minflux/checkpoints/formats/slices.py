"""Some rows or some columns of an array in a file, read without the rest of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from minflux.checkpoints.formats.atomic import opened
from minflux.checkpoints.formats.entry import Stored

Range = tuple[int, int]  # from, to


@dataclass(frozen=True)
class Slice(Stored):
    """Some ranges of the rows (`axis` 0) or of the columns (1) of an array, put one after the other.

    `shape` is the slice's own; `start` is where the whole array begins.
    """

    whole: Stored = field(kw_only=True)
    axis: int = field(kw_only=True)
    ranges: tuple[Range, ...] = field(kw_only=True)

    @property
    def pieces(self) -> list[Stored]:
        """List the stretches of the file that it lies in: of columns, all that are between them too."""
        return [self.whole] if self.axis else [self.rows(*range_) for range_ in self.ranges]

    def read_bytes(self) -> np.ndarray:
        """Return its bytes, uint8, from memory where they are held, else from the file."""
        if self.held is not None:
            return self.held
        if self.axis == 0:
            return np.concatenate([self.rows(*range_).read_bytes() for range_ in self.ranges])
        return self.read_columns()

    def rows(self, first: int, last: int) -> Stored:
        """Return some rows, which lie in one stretch, as an array in the file."""
        shape = (last - first, *self.whole.shape[1:])
        return Stored(self.path, self.dtype, shape, self.start + first * self.row_size)

    def read_columns(self) -> np.ndarray:
        """Read the columns row by row."""
        spans = [(self.byte_of(first), self.byte_of(last)) for first, last in self.ranges]
        rows = self.whole.shape[0]
        result = np.empty((rows, sum(last - first for first, last in spans)), np.uint8)
        with opened(self.path) as file:
            for row, into in enumerate(result):
                begin, done = self.start + row * self.row_size, 0
                for first, last in spans:
                    file.seek(begin + first)
                    done += file.readinto(into[done : done + last - first])
        return result.reshape(-1)

    @property
    def row_size(self) -> int:
        """Return how many bytes a row of the whole array takes."""
        return self.whole.size // self.whole.shape[0]

    def byte_of(self, column: int) -> int:
        """Return where in a row a column begins; in an array of blocks, a whole number of them."""
        return column * self.row_size // self.whole.shape[1]


def sliced(whole: Stored, axis: int, ranges: Sequence[Range]) -> Slice:
    """Make a slice of an array; ranges count its rows or columns."""
    shape = list(whole.shape)
    shape[axis] = sum(last - first for first, last in ranges)
    return Slice(whole.path, whole.dtype, tuple(shape), whole.start, whole=whole, axis=axis, ranges=tuple(ranges))
