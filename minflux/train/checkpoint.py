"""A training run on disk: all that is needed to go on exactly where it stopped, written whole or not at all."""

from pathlib import Path

import numpy as np

from minflux.arrays import Tree
from minflux.backend import Backend, get_backend
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.tree import flatten, tree
from minflux.errors import CheckpointError

NAME = "checkpoint.safetensors"


def save(folder: Path, nx: Backend, state: dict[str, Tree], step: int) -> None:
    """Write the state after `step` steps; the file before it is replaced only once this one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: nx.to_numpy(value) for name, value in flatten(state).items()}
    write_safetensors(folder / NAME, {**flat, "step": np.array([step], np.int32)})


def load(folder: Path, nx: Backend) -> tuple[dict[str, Tree], int] | None:
    """Read the run in `folder`: its state and the number of steps done, or None where there is no run yet.

    Raises `CheckpointError` when the file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    flat = read_safetensors(path, get_backend("numpy"))
    if "step" not in flat:
        raise CheckpointError(f"{path}: expected the key 'step' of a training run, found none")
    step = int(flat.pop("step")[0])
    return tree({name: nx.array(value) for name, value in flat.items()}), step
