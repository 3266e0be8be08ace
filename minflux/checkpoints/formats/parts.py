"""The arrays that lie beside a quantised weight: each must be there, and be of the dtype and the shape that it has."""

from collections.abc import Callable

from minflux.checkpoints.formats.atomic import opened
from minflux.checkpoints.formats.entry import Coded, Stored
from minflux.checkpoints.formats.json_files import parse_json
from minflux.errors import CheckpointError

Found = dict[str, Stored]

SCALES = ("F32", "F16", "BF16")  # dtypes of scales
LONGEST = 4096  # bytes of settings that lie beside a weight


def take_part(found: Found, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> Stored:
    """Return the array called `name`; raises `CheckpointError` when it is missing, or of another dtype or shape."""
    stored = found.get(name)
    if stored is None:
        path = next(iter(found.values())).path
        raise CheckpointError(f"{path}: {name}: missing, and a quantised weight can't be read without it")
    if stored.dtype not in dtypes or stored.shape not in shapes:
        wanted = f"{' or '.join(dtypes)} {' or '.join(map(str, shapes))}"
        raise CheckpointError(f"{stored.path}: {name}: expected {wanted}, found {stored.dtype} {stored.shape}")
    return stored


def read_bytes(stored: Stored, name: str) -> bytes:
    """Read a few bytes that lie beside a weight; raises `CheckpointError` for what is no bytes, or too many."""
    if stored.dtype != "U8" or stored.size > LONGEST:
        raise CheckpointError(
            f"{stored.path}: {name}: expected at most {LONGEST} bytes, found {stored.dtype} {stored.shape}"
        )
    with opened(stored.path) as file:
        file.seek(stored.start)
        return file.read(stored.size)


def read_settings(stored: Stored, name: str) -> dict:
    """Read the JSON object that an array of bytes spells."""
    return parse_json(stored.path, read_bytes(stored, name))


def in_place(found: Found, coded: dict[str, Coded], weight_of: Callable[[str], str | None]) -> Found:
    """Return contents in which each quantised weight stands in the place of its parts.

    `weight_of` tells from an array's name which weight it is a part of, None for one that is no part.
    """
    rest: Found = {name: stored for name, stored in found.items() if weight_of(name) not in coded}
    return rest | coded
