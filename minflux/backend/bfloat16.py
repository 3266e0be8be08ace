"""bfloat16 on NumPy, which lacks it: the upper half of a float32, kept as uint16."""

import numpy as np


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even, and return its bits as uint16; a NaN stays one.

    Adding half a unit of the last place that is kept rounds up by a carry. Where that place is even, one less is added,
    so that a tie rounds down.
    """
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)
