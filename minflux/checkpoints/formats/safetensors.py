"""Read and write safetensors files.

The format is as plain as can be: eight bytes say how long the header is; the header is JSON, name ->
(dtype, shape, place); then come the arrays' bytes, one after the other. Nothing in it can run code. We read
it ourselves, for NumPy knows no bfloat16, and the safetensors library refuses it there: a bfloat16 is the
upper half of a float32, so widening is a shift, and exact. Source:
https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from operator import index
from pathlib import Path

import numpy as np

from minflux.arrays import Array
from minflux.backend import Backend, get_backend
from minflux.checkpoints.formats.atomic import check_room, opened, saved
from minflux.checkpoints.formats.dtypes import (
    BLOCKS,
    DTYPES,
    FLOAT8,
    FLOATS,
    TAGS,
    dtype_tag,
    float_dtype,
    from_float8,
    to_bytes,
)
from minflux.checkpoints.formats.entry import Coded, Stored
from minflux.checkpoints.formats.gguf import gguf_contents, is_gguf, read_blocks
from minflux.checkpoints.formats.json_files import parse_json, read_json
from minflux.errors import CheckpointError

IS_INDEX = re.compile(r"\.index(\.\w+)?\.json$")
METADATA = "__metadata__"  # text beside the arrays
Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype's tag and shape

MAX_AXES, MAX_COUNT = 8, 1 << 48
PIECE = 1 << 24  # bytes compared at a time
MAX_HEADER = 100_000_000  # bytes; the safetensors library has the same limit
PICKLE = (
    "which can run code when opened: open it with PyTorch where it can do no harm, and write it with "
    "safetensors.torch.save_file"
)
# how files begin that are often taken for a safetensors file, and what to tell whoever did
IMPOSTORS = {
    b"\x80": f"a Python pickle, {PICKLE}",
    b"PK\x03\x04": f"a PyTorch pickle, {PICKLE}",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull`",
}


# -- what a file holds -----------------------------------------------------------------------------------------


def contents(path: str | Path) -> dict[str, Stored]:
    """List what a file, or an index's shards, hold, without reading the arrays.

    An index is `….safetensors.index.json`, or of a variant `….safetensors.index.fp16.json`.

    Raises `CheckpointError` when the file is missing, cut short or no safetensors file.
    """
    path = Path(path)
    return index_contents(path) if IS_INDEX.search(path.name) else file_contents(path)


def index_contents(path: Path) -> dict[str, Stored]:
    """List what the shards named in an index hold; shards lie in the index's own folder."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict):
        raise CheckpointError(f"{path}: no weight_map in this index")
    names = sorted(set(map(str, shards.values())))
    for shard in names:
        if not shard or not shard.isprintable() or Path(shard).name != shard:
            raise CheckpointError(f"{path}: a shard must lie in the same folder, found {shard!a}")
    found = joined_contents([path.with_name(shard) for shard in names])
    for name, shard in shards.items():
        if name not in found or found[name].path.name != shard:
            raise CheckpointError(f"{path.with_name(str(shard))}: {name} is in the index but not in the file")
    return found


def joined_contents(paths: Sequence[Path]) -> dict[str, Stored]:
    """List what several files hold together; raises `CheckpointError` for a name that two of them have."""
    found: dict[str, Stored] = {}
    for path in paths:
        inside = file_contents(path)
        for name in inside.keys() & found.keys():
            raise CheckpointError(f"{path}: {name}: is in {found[name].path.name} too")
        found |= inside
    return found


def file_contents(path: Path) -> dict[str, Stored]:
    """List what one file holds."""
    if path.is_file() and is_gguf(path):
        return gguf_contents(path)
    header, start = read_header(path)
    size = path.stat().st_size - start
    for name in header:
        if not name.isprintable():
            raise CheckpointError(f"{path}: expected names that can be printed, found {name!a}")
    entries = {name: entry for name, entry in header.items() if name != METADATA}
    found = {name: parse_entry(path, name, entry, start, size) for name, entry in entries.items()}
    check_layout(path, found, start, start + size)
    return found


