"""Hashes of the files that an image depends on, so that it can be told when one of them is no longer the same.

A LoRA is hashed whole. A model may be 34 GB, so of each of its weights only name, shape and the two ends are: another
training changes all of them, and a damaged file is found otherwise. Neither paths nor times count, so a copy of a model
has the hash of the original.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.safetensors import Stored
from minflux.checkpoints.stored import StoredComponent

END = 4096  # bytes at each end of a weight
NONE: Mapping[str, Path] = {}
SMALL_FILES = "minflux.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*", "tokenizer_3/*"


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_model(folder: Path, components: dict[str, StoredComponent], tokenizers: Mapping[str, Path] = NONE) -> str:
    """Return a hash of a model: of its components' weights, of the tokenizers and settings in `folder`.

    tokenizers: folders in place of those there, by name.
    """
    digest = hashlib.sha256()
    add_weights(digest, components)
    for path in sorted(path for pattern in SMALL_FILES for path in folder.glob(pattern) if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {hash_file(path)}".encode())
    for name, path in sorted((name, path) for name, inside in tokenizers.items() for path in inside.glob("*")):
        digest.update(f"{name} {path.name} {hash_file(path)}".encode())
    return digest.hexdigest()


def hash_components(components: dict[str, StoredComponent], settings: str) -> str:
    """Return a hash of the weights of components that are no model, and of settings."""
    digest = hashlib.sha256(settings.encode())
    add_weights(digest, components)
    return digest.hexdigest()


def add_weights(digest: Any, components: dict[str, StoredComponent]) -> None:
    """Add name, dtype, shape and both ends of each weight to a hash."""
    for name, stored in sorted(components.items()):
        for key, tensor in sorted((stored.tensors | stored.scales_by_name).items()):
            digest.update(f"{name} {key} {tensor.dtype} {tensor.shape}".encode())
            digest.update(ends(tensor))


def ends(tensor: Stored) -> bytes:
    """Return the first and the last bytes of an array in its file."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        first = file.read(min(END, tensor.size))
        file.seek(tensor.start + max(0, tensor.size - END))
        return first + file.read(min(END, tensor.size))
