"""What is loaded beside a model: how its files are opened, and described, be it Redux, its encoder or a ControlNet."""

from pathlib import Path
from typing import Any

from minflux.checkpoints.foreign import join_quantised
from minflux.checkpoints.formats.safetensors import Stored, contents
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import CheckpointError


def file_contents(path: Path) -> dict[str, Stored]:
    """Return what a file holds, matrices that other programs quantised as one entry each."""
    return join_quantised(path, contents(path))


def sizes_of(stored: StoredComponent) -> Any:
    """Read a network's config off its shapes; an error names the file."""
    try:
        return stored.read_sizes()
    except CheckpointError as error:
        raise CheckpointError(f"{stored.path}: {error}") from error


def described(stored: StoredComponent) -> str:
    """Describe a network in a line: its numbers, dtypes and sizes."""
    numbers = sum(map(stored.numbers, stored.tensors))
    dtypes = ", ".join(sorted({tensor.dtype for tensor in stored.tensors.values()}))
    held = f"{numbers:,} numbers in {len(stored.tensors)} weights, {dtypes}"
    return f"{stored.component.title}: {held}; {stored.component.describe(stored.config)}"