def read_header(path: Path) -> tuple[dict, int]:
    """Read the JSON header; return it and where the arrays' bytes begin."""
    with opened(path) as file:
        start = file.read(64)
        size = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or size > MAX_HEADER:
            raise CheckpointError(f"{path}: is {what_it_is(start)}")
        file.seek(8)
        text = file.read(size)
    if len(text) < size:
        raise CheckpointError(f"{path}: is cut short, in the header: fetch it again")
    header = parse_json(path, text)
    if not isinstance(header.get(METADATA, {}), dict):
        raise CheckpointError(f"{path}: {METADATA}: expected a JSON object, found {header[METADATA]!r}")
    return header, 8 + size


def read_metadata(path: Path) -> dict:
    """Read the text that lies beside the arrays of a file; of an index there is none."""
    return read_header(path)[0].get(METADATA, {}) if path.suffix == ".safetensors" else {}


def what_it_is(start: bytes) -> str:
    """Return what a file is that begins otherwise than a safetensors file does."""
    return next((what for magic, what in IMPOSTORS.items() if start.startswith(magic)), "no safetensors file")


def parse_entry(path: Path, name: str, entry: dict, data_start: int, data_size: int) -> Stored:
    """Make a `Stored` of an entry of the header, checked against the file it is in."""
    try:
        dtype, shape = entry["dtype"], tuple(map(index, entry["shape"]))
        begin, end = map(index, entry["data_offsets"])
        wanted = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name}: can't read its header entry {entry}") from error
    if min(shape, default=0) < 0 or len(shape) > MAX_AXES or math.prod(max(n, 1) for n in shape) > MAX_COUNT:
        raise CheckpointError(f"{path}: {name}: expected a shape of at most {MAX_AXES} axes, found {shape}")
    if begin < 0 or end - begin != wanted:
        raise CheckpointError(f"{path}: {name}: expected {wanted} bytes for {dtype} {shape}, found {end - begin}")
    if end > data_size:
        raise CheckpointError(f"{path}: is cut short: {name} ends at byte {end} of {data_size}; fetch it again")
    return Stored(path, dtype, shape, data_start + begin)


def check_layout(path: Path, found: dict[str, Stored], start: int, end: int) -> None:
    """Raise `CheckpointError` unless the arrays lie one after the other, and nothing lies between or behind them."""
    for name, array in sorted(found.items(), key=lambda item: item[1].start):
        if array.start != start:
            raise CheckpointError(f"{path}: {name}: expected to begin at byte {start}, found {array.start}")
        start += array.size
    if start != end:
        raise CheckpointError(f"{path}: expected {start} bytes, found {end}: fetch it again")


# -- reading ---------------------------------------------------------------------------------------------------


def read_safetensors(path: str | Path, nx: Backend, dtype: str | None = None) -> dict[str, Array]:
    """Read all arrays of a file, or of the shards that an index lists.

    Floats become `dtype` ("float32", "float16" or "bfloat16") where it is given; else float32 on NumPy, and what the
    file has on MLX: bfloat16 for float8, each of which it holds exactly, and for GGUF's quantised types. Raises
    `CheckpointError` when the file can't be read, `ArgumentError` for a dtype that `nx` lacks.
    """
    return {name: read_array(stored, nx, dtype) for name, stored in contents(path).items()}


