"""JSON objects in files: read with errors that name the file, written whole."""

import json
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.atomic import opened, written_whole
from minflux.errors import CheckpointError


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object, whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def read_json(path: Path) -> dict:
    """Read a file that holds one JSON object; raises `CheckpointError` when it does not."""
    with opened(path) as file:
        return parse_json(path, file.read())


def parse_json(path: Path, text: bytes) -> dict:
    """Parse one JSON object; `path` is for the error."""
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs; raises `ValueError` when a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in found if keys.count(key) > 1)!r} is there twice")
    return found
