"""Read GGUF files, llama.cpp's format, in which transformers and T5 of FLUX.1 are shared in 2 to 8 bits.

A quantised matrix is rows of blocks: 32 or 256 numbers side by side, a few bits each, with their scales. The `gguf`
package, llama.cpp's own, reads headers and widens blocks, in NumPy. Shapes are stored with the columns first. Blocks
stay as they are in memory too: a matrix is widened when it is used, and forgotten (see `checkpoints/lazy.py`).
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from pathlib import Path
from typing import Any

import numpy as np

from minflux.backend.threads import parallel_for
from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.entry import Stored
from minflux.errors import CheckpointError

MAGIC = b"GGUF"
ROWS = 16  # that are widened at a time, as the package does
DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    OSError,
)  # what the package's reader raises at a damaged header
PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8")  # types that hold a number at a time


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def gguf_contents(path: Path) -> dict[str, Stored]:
    """List what a GGUF file holds, without reading the arrays.

    Raises `CheckpointError` for a file that is cut short or damaged, and for a type that minflux doesn't read.
    """
    try:
        tensors = bounded_reader()(path).tensors
    except DAMAGE as error:
        raise CheckpointError(f"{path}: is cut short, or no GGUF file: fetch it again ({error})") from error
    return {tensor.name: as_stored(path, tensor) for tensor in tensors}


def bounded_reader() -> type:
    """Return the package's reader, which ends with the file: its own reads on, as often as a damaged header counts."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, override_order=None):
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, dtype, count, override_order)

    return Reader


def as_stored(path: Path, tensor: Any) -> Stored:
    """Make a `Stored` of the package's entry, checked against the file it is in."""
    name, kind = tensor.name, tensor.tensor_type.name
    shape = tuple(int(n) for n in reversed(tensor.shape))
    if not name.isprintable():
        raise CheckpointError(f"{path}: expected names that can be printed, found {name!a}")
    if kind not in PLAIN and kind not in BLOCKS:
        raise CheckpointError(f"{path}: {name}: is of GGUF's type {kind}, which minflux doesn't read: use another file")
    if kind in BLOCKS and (not shape or shape[-1] % BLOCKS[kind][0]):
        raise CheckpointError(f"{path}: {name}: expected rows of whole blocks of {BLOCKS[kind][0]}, found {shape}")
    stored = Stored(path, kind, shape, int(tensor.data_offset))
    if stored.start + stored.size > path.stat().st_size:
        raise CheckpointError(f"{path}: is cut short: {name} ends behind it; fetch it again")
    return stored


def read_blocks(stored: Stored) -> np.ndarray:
    """Read a quantised array and widen it to float32, some rows at a time, on all cores."""
    from gguf import GGMLQuantizationType, quants

    numbers, taken = BLOCKS[stored.dtype]
    columns = stored.shape[-1]
    rows = stored.read_bytes().reshape(-1, columns // numbers * taken)
    wide = np.empty((len(rows), columns), np.float32)

    def widen(first: int) -> None:
        chunk = slice(first, first + ROWS)
        wide[chunk] = quants.dequantize(rows[chunk], GGMLQuantizationType[stored.dtype])

    parallel_for(widen, range(0, len(rows), ROWS))
    return wide.reshape(stored.shape)
