"""Arrays as text that a page can hold: bytes in base64, with a shape beside them.

Shares in [0, most] become 256 levels of the most in their row; numbers of either sign become 255 levels, 127 of which
stands for 0. What a reader of the page gets back is within half a level of what was there.
"""

import base64
from typing import Any

import numpy as np

Packed = dict[str, Any]
KINDS = {"uint8": np.uint8, "float32": np.float32}


def pack(array: np.ndarray) -> Packed:
    """Return an array of uint8, or of anything as float32, as {"kind", "shape", "bytes"}."""
    kind = "uint8" if array.dtype == np.uint8 else "float32"
    laid = np.ascontiguousarray(array, KINDS[kind]).astype(np.dtype(KINDS[kind]).newbyteorder("<"))
    return {"kind": kind, "shape": list(array.shape), "bytes": base64.b64encode(laid.tobytes()).decode()}


def unpack(packed: Packed) -> np.ndarray:
    """Return the array that was packed."""
    kind = np.dtype(KINDS[packed["kind"]]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(packed["bytes"]), kind).reshape(packed["shape"])


def pack_shares(x: np.ndarray) -> dict[str, Packed]:
    """Pack numbers ≥ 0 (..., n) as levels of the most in each row: {"levels", "most"}."""
    most = x.max(axis=-1, keepdims=True)
    levels = np.round(255 * x / np.maximum(most, 1e-30)).astype(np.uint8)
    return {"levels": pack(levels), "most": pack(most[..., 0])}


def unpack_shares(packed: dict[str, Packed]) -> np.ndarray:
    """Return numbers that were packed as shares, to within most / 510."""
    return unpack(packed["levels"]) / np.float32(255) * unpack(packed["most"])[..., None]


def pack_signed(x: np.ndarray) -> dict[str, Packed]:
    """Pack numbers of either sign (..., n) as levels of the largest size in each row: {"levels", "most"}."""
    most = np.abs(x).max(axis=-1, keepdims=True)
    levels = np.round(127 + 127 * x / np.maximum(most, 1e-30)).astype(np.uint8)
    return {"levels": pack(levels), "most": pack(most[..., 0])}


def unpack_signed(packed: dict[str, Packed]) -> np.ndarray:
    """Return numbers that were packed with their signs, to within most / 254."""
    return (unpack(packed["levels"]) - np.float32(127)) / 127 * unpack(packed["most"])[..., None]
