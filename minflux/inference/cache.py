"""What text encoders said of a prompt, kept on disk: for a prompt seen before they need not run, nor be read.

Two arrays a file, under a name that is a hash of all that they depend on (see `identity` and `Cache.path`).
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array
from minflux.backend import Backend
from minflux.checkpoints.formats.dtypes import CODES, stored_code, to_bytes
from minflux.checkpoints.formats.safetensors import METADATA, contents, load, read_header, write_safetensors
from minflux.checkpoints.lora import Change
from minflux.checkpoints.parts import Part
from minflux.errors import CheckpointError
from minflux.version import __version__

NAMES = ("txt", "y")


def default_folder() -> Path:
    """Give the user's folder for caches: MINFLUX_CACHE, or "minflux" where the system keeps such."""
    if chosen := os.environ.get("MINFLUX_CACHE"):
        return Path(chosen)
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "minflux"


def identity(parts: Sequence[tuple[Any, Part]], changes: Sequence[Change], nx: Backend, dtype: str | None) -> str:
    """Hash what conditioning depends on beside the prompt: the text encoders, and who computes with them.

    Of each encoder: its config; each weight's name, dtype, shape and place; each file's path, size and time of change.
    The weights themselves are not read, so a file that was changed in place, and its time and size set back, is taken
    for the same. Of LoRAs the numbers that they add. Then the dtype, the backend and its version, GPU or CPU, and
    minflux's version; not the processor, though another may round otherwise.
    """
    seen = [f"{__version__} {nx.name} {nx.xp.__version__} {nx.on_gpu} {dtype}"]
    for cfg, part in parts:
        seen += [repr(cfg), part.naming]
        everything = part.found | {f"{name} scale": stored for name, stored in part.scales.items()}
        seen += [f"{name} {s.path.name} {s.code} {s.shape} {s.start}" for name, s in sorted(everything.items())]
        for path in sorted({s.path.resolve() for s in everything.values()}):
            seen.append(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}")
    for change in changes:
        arrays = [a for a in (change.down, change.up, change.bias) if a is not None]
        seen += [repr(change.module), *(f"{a.shape} {_hash(a.tobytes())}" for a in arrays)]
    return _hash("\n".join(seen).encode())


def _hash(*pieces: bytes) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of conditioning, for one model's text encoders."""

    folder: Path
    encoders: str
    nx: Backend

    def recall(
        self, clip_ids: np.ndarray, t5_ids: np.ndarray, encode: Callable[[np.ndarray, np.ndarray], tuple[Array, Array]]
    ) -> tuple[Array, Array]:
        """Give txt and y of prompts as they were kept; or have them encoded from their token ids, and keep them."""
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
        """Read txt and y, None if they are not there; with a warning, also when the file is not as it was written."""
        if not path.exists():
            return None
        try:
            found, (header, _) = contents(path), read_header(path)
            dtypes = {code: name for name, code in CODES.items()}
            txt, y = (load(found[name], self.nx, dtypes[found[name].code]) for name in NAMES)
            if header.get(METADATA, {}).get("sha256") == self.checksum(path, txt, y):
                return txt, y
            why = "other numbers than were written"
        except (CheckpointError, OSError, KeyError, ValueError) as error:
            why = str(error)
        warnings.warn(f"{path}: damaged ({why}); the prompt is encoded afresh", stacklevel=2)
        return None

    def write(self, path: Path, txt: Array, y: Array) -> None:
        """Write txt and y, whole or not at all; where that can't be done, warn."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(path, {"txt": txt, "y": y}, {"sha256": self.checksum(path, txt, y)})
        except (CheckpointError, OSError) as error:
            warnings.warn(f"the conditioning is not kept: {error}", stacklevel=2)

    def checksum(self, path: Path, *arrays: Array) -> str:
        """Hash a file's name and the arrays in it."""
        return _hash(path.name.encode(), *(to_bytes(array, stored_code(array, None)) for array in arrays))
