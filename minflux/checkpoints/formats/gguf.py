"""Read and write GGUF files, llama.cpp's format, in which transformers and T5 of FLUX.1 are shared in 2 to 8 bits.

A quantised matrix is rows of blocks: 32 or 256 numbers side by side, a few bits each, with their scales. The `gguf`
package, llama.cpp's own, reads headers and widens blocks, in NumPy. Shapes are stored with the columns first. Blocks
stay as they are in memory too: a matrix is widened when it is used, and forgotten (see `checkpoints/lazy.py`).
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from minflux.backend.threads import parallel_for
from minflux.checkpoints.formats.atomic import check_room, saved
from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.entry import Stored
from minflux.errors import CheckpointError

Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> type and shape
BytesOf = Callable[[str], bytes]

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
WRITABLE = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "TQ2_0", "TQ1_0")  # quantised types that the package writes
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


# -- writing ---------------------------------------------------------------------------------------------------


def to_blocks(matrix: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a float32 matrix (O, I): return its blocks (O, bytes) uint8, and the numbers (O, I) that they stand for.

    Raises `KeyError` for a type that the package doesn't know, `NotImplementedError` for one that it doesn't write.
    """
    from gguf import GGMLQuantizationType, quants

    blocks = quants.quantize(matrix, GGMLQuantizationType[kind])
    return blocks, quants.dequantize(blocks, GGMLQuantizationType[kind])


def write_gguf(path: Path, architecture: str, kind: str | None, entries: Entries, bytes_of: BytesOf) -> None:
    """Write a GGUF file of arrays whose types and shapes are known, asking for each one's bytes when its turn comes.

    `kind` is the type that its matrices have, None for floats, for who lists files. Raises `CheckpointError` when the
    disk has no room, or fails.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.constants import GGML_QUANT_VERSION

    writer = GGUFWriter(None, architecture)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    if kind:
        writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    sizes = [Stored(path, tag, shape, 0).size for tag, shape in entries.values()]
    for (name, (tag, shape)), size in zip(entries.items(), sizes, strict=True):
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, GGMLQuantizationType[tag])
    check_room(path, sum(sizes))
    with saved(path) as file, closing(writer):
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in entries:
            writer.write_tensor_data(np.frombuffer(bytes_of(name), np.uint8))