def read_array(stored: Stored, nx: Backend, dtype: str | None = None) -> Array:
    """Read one array into backend `nx`; for `dtype` see `read_safetensors`."""
    if stored.dtype in BLOCKS or isinstance(stored, Coded):
        wide = read_coded(stored) if isinstance(stored, Coded) else read_blocks(stored)
        return nx.array(wide).astype(float_dtype(nx, dtype or narrow_dtype(nx)))
    raw = stored.read_bytes().view(DTYPES[stored.dtype]).reshape(stored.shape)
    if stored.dtype not in FLOATS:
        return nx.array(raw)
    if stored.dtype in FLOAT8:
        return nx.array(from_float8(raw, stored.dtype)).astype(float_dtype(nx, dtype or narrow_dtype(nx)))
    array = nx.from_bfloat16(raw) if stored.dtype == "BF16" else nx.array(raw)
    wanted = float_dtype(nx, dtype) if dtype or nx.name == "numpy" else array.dtype
    return array if array.dtype == wanted else array.astype(wanted)


def read_coded(stored: Coded) -> np.ndarray:
    """Read the parts of a weight that another program quantised, and widen it to float32; NaN stays NaN."""
    nx = get_backend("numpy")
    with np.errstate(all="ignore"):
        return stored.widen({role: read_array(part, nx) for role, part in stored.parts.items()})


def narrow_dtype(nx: Backend) -> str:
    """Return the dtype of floats that were stored in 8 bits or fewer, unless one is asked for."""
    return "float32" if nx.name == "numpy" else "bfloat16"


def read_as_stored(stored: Stored, nx: Backend) -> Array:
    """Read one array in the very dtype that it is stored in; raises `KeyError` for one that is no array's dtype."""
    names = {tag: name for name, tag in TAGS.items()}
    return read_array(stored, nx, names[stored.dtype])


def same_bytes(a: Stored, b: Stored) -> bool:
    """Return whether two arrays of one size have the same bytes in their files."""
    with opened(a.path) as first, opened(b.path) as second:
        first.seek(a.start)
        second.seek(b.start)
        pieces = (min(PIECE, a.size - done) for done in range(0, a.size, PIECE))
        return all(first.read(size) == second.read(size) for size in pieces)


def prefetch(stored: Stored) -> None:
    """Have the system bring an array's bytes from disk while something else goes on, where it can (not on macOS)."""
    if hasattr(os, "posix_fadvise"):
        with opened(stored.path) as file:
            for piece in stored.pieces:
                os.posix_fadvise(file.fileno(), piece.start, piece.size, os.POSIX_FADV_WILLNEED)


# -- writing ---------------------------------------------------------------------------------------------------


def write_safetensors(
    path: str | Path, flat: dict[str, Array], metadata: dict[str, str] | None = None, dtype: str | None = None
) -> None:
    """Write arrays of either backend to a file, whole or not at all; floats as `dtype` where it is given.

    Arrays are laid in order of item size, then of name, so that each is aligned and equal arrays give equal files.
    """
    entries = {name: (dtype_tag(array, dtype), tuple(array.shape)) for name, array in flat.items()}
    write_entries(path, entries, lambda name: to_bytes(flat[name], entries[name][0]), metadata)


def write_entries(
    path: str | Path, entries: Entries, bytes_of: Callable[[str], bytes], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays of which dtypes and shapes are known, asking for each one's bytes when its turn comes.

    So a file may be larger than memory. Raises `CheckpointError` when the disk has no room, or fails.
    """
    path, (header, order, size) = Path(path), laid_out(entries, metadata or {})
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    check_room(path, 8 + len(text) + size)
    with saved(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(bytes_of(name))


def laid_out(entries: Entries, metadata: dict[str, str]) -> tuple[dict, list[str], int]:
    """Return the header, the order in which arrays are written, and how many bytes they take."""
    itemsizes = {name: np.dtype(DTYPES[dtype]).itemsize for name, (dtype, _) in entries.items()}
    order = sorted(entries, key=lambda name: (-itemsizes[name], name))
    header: dict = {METADATA: {"format": "pt"} | metadata}
    end = 0
    for name in order:
        dtype, shape = entries[name]
        begin, end = end, end + math.prod(shape) * itemsizes[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header, order, end
