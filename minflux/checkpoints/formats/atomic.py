"""Files that appear whole or not at all, and errors that name the file."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minflux.errors import CheckpointError


@contextmanager
def written_whole(path: str | Path) -> Iterator:
    """Open a binary file that appears under its name only when the `with` block ends without an error.

    It is on the disk before it gets its name, and the name before this returns, so that after a loss of power the old
    file is there or the new one. What a process that was killed has left of the same file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if not is_running(left.suffix[1:]):
            left.unlink(missing_ok=True)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def saved(path: Path) -> Iterator:
    """Open a file as `written_whole` does, its folder made if need be; raises `CheckpointError` when the disk fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written: {(error.strerror or str(error)).lower()}") from error


def is_running(pid: str) -> bool:
    """Return whether a process is still there; what is no number counts as one that is."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except (PermissionError, ValueError):
        return True
    return True


@contextmanager
def opened(path: Path) -> Iterator:
    """Open a binary file to read; raises `CheckpointError` when there is none."""
    try:
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
        why = getattr(error, "strerror", None) or "cannot be read"
        raise CheckpointError(f"{path}: {why.lower()}") from error


def is_there(path: Path) -> bool:
    """Return whether there is a file or folder; what no file can be called (too long, with a null in it) is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_room(path: Path, size: int) -> None:
    """Raise `CheckpointError` when the disk that `path` is on has no room for `size` bytes."""
    free = shutil.disk_usage(path.absolute().parent).free
    if free < size:
        raise CheckpointError(f"{path}: needs {size:,} bytes, and only {free:,} are free on this disk")
