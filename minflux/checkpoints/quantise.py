"""Matrices in 4 or 8 bits: a small whole number q for each weight, and a scale and a bias for every 64 of a row.

    w ≈ scale · q + bias        "….weight" (O, I · bits / 32) uint32   "….scales", "….biases" (O, I / 64) float

The layout is MLX's own, so that its kernels multiply by such a matrix as it lies. Quantised are the matrices inside
the blocks of the transformer and of T5, which hold nearly all weights. What leads into the blocks and out of them,
norms and biases, CLIP and the autoencoder stay floats.
"""

import re
from collections.abc import Mapping

import numpy as np

from minflux.arrays import Array, Float, Int, shaped
from minflux.backend import backend_of, get_backend
from minflux.backend.base import GROUP, packed_bits
from minflux.backend.bfloat16 import to_bfloat16
from minflux.checkpoints.expected import Shapes
from minflux.checkpoints.formats.safetensors import Stored

BITS = (4, 8)
SCALES, BIASES = "scales", "biases"
INSIDE = {
    "transformer": re.compile(r"(double|single)_blocks\.\d+\."),
    "text_encoder_2": re.compile(r"encoder\.block\."),
}
TABLE = "relative_attention_bias"  # of T5: looked up, not multiplied by


def stem_of(name: str) -> str:
    """Give the name of a weight's layer.

    >>> stem_of("single_blocks.3.linear1.weight")
    'single_blocks.3.linear1'
    """
    return name.rpartition(".")[0]


def is_matrix(kind: str, name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a weight, under our names, is one of those that are quantised."""
    inside = kind in INSIDE and INSIDE[kind].match(name) and name.endswith(".weight") and TABLE not in name
    return bool(inside) and len(shape) == 2 and shape[1] % GROUP == 0


# -- numbers -------------------------------------------------------------------------------------------------


@shaped
def quantise(
    weight: Float[Array, "O I"], bits: int, code: str = "F32"
) -> tuple[Int[Array, "O P"], Float[Array, "O G"], Float[Array, "O G"]]:
    """Round a NumPy matrix, 64 numbers of a row at a time: q = round((w - bias) / scale), 0 <= q < 2^bits.

    The bias is the group's end that is farther from 0, and the scale divides it, so that 0 stays 0 as MLX has it. Both
    are rounded first to the dtype `code` that they will be stored in. Returns packed q's, scales and biases, float32.
    """
    groups = weight.reshape(len(weight), -1, GROUP).astype(np.float32)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    top = 2**bits - 1
    step = np.maximum((high - low) / top, np.float32(1e-7))
    scale = np.where(-low > high, step, -step)
    edge = np.where(-low > high, low, high)
    count = np.rint(edge / scale)
    scale = rounded(np.where(count == 0, scale, edge / np.where(count == 0, 1, count)), code)
    bias = rounded(np.where(count == 0, 0, edge), code)
    q = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, top)
    return packed(q.reshape(weight.shape).astype(np.uint8), bits), scale, bias


def rounded(x: np.ndarray, code: str) -> np.ndarray:
    """Round float32 to what the dtype `code` can hold, and return it in float32."""
    if code == "BF16":
        return get_backend("numpy").from_bfloat16(to_bfloat16(x))
    return x.astype(np.float16).astype(np.float32) if code == "F16" else x.astype(np.float32)


def packed(q: np.ndarray, bits: int) -> np.ndarray:
    """Lay whole numbers (O, I) uint8 side by side into uint32, the first in the lowest bits."""
    if bits == 4:
        q = q[:, ::2] | q[:, 1::2] << 4
    return np.ascontiguousarray(q).view("<u4")


# -- names and shapes ----------------------------------------------------------------------------------------


def is_packed(name: str, found: Mapping) -> bool:
    """Tell whether a weight is quantised: scales in rows lie beside it."""
    pair = found.get(name), found.get(f"{stem_of(name)}.{SCALES}")
    return name.endswith(".weight") and all(len(getattr(array, "shape", ())) == 2 for array in pair)


def is_beside(name: str, found: Mapping) -> bool:
    """Tell whether an array is the scales or biases of a quantised weight."""
    return name.endswith((f".{SCALES}", f".{BIASES}")) and is_packed(f"{stem_of(name)}.weight", found)


def holds_packed(array: Array | Stored) -> bool:
    """Tell whether an array, or a stored one, holds packed numbers: no float weight has this dtype."""
    return array.code == "U32" if isinstance(array, Stored) else str(array.dtype).endswith("uint32")


def bits_of(name: str, found: Mapping[str, Stored]) -> int:
    """Tell in how many bits a quantised weight is stored: its columns against its scales'."""
    return packed_bits(found[name], found[f"{stem_of(name)}.{SCALES}"])


def matrix_shape(name: str, found: Mapping[str, Stored]) -> tuple[int, ...]:
    """Give the shape (O, I) of a quantised weight before it was packed."""
    rows, groups = found[f"{stem_of(name)}.{SCALES}"].shape
    return rows, GROUP * groups


def packed_shapes(name: str, shape: tuple[int, ...], bits: int) -> Shapes:
    """Name and shape the three arrays that stand for a matrix."""
    rows, columns = shape
    beside = rows, columns // GROUP
    return {name: (rows, columns * bits // 32), **{f"{stem_of(name)}.{leaf}": beside for leaf in (SCALES, BIASES)}}


def with_packed(shapes: Shapes, found: Mapping[str, Stored], kind: str) -> Shapes:
    """Put three shapes in the place of one for every weight that a file holds quantised."""
    expected: Shapes = {}
    for name, shape in shapes.items():
        if is_packed(name, found) and is_matrix(kind, name, shape):
            bits = next((b for b in BITS if found[name].shape == (shape[0], shape[1] * b // 32)), BITS[0])
            expected |= packed_shapes(name, shape, bits)
        else:
            expected[name] = shape
    return expected


# -- there and back ------------------------------------------------------------------------------------------


def floats(flat: dict[str, Array]) -> dict[str, Array]:
    """Turn every quantised matrix of a flat tree back into floats."""
    plain = {}
    for name, array in flat.items():
        stem = stem_of(name)
        if is_packed(name, flat):
            plain[name] = backend_of(array).dequantized(array, flat[f"{stem}.{SCALES}"], flat[f"{stem}.{BIASES}"])
        elif not is_beside(name, flat):
            plain[name] = array
    return plain
