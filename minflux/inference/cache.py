"""What text encoders said of a prompt, kept on disk: for a prompt seen before they need not run, nor be read.

Two arrays a file, under a name that is a hash of all that they depend on (see `identity` and `Cache.path`).
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minflux.arrays import Array
from minflux.backend import Backend
from minflux.checkpoints.formats.dtypes import dtype_tag, to_bytes
from minflux.checkpoints.formats.safetensors import contents, read_as_stored, read_metadata, write_safetensors
from minflux.checkpoints.lora import Change
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import CheckpointError
from minflux.inference.cache_files import remove_oldest, size_limit, touch
from minflux.version import __version__

NAMES = ("txt", "y")


def identity(encoders: Sequence[StoredComponent], changes: Sequence[Change], nx: Backend, dtype: str | None) -> str:
    """Hash everything but the prompt that the embeddings depend on: encoder files, LoRAs, dtype, backend and versions.

    The encoders' weights themselves are not read (see `StoredComponent.fingerprint`). Of LoRAs the numbers that they
    add are hashed; of the machine only whether it is a GPU, though another processor may round otherwise.
    """
    lines = [f"{__version__} {nx.name} {nx.xp.__version__} {nx.on_gpu} {dtype}"]
    for stored in encoders:
        lines += stored.fingerprint()
    for change in changes:
        arrays = dict(change.arrays) if change.bias is None else {**change.arrays, "bias": change.bias}
        lines += [f"{change.module} {change.strength!r}"]
        lines += [f"{role} {array.shape} {_hash(array.tobytes())}" for role, array in arrays.items()]
    return _hash("\n".join(lines).encode())


def _hash(*pieces: bytes) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def open_cache(folder: str | Path, encoders: str, nx: Backend, report: Callable[[str], None] | None) -> "Cache":
    """Return the cache in a folder, which need not be there; raises `ArgumentError` for a limit that is no number."""
    return Cache(Path(folder), encoders, nx, size_limit(), report)


@dataclass(frozen=True)
class Cache:
    """A folder of conditioning, for one model's text encoders, of at most `limit` bytes."""

    folder: Path
    encoders: str
    nx: Backend
    limit: int
    report: Callable[[str], None] | None = None

    def recall(
        self, clip_ids: np.ndarray, t5_ids: np.ndarray, encode: Callable[[np.ndarray, np.ndarray], tuple[Array, Array]]
    ) -> tuple[Array, Array]:
        """Return txt and y of prompts as they were kept, or have them encoded from their token ids, and keep them."""
        path = self.path(clip_ids, t5_ids)
        found = self.read(path)
        if found is None:
            found = encode(clip_ids, t5_ids)
            self.write(path, *found)
        return found

    def path(self, clip_ids: np.ndarray, t5_ids: np.ndarray) -> Path:
        """Name the file for prompts by the encoders and both arrays of token ids, shapes too.

        Prompts that are encoded together are kept together: alone, their last bits may be others.
        """
        ids = [piece for a in (clip_ids, t5_ids) for piece in (repr(a.shape).encode(), a.astype("<i4").tobytes())]
        return self.folder / f"{_hash(self.encoders.encode(), *ids)}.safetensors"

    def read(self, path: Path) -> tuple[Array, Array] | None:
        """Return the cached (txt, y), or None if there is no file; a damaged file gives a warning and None."""
        if not path.exists():
            return None
        try:
            found = contents(path)
            txt, y = (read_as_stored(found[name], self.nx) for name in NAMES)
            if read_metadata(path).get("sha256") == self.checksum(path, txt, y):
                touch(path)
                return txt, y
            why = "other numbers than were written"
        except (CheckpointError, OSError, KeyError, ValueError) as error:
            why = str(error)
        warnings.warn(f"{path}: damaged ({why}); the prompt is encoded afresh", stacklevel=2)
        return None

    def write(self, path: Path, txt: Array, y: Array) -> None:
        """Write txt and y, whole or not at all, and remove what is then too much; where that can't be done, warn."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, {"txt": txt, "y": y}, {"sha256": self.checksum(path, txt, y)})
            remove_oldest(self.folder, self.limit, self.report)
        except (CheckpointError, OSError) as error:
            warnings.warn(f"the conditioning is not kept: {error}", stacklevel=2)

    def checksum(self, path: Path, *arrays: Array) -> str:
        """Hash a file's name and the arrays in it."""
        return _hash(path.name.encode(), *(to_bytes(array, dtype_tag(array, None)) for array in arrays))
