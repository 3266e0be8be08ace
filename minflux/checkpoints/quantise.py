"""Matrices in 4 or 8 bits: a small whole number q for each weight, and a scale and a bias for every 64 of a row.

    w ≈ scale · q + bias        "….weight" (O, I · bits / 32) uint32   "….scales", "….biases" (O, I / 64) float

The layout is MLX's own, so that its kernels multiply by such a matrix as it lies. Quantised are the matrices inside
the blocks of the transformer and of T5, which hold nearly all weights. What leads into the blocks and out of them,
norms and biases, CLIP and the VAE stay floats.
"""

from collections.abc import Mapping

import numpy as np

from minflux.arrays import Array, Float, Int, shaped
from minflux.backend import backend_of
from minflux.backend.base import GROUP, packed_bits
from minflux.checkpoints.components import Component, Naming
from minflux.checkpoints.components.shapes import Shapes
from minflux.checkpoints.formats.dtypes import rounded
from minflux.checkpoints.formats.mlx_affine import affine
from minflux.checkpoints.formats.parts import Found, in_place
from minflux.checkpoints.formats.safetensors import Stored

Shape = tuple[int, ...]

BITS = (4, 8)
SCALES, BIASES = "scales", "biases"
PARAMETERS = (f".{SCALES}", f".{BIASES}")


def stem_of(name: str) -> str:
    """Return the name of a weight's layer.

    >>> stem_of("single_blocks.3.linear1.weight")
    'single_blocks.3.linear1'
    """
    return name.rpartition(".")[0]


# -- numbers -------------------------------------------------------------------------------------------------


@shaped
def quantise(
    weight: Float[Array, "O I"], bits: int, dtype: str = "F32"
) -> tuple[Int[Array, "O P"], Float[Array, "O G"], Float[Array, "O G"]]:
    """Round a NumPy matrix, 64 numbers of a row at a time: q = round((w - bias) / scale), 0 <= q < 2^bits.

    Returns packed q's, scales and biases, float32; the last two are rounded to what files can hold as `dtype`.
    """
    groups = weight.reshape(len(weight), -1, GROUP).astype(np.float32)
    scale, bias = scale_and_bias(groups, bits)
    scale, bias = rounded(scale, dtype), rounded(bias, dtype)
    q = np.rint((groups - bias[..., None]) / scale[..., None])
    q = np.clip(q, 0, 2**bits - 1).reshape(weight.shape)
    return pack_bits(q.astype(np.uint8), bits), scale, bias


def scale_and_bias(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and the bias of each group of numbers, (O, G, 64) -> two of (O, G).

    As in MLX, the bias is the group's minimum or maximum, whichever is larger in size, and the scale is adjusted so
    that bias / scale is an integer; 0 is then stored exactly.
    """
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    step = np.maximum((high - low) / (2**bits - 1), np.float32(1e-7))
    from_low = -low > high
    scale = np.where(from_low, step, -step)
    edge = np.where(from_low, low, high)
    count = np.rint(edge / scale)
    is_zero = count == 0
    scale = np.where(is_zero, scale, edge / np.where(is_zero, 1, count))
    return scale, np.where(is_zero, 0, edge)


def pack_bits(q: np.ndarray, bits: int) -> np.ndarray:
    """Lay whole numbers (O, I) uint8 side by side into uint32, the first in the lowest bits."""
    if bits == 4:
        q = q[:, ::2] | q[:, 1::2] << 4
    return np.ascontiguousarray(q).view("<u4")


# -- names and shapes ----------------------------------------------------------------------------------------


def is_packed(name: str, found: Mapping) -> bool:
    """Return whether a weight is quantised: scales in rows lie beside it."""
    pair = found.get(name), found.get(f"{stem_of(name)}.{SCALES}")
    return name.endswith(".weight") and all(len(getattr(array, "shape", ())) == 2 for array in pair)


def is_quantisation_parameter(name: str, found: Mapping) -> bool:
    """Return whether an array is the scales or biases of a quantised weight."""
    return name.endswith(PARAMETERS) and is_packed(f"{stem_of(name)}.weight", found)


def holds_packed(array: Array | Stored) -> bool:
    """Return whether an array, or a stored one, holds packed numbers: no float weight has this dtype."""
    return array.dtype == "U32" if isinstance(array, Stored) else str(array.dtype).endswith("uint32")


def bits_of(name: str, found: Mapping[str, Stored]) -> int:
    """Return in how many bits a quantised weight is stored: its columns against its scales'."""
    return packed_bits(found[name], found[f"{stem_of(name)}.{SCALES}"])


def matrix_shape(name: str, found: Mapping[str, Stored]) -> tuple[int, ...]:
    """Return the shape (O, I) of a quantised weight before it was packed."""
    scales = found[f"{stem_of(name)}.{SCALES}"]
    rows, groups = scales.shape
    return rows, scales.group * groups


def packed_shapes(name: str, shape: tuple[int, ...], bits: int) -> Shapes:
    """Return names and shapes of the three arrays that stand for a matrix."""
    rows, columns = shape
    parameters = rows, columns // GROUP
    return {name: (rows, columns * bits // 32), **{f"{stem_of(name)}.{leaf}": parameters for leaf in (SCALES, BIASES)}}


def packed_bits_of(component: Component, ours: str, name: str, shape: Shape, found: Mapping[str, Stored]) -> int | None:
    """Return in how many bits a file holds a matrix of this shape; None for a weight that is not quantised."""
    if not is_packed(name, found) or not component.is_quantisable(ours, shape, GROUP):
        return None
    return next((bits for bits in BITS if found[name].shape == (shape[0], shape[1] * bits // 32)), BITS[0])


def widen_others(component: Component, naming: Naming, found: Found) -> Found:
    """Return contents in which packed matrices that minflux doesn't multiply by are entries that widen when read.

    Kept as they lie are those of 4 and 8 bits inside the blocks; where our matrix joins several, all or none.
    """
    parts: dict[str, list[str]] = {}
    for name in found:
        if name.endswith(".weight"):
            parts.setdefault(naming.our_name(name, None), []).append(name)
    widened = [name for ours, names in parts.items() if not is_kept(component, ours, names, found) for name in names]
    entries = {name: affine(found, name) for name in widened}
    coded = {name: entry for name, entry in entries.items() if entry is not None}
    return in_place(found, coded, lambda name: f"{stem_of(name)}.weight" if name.endswith(PARAMETERS) else None)


def is_kept(component: Component, ours: str, names: list[str], found: Found) -> bool:
    """Return whether the parts of one of our matrices, by the file's names, can stay packed."""
    if not all(is_packed(name, found) for name in names):
        return False
    bits = {bits_of(name, found) for name in names}
    fits = all(component.is_quantisable(ours, matrix_shape(name, found), GROUP) for name in names)
    return fits and len(bits) == 1 and bits <= set(BITS)


# -- there and back ------------------------------------------------------------------------------------------


def dequantise(flat: dict[str, Array]) -> dict[str, Array]:
    """Turn every quantised matrix of a flat tree back into floats."""
    plain = {}
    for name, array in flat.items():
        stem = stem_of(name)
        if is_packed(name, flat):
            plain[name] = backend_of(array).dequantized(array, flat[f"{stem}.{SCALES}"], flat[f"{stem}.{BIASES}"])
        elif not is_quantisation_parameter(name, flat):
            plain[name] = array
    return plain
