"""Read matrices that bitsandbytes quantised: to 4 bits (NF4, FP4) in blocks of numbers, or to int8 by rows.

    4 bits    w = table[code] · absmax of its block          two codes a byte, the first in the high half
              absmax = table₂[code₂] · absmax₂ of its block + offset          where absmax is quantised itself
    8 bits    w = code · SCB of its row / 127

Arrays beside the weight say all of it: "….weight.absmax", "….weight.quant_state.bitsandbytes__nf4" (JSON), "….SCB".
Sources: bitsandbytes `functional.py` (`QuantState`) and `nn/modules.py`.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from minflux.checkpoints.formats.entry import Coded, Stored
from minflux.checkpoints.formats.parts import SCALES, Found, in_place, read_bytes, read_settings, take_part
from minflux.errors import CheckpointError

STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(nf4|fp4)")
PART = re.compile(r"(.+)\.(?:quant_state\.bitsandbytes__\w+|(?:nested_)?absmax|(?:nested_)?quant_map)")
ROW_SCALES, LAYOUT = ".SCB", ".weight_format"
BLOCKS = tuple(2**n for n in range(5, 13))  # how many numbers may share a scale
LARGEST = 1e30  # of an offset: far from float32's end
BY_ROWS = b"\0"  # the only layout of int8 that bitsandbytes still reads


def join_bitsandbytes(found: Found) -> Found:
    """Return a file's contents in which each matrix that bitsandbytes quantised is one entry."""
    states = [match for match in map(STATE.fullmatch, found) if match]
    modules = [name.removesuffix(ROW_SCALES) for name in found if name.endswith(ROW_SCALES)]
    coded = {match[1]: four_bits(found, match[1], match[2]) for match in states}
    coded |= {f"{module}.weight": eight_bits(found, module) for module in modules}
    return in_place(found, coded, weight_of)


def weight_of(name: str) -> str | None:
    """Return the name of the weight that an array is a part of, None for one that is no part.

    >>> weight_of("blocks.0.proj.weight.absmax"), weight_of("blocks.0.proj.SCB"), weight_of("blocks.0.proj.bias")
    ('blocks.0.proj.weight', 'blocks.0.proj.weight', None)
    """
    if name.endswith((ROW_SCALES, LAYOUT)):
        return f"{name.rpartition('.')[0]}.weight"
    match = PART.fullmatch(name)
    return match[1] if match else None


# -- 4 bits --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """How a matrix was quantised: its shape, how many numbers share a scale, and how many scales share one in turn."""

    shape: tuple[int, ...]
    blocksize: int
    nested_blocksize: int
    nested_offset: float

    @property
    def blocks(self) -> int:
        """Return how many blocks the matrix has; the last may be filled in part."""
        return math.ceil(math.prod(self.shape) / self.blocksize)


def four_bits(found: Found, name: str, kind: str) -> Coded:
    """Make an entry of a weight in NF4 or FP4; raises `CheckpointError` where its parts don't fit together."""
    state = read_state(found, f"{name}.quant_state.bitsandbytes__{kind}")
    codes = take_codes(found, name, math.ceil(math.prod(state.shape) / 2))
    parts = {"codes": codes, "table": take_part(found, f"{name}.quant_map", SCALES, (16,))}
    is_nested = f"{name}.nested_absmax" in found
    parts["absmax"] = take_part(found, f"{name}.absmax", ("U8",) if is_nested else SCALES, (state.blocks,))
    if is_nested:
        outer = math.ceil(state.blocks / state.nested_blocksize)
        parts["outer absmax"] = take_part(found, f"{name}.nested_absmax", SCALES, (outer,))
        parts["outer table"] = take_part(found, f"{name}.nested_quant_map", SCALES, (256,))
    return Coded(codes.path, kind.upper(), state.shape, codes.start, parts=parts, widen=partial(widen_four_bits, state))


def read_state(found: Found, name: str) -> State:
    """Read how a weight was quantised; raises `CheckpointError` for what can't be."""
    stored = found[name]
    settings = read_settings(stored, name)
    shape, offset = settings.get("shape"), settings.get("nested_offset", 0.0)
    inner, outer = settings.get("blocksize", 0), settings.get("nested_blocksize", BLOCKS[0])
    is_shape = isinstance(shape, list) and 0 < len(shape) <= 4 and all(is_size(size) for size in shape)
    if not is_shape or not isinstance(offset, int | float) or not abs(offset) < LARGEST:
        raise CheckpointError(f"{stored.path}: {name}: expected a shape of sizes and a finite offset, found {settings}")
    if not all(is_size(size) and size in BLOCKS for size in (inner, outer)):
        raise CheckpointError(f"{stored.path}: {name}: expected blocks of one of {BLOCKS} numbers, found {settings}")
    return State(tuple(shape or ()), inner, outer, offset)


def is_size(value: Any) -> bool:
    """Return whether a JSON value is a whole number from 1 on that a file's offset can hold."""
    return type(value) is int and 0 < value < 1 << 32


def take_codes(found: Found, name: str, count: int) -> Stored:
    """Return a matrix's codes as bytes, in whatever dtype they are stored."""
    codes = found.get(name)
    if codes is None or codes.size != count:
        path, size = (next(iter(found.values())).path, "none") if codes is None else (codes.path, f"{codes.size}")
        raise CheckpointError(f"{path}: {name}: expected {count} bytes of 4-bit codes, found {size}")
    return replace(codes, dtype="U8", shape=(count,))


def widen_four_bits(state: State, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Widen a matrix in NF4 or FP4: table[code] · absmax, in float32."""
    scales = nested_scales(state, parts) if "outer table" in parts else parts["absmax"]
    codes = np.zeros(state.blocks * state.blocksize // 2, np.uint8)
    codes[: len(parts["codes"])] = parts["codes"]
    pairs = np.stack([np.repeat(parts["table"], 16), np.tile(parts["table"], 16)], axis=-1)  # of each byte, (256, 2)
    wide = pairs[codes].reshape(state.blocks, state.blocksize) * scales[:, None]
    return wide.reshape(-1)[: math.prod(state.shape)].reshape(state.shape)


def nested_scales(state: State, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Widen scales that were quantised to 8 bits themselves: table₂[code₂] · absmax₂ + offset."""
    outer = np.repeat(parts["outer absmax"], state.nested_blocksize)[: state.blocks]
    return parts["outer table"][parts["absmax"]] * outer + np.float32(state.nested_offset)


# -- 8 bits --------------------------------------------------------------------------------------------------


def eight_bits(found: Found, module: str) -> Coded:
    """Make an entry of a weight in int8, scaled by rows; raises `CheckpointError` where its parts don't fit."""
    name, layout = f"{module}.weight", f"{module}{LAYOUT}"
    shape = found[name].shape if name in found else ()
    if len(shape) != 2 or (layout in found and read_bytes(found[layout], layout) != BY_ROWS):
        path = found[f"{module}{ROW_SCALES}"].path
        raise CheckpointError(f"{path}: {name}: expected a matrix of int8 by rows, found another layout")
    parts = {"codes": take_part(found, name, ("I8",), shape)}
    parts["absmax"] = take_part(found, f"{module}{ROW_SCALES}", SCALES, shape[:1], (shape[0], 1))
    return Coded(found[name].path, "INT8", shape, found[name].start, parts=parts, widen=widen_eight_bits)


def widen_eight_bits(parts: dict[str, np.ndarray]) -> np.ndarray:
    """Widen a matrix of int8: code · absmax of its row / 127, in float32."""
    return parts["codes"] * parts["absmax"].reshape(-1, 1) * np.float32(1 / 127)
