"""Read matrices of int8 or float8 that quanto or torchao wrote, with scales of rows, or of groups in a row.

    w = scale · (code - zero point)

quanto    "….weight._data", "….weight._scale"
torchao   "…._weight_qdata", "…._weight_scale", "…._weight_zero_point"; the header's text says of which type each is

Sources: optimum-quanto `tensor/weights/qbytes.py`; torchao `prototype/safetensors/safetensors_support.py`,
`quantization/quantize_/workflows/`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minflux.checkpoints.formats.dtypes import FLOAT8
from minflux.checkpoints.formats.entry import Coded, Stored
from minflux.checkpoints.formats.json_files import parse_json
from minflux.checkpoints.formats.parts import SCALES, Found, in_place, take_part
from minflux.checkpoints.formats.safetensors import read_metadata
from minflux.errors import CheckpointError

QUANTO = re.compile(r"(.+\.weight)\._(?:data|scale)")
TORCHAO = re.compile(r"(.+)\._weight_(?:qdata|scale|zero_point)")
TORCHAO_TYPES = ("Int8Tensor", "Float8Tensor")  # whose codes are a number each
TAGS = {"I8": "INT8"} | dict.fromkeys(FLOAT8, "FP8")


def join_scaled(found: Found) -> Found:
    """Return a file's contents in which each matrix of int8 or float8 by quanto or torchao is one entry."""
    by_quanto = [match[1] for match in map(QUANTO.fullmatch, found) if match and f"{match[1]}._data" in found]
    by_torchao = [match[1] for match in map(TORCHAO.fullmatch, found) if match]
    coded = {name: scaled(found, f"{name}._data", f"{name}._scale") for name in by_quanto}
    if by_torchao:
        check_types({part.path for part in found.values()}, {f"{module}.weight" for module in by_torchao})
    for module in by_torchao:
        names = (f"{module}._weight_{part}" for part in ("qdata", "scale", "zero_point"))
        coded[f"{module}.weight"] = scaled(found, *names)
    return in_place(found, coded, weight_of)


def weight_of(name: str) -> str | None:
    """Return the name of the weight that an array is a part of, None for one that is no part.

    >>> weight_of("proj.weight._scale"), weight_of("proj._weight_qdata"), weight_of("proj.bias")
    ('proj.weight', 'proj.weight', None)
    """
    quanto, torchao = QUANTO.fullmatch(name), TORCHAO.fullmatch(name)
    if torchao:
        return f"{torchao[1]}.weight"
    return quanto[1] if quanto else None


def check_types(paths: Iterable[Path], weights: set[str]) -> None:
    """Raise `CheckpointError` for a weight of torchao's whose type isn't read, or isn't said in any header."""
    for path in sorted(paths):
        texts = read_metadata(path)
        for name in sorted(weights & texts.keys()):
            kind = parse_json(path, str(texts[name]).encode()).get("_type")
            if kind not in TORCHAO_TYPES:
                raise CheckpointError(
                    f"{path}: {name}: a {kind!a} of torchao, and {' and '.join(TORCHAO_TYPES)} are read"
                )
        weights = weights - texts.keys()
    for name in sorted(weights):
        raise CheckpointError(f"{path}: {name}: expected torchao's type of it in the header's text, found none")


def scaled(found: Found, codes_name: str, scale_name: str, zero_name: str | None = None) -> Coded:
    """Make an entry of a matrix; raises `CheckpointError` where its parts don't fit together."""
    codes = found.get(codes_name)
    if codes is None or codes.dtype not in TAGS or len(codes.shape) != 2:
        path, what = stored_at(found, codes)
        raise CheckpointError(f"{path}: {codes_name}: expected a matrix of int8 or float8, found {what}")
    shapes = scale_shapes(codes.shape, found.get(scale_name))
    parts = {"codes": codes, "absmax": take_part(found, scale_name, SCALES, *shapes)}
    if zero_name in found:
        parts["zero point"] = take_part(found, str(zero_name), ("I8", "I32", *SCALES), parts["absmax"].shape)
    return Coded(codes.path, TAGS[codes.dtype], codes.shape, codes.start, parts=parts, widen=widen_scaled)


def stored_at(found: Found, stored: Stored | None) -> tuple[Path, str]:
    """Return the file that an array is in, and its dtype and shape, for a message."""
    if stored is None:
        return next(iter(found.values())).path, "none"
    return stored.path, f"{stored.dtype} {stored.shape}"


def scale_shapes(shape: tuple[int, ...], scale: Stored | None) -> list[tuple[int, ...]]:
    """Return the shapes that scales of a matrix may have: of one number, of each row, of groups in each row."""
    rows, columns = shape
    groups = scale.shape[1] if scale is not None and len(scale.shape) == 2 else 1
    whole = [(rows, groups)] if groups and columns % groups == 0 else []
    return [(), (1,), (1, 1), (rows, 1), *whole]


def widen_scaled(parts: dict[str, np.ndarray]) -> np.ndarray:
    """Widen a matrix: scale · (code - zero point), in float32."""
    codes = parts["codes"].astype(np.float32)
    if "zero point" in parts:
        codes -= in_columns(parts["zero point"], codes.shape[1])
    return codes * in_columns(parts["absmax"], codes.shape[1])


def in_columns(scales: np.ndarray, columns: int) -> np.ndarray:
    """Repeat the scales of groups for each of their columns; those of rows or of all stay as they are."""
    if scales.ndim < 2 or scales.shape[1] <= 1:
        return scales.astype(np.float32)
    return np.repeat(scales, columns // scales.shape[1], axis=1).astype(np.float32)
