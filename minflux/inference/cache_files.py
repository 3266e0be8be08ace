"""The files of encoded prompts on disk: where they are, how much they may take, and the oldest removed.

The limit is a setting of the machine, as the folder is: MINFLUX_CACHE_GB beside MINFLUX_CACHE.
"""

import contextlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minflux.backend.machine import readable
from minflux.errors import ArgumentError, quoted

LIMIT = "MINFLUX_CACHE_GB"
USUAL_LIMIT = 2.0  # GB: 500 prompts of FLUX.1, at 256 tokens in float32
NAME = re.compile(r"[0-9a-f]{64}\.safetensors")  # other files in the folder are not the cache's


@dataclass(frozen=True, order=True)
class KeptFile:
    """A file of encoded prompts; the one that was used the longest time ago is the smallest."""

    used: float
    path: Path
    size: int


def default_folder() -> Path:
    """Return the user's folder for caches: MINFLUX_CACHE, or "minflux" where the system keeps such."""
    if chosen := os.environ.get("MINFLUX_CACHE"):
        return Path(chosen)
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "minflux"


def size_limit() -> int:
    """Return how many bytes the cache may take: MINFLUX_CACHE_GB, or `USUAL_LIMIT`.

    Raises `ArgumentError` for a limit that is no number of at least 0.
    """
    given = os.environ.get(LIMIT) or str(USUAL_LIMIT)
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < 1e9:
        raise ArgumentError(f"{LIMIT} must be a number of gigabytes, got {quoted(given)}")
    return round(limit * 10**9)


def kept_files(folder: Path) -> list[KeptFile]:
    """List the cache's files in a folder, the one used the longest time ago first; none where there is no folder."""
    found = []
    for path in folder.glob("*.safetensors"):
        if NAME.fullmatch(path.name) and path.exists():
            status = path.stat()
            found.append(KeptFile(status.st_mtime, path, status.st_size))
    return sorted(found)


def total_size(files: Sequence[KeptFile]) -> int:
    """Return how many bytes files take."""
    return sum(file.size for file in files)


def touch(path: Path) -> None:
    """Note that a file was used now, in its time of change; where files can't be changed, nothing is noted."""
    with contextlib.suppress(OSError):
        os.utime(path)


def remove_oldest(folder: Path, limit: int, report: Callable[[str], None] | None = None) -> None:
    """Remove files, the one used the longest time ago first, until the rest takes at most `limit` bytes.

    `report` is told how many; without it there is a warning.
    """
    files = kept_files(folder)
    excess = total_size(files) - limit
    count = 0
    while excess > 0:
        excess -= files[count].size
        count += 1
    remove(files[:count])
    if count:
        tell = report or (lambda line: warnings.warn(line, stacklevel=2))
        tell(f"cache: {prompts(count)} removed, the longest unused first, to stay within {readable(limit)} ({LIMIT})")


def remove(files: Sequence[KeptFile]) -> None:
    """Remove files; one that another process has removed is no error."""
    for file in files:
        file.path.unlink(missing_ok=True)


def prompts(count: int) -> str:
    """Return a number of files in words.

    >>> prompts(1), prompts(2)
    ('1 encoded prompt', '2 encoded prompts')
    """
    return f"{count} encoded prompt{'' if count == 1 else 's'}"
