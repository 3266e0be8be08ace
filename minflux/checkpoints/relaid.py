"""Lay GGUF's simplest types out as MLX has its quantised matrices, so that its kernels multiply by them as they are.

    Q8_0    w = d · q,  -128 ≤ q < 128        scale d, bias -128 d, for q + 128
    Q4_0    w = d · (q - 8)                   scale d, bias -8 d
    Q4_1    w = d · q + m                     scale d, bias m

32 numbers of a row share d and m, both float16. d times a power of two is exact, so float16 and float32 hold scales and
biases as they are, and in float32 w is the same, to the bit; in float16 scale · q is rounded (0.06 % of w, widened
blocks 0.02 %). bfloat16 would round by 0.5 %, as much as Q8_0 loses itself: there, and for the other types, which have
scales of scales or 5 or 6 bits, blocks stay blocks. Source: ggml `ggml-common.h`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.quantise import BIASES, SCALES, pack_bits, stem_of
from minflux.checkpoints.stored import StoredComponent

BITS = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4}  # those that are re-laid
GROUP = 32
TAGS = {"weight": "U32", SCALES: "F16", BIASES: "F16"}


@dataclass(frozen=True)
class Relaid(Stored):
    """One of the three arrays that stand for a matrix in blocks: its packed "weight", its "scales" or its "biases"."""

    group: ClassVar[int] = GROUP
    blocks: Stored = field(kw_only=True)
    part: str = field(kw_only=True)

    def read_bytes(self) -> np.ndarray:
        """Return its bytes, uint8, made of the matrix's blocks."""
        _, taken = BLOCKS[self.blocks.dtype]
        rows = self.blocks.read_bytes().reshape(self.shape[0], -1, taken)
        made = {"weight": packed_numbers, SCALES: scales, BIASES: biases}[self.part](rows, self.blocks.dtype)
        return made.reshape(-1).view(np.uint8)


def packed_numbers(rows: np.ndarray, kind: str) -> np.ndarray:
    """Return a matrix's whole numbers, packed: (O, G, bytes) -> (O, P) uint32."""
    numbers = rows[..., -GROUP * BITS[kind] // 8 :]
    both = [numbers ^ 0x80] if kind == "Q8_0" else [numbers & 15, numbers >> 4]  # ^: two's complement to q + 128
    q = np.concatenate(both, axis=-1)
    return pack_bits(q.reshape(len(rows), -1), BITS[kind])


def scales(rows: np.ndarray, kind: str) -> np.ndarray:
    """Return each group's d: (O, G, bytes) -> (O, G) float16."""
    return half(rows, 0)


def biases(rows: np.ndarray, kind: str) -> np.ndarray:
    """Return each group's number for q = 0: (O, G, bytes) -> (O, G) float16."""
    if kind == "Q4_1":
        return half(rows, 2)
    return half(rows, 0) * np.float16(-(2 ** (BITS[kind] - 1)))


def half(rows: np.ndarray, start: int) -> np.ndarray:
    """Return the float16 that begins at a byte of each block."""
    return np.ascontiguousarray(rows[..., start : start + 2]).view(np.float16)[..., 0]


# -- components ----------------------------------------------------------------------------------------------


def relaid(stored: StoredComponent, unchanged: Collection[str] = ()) -> StoredComponent:
    """Return a component in which every matrix of these types is its three arrays; of a joint matrix, all its parts.

    Those whose stems, by our names, are among `unchanged` stay in blocks.
    """
    tensors: dict[str, Stored] = {}
    for ours, names in stored.sources.items():
        can = can_be_relaid(stored, ours) and stem_of(ours) not in unchanged
        for name in names:
            tensors |= three_arrays(name, stored.tensors[name]) if can else {name: stored.tensors[name]}
    return replace(stored, tensors=tensors)


def can_be_relaid(stored: StoredComponent, ours: str) -> bool:
    """Return whether a matrix, by our name, is multiplied by, and is of one number of bits throughout."""
    parts = [stored.tensors[name] for name in stored.sources[ours]]
    bits = {BITS.get(part.dtype) for part in parts}
    return len(bits) == 1 and None not in bits and stored.component.is_quantisable(ours, parts[0].shape, GROUP)


def three_arrays(name: str, blocks: Stored) -> dict[str, Stored]:
    """Return the three arrays that stand for a matrix in blocks, by name."""
    rows, columns = blocks.shape
    groups = columns // GROUP
    widths = {"weight": columns * BITS[blocks.dtype] // 32, SCALES: groups, BIASES: groups}
    return {
        f"{stem_of(name)}.{part}": Relaid(
            blocks.path, TAGS[part], (rows, width), blocks.start, blocks=blocks, part=part
        )
        for part, width in widths.items()
    }
