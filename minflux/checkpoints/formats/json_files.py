"""JSON objects in files: read with errors that name the file, written whole."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from minflux.checkpoints.formats.atomic import opened, written_whole
from minflux.errors import CheckpointError

LARGEST = 1 << 26  # bytes of a file of settings; a large model's index takes 100 kB
DEEPEST = 32  # levels; settings have four


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object, whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def read_json(path: Path) -> dict:
    """Read a file that holds one JSON object; raises `CheckpointError` when it does not, or is too large."""
    with opened(path) as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise CheckpointError(f"{path}: expected settings of at most {LARGEST:,} bytes")
    return parse_json(path, text)


def parse_json(path: Path | str, text: bytes | str) -> dict:
    """Parse one JSON object; `path` says where it is, for the error.

    All that minflux reads as JSON, settings and headers, is read here, and nothing else than JSON is taken: no key
    twice, no NaN or infinity (which Python's own reader takes), nothing in more than `DEEPEST` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_number, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, found something else ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    check_levels(path, value)
    return value


def no_number(name: str) -> NoReturn:
    """Raise `ValueError` for NaN and the infinities."""
    raise ValueError(f"{name} is no number")


def finite(text: str) -> float:
    """Return a number with a point or an exponent; raises `ValueError` for one that is too large."""
    number = float(text)
    if math.isfinite(number):
        return number
    no_number(text)


def check_levels(path: Path | str, value: dict) -> None:
    """Raise `CheckpointError` when objects and lists lie in each other more than `DEEPEST` levels deep."""
    level: list = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in values_of(outer) if isinstance(inner, dict | list)]
    if level:
        raise CheckpointError(f"{path}: expected JSON of at most {DEEPEST} levels")


def values_of(outer: dict | list) -> Iterable:
    """Return what an object or a list holds."""
    return outer.values() if isinstance(outer, dict) else outer


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs; raises `ValueError` when a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in found if keys.count(key) > 1)!r} is there twice")
    return found
