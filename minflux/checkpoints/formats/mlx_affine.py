"""Widen matrices that MLX quantised to any number of bits: 3, 5 and 6 too, which minflux doesn't multiply by.

    w = scale · q + bias                    a scale and a bias for 64 numbers of a row

The q's of a row are one string of bits, the lowest first, cut into uint32. Source: MLX `mx.quantize`, "affine".
"""

from functools import partial

import numpy as np

from minflux.backend.base import GROUP
from minflux.checkpoints.formats.entry import Coded
from minflux.checkpoints.formats.parts import SCALES, Found

WIDTHS = (2, 3, 4, 5, 6, 8)  # bits a number
ROWS = 256  # widened at a time


def affine(found: Found, name: str) -> Coded | None:
    """Make an entry of a matrix that MLX quantised; None where its parts don't fit together."""
    stem = name.rpartition(".")[0]
    codes, scales, biases = (found.get(f"{stem}.{leaf}") for leaf in ("weight", "scales", "biases"))
    if codes is None or scales is None or biases is None or codes.dtype != "U32":
        return None
    if scales.shape != biases.shape or len(scales.shape) != 2 or not {scales.dtype, biases.dtype} <= set(SCALES):
        return None
    rows, groups = scales.shape
    bits = next((bits for bits in WIDTHS if codes.shape == (rows, groups * GROUP * bits // 32)), None)
    if bits is None:
        return None
    parts = {"codes": codes, "scales": scales, "biases": biases}
    return Coded(
        codes.path, f"Q{bits}", (rows, groups * GROUP), codes.start, parts=parts, widen=partial(widen_affine, bits)
    )


def widen_affine(bits: int, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Widen a matrix: scale · q + bias, in float32, some rows at a time."""
    scales, biases = parts["scales"][..., None], parts["biases"][..., None]
    wide = np.empty((*scales.shape[:2], GROUP), np.float32)
    for start in range(0, len(wide), ROWS):
        rows = slice(start, start + ROWS)
        q = unpacked(parts["codes"][rows], bits).reshape(-1, *wide.shape[1:])
        wide[rows] = q * scales[rows] + biases[rows]
    return wide.reshape(len(wide), -1)


def unpacked(codes: np.ndarray, bits: int) -> np.ndarray:
    """Cut rows of uint32 into whole numbers of some bits each, uint8."""
    string = np.unpackbits(np.ascontiguousarray(codes).view(np.uint8), axis=-1, bitorder="little")
    return np.packbits(string.reshape(len(codes), -1, bits), axis=-1, bitorder="little")[..., 0]
