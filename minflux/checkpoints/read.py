"""Read weights: one of them, or a whole component as a tree."""

from pathlib import Path
from typing import Any

from minflux.arrays import Array, Tree
from minflux.backend import Backend, backend_of
from minflux.checkpoints.formats.safetensors import read_array
from minflux.checkpoints.open import open_component
from minflux.checkpoints.stored import StoredComponent
from minflux.checkpoints.tree import tree
from minflux.errors import CheckpointError


def load_component(folder: str | Path, name: str, nx: Backend, dtype: str | None = None) -> tuple[Any, Tree]:
    """Read "transformer", "vae", "text_encoder" (CLIP), "text_encoder_2" (T5) or "unet" from a model folder.

    Returns its config and weight tree; for errors see `open_component` and `read_weight`.
    """
    stored = open_component(Path(folder), name)
    return stored.config, read_tree(stored, nx, dtype)


def read_tree(stored: StoredComponent, nx: Backend, dtype: str | None = None) -> Tree:
    """Read a component's weights as our tree; for errors see `read_weight`. `dtype` is as in `read_safetensors`."""
    flat = {name: read_weight(stored, name, nx, dtype) for name in stored.tensors}
    return tree(stored.naming.load(flat, stored.config) | stored.joins)


def read_weight(stored: StoredComponent, name: str, nx: Backend, dtype: str | None = None) -> Array:
    """Read one weight, a float8 one times its scale.

    Raises `CheckpointError` at NaN or infinity, and where the file has it under two names with other numbers.
    """
    for copy in stored.copies.get(name, ()):
        copy.check()
    array = read_array(stored.tensors[name], nx, stored.loaded_dtype(name, dtype))
    if name in stored.scales:
        array = (array * read_scale(stored, name, nx)).astype(array.dtype)
    if not bool(backend_of(array).xp.isfinite(array).all()):
        path = stored.tensors[name].path
        raise CheckpointError(f"{path}: {stored.prefix}{name}: expected finite numbers, found NaN or infinity")
    return array


def read_scale(stored: StoredComponent, name: str, nx: Backend) -> Array:
    """Read a float8 weight's scale, one number or one for each row."""
    shape = stored.tensors[name].shape
    array = read_array(stored.scales[name], nx, "float32")
    ones = [1] * (len(shape) - 1)
    return array.reshape(*shape[:1], *ones) if array.size > 1 else array.reshape(())
