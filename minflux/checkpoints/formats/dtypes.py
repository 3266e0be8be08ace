"""The dtypes that files store: their tags, what NumPy calls them, and how each is widened and rounded."""

import numpy as np

from minflux.arrays import Array
from minflux.backend import Backend, backend_of, get_backend
from minflux.backend.bfloat16 import to_bfloat16
from minflux.errors import ArgumentError, quoted

# safetensors' tag -> NumPy's name; bfloat16 and float8, which it lacks, are read as the bits they are made of
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "uint16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "F8_E4M3": "uint8", "F8_E5M2": "uint8",
}  # fmt: skip
FLOAT8 = ("F8_E4M3", "F8_E5M2")
TAGS = {name: tag for tag, name in DTYPES.items() if tag not in ("BF16", *FLOAT8)} | {"bfloat16": "BF16"}
BLOCKS = {  # GGUF's quantised types: how many numbers lie in a block, and how many bytes it takes
    "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q2_K": (256, 84),
    "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
}  # fmt: skip
# matrices that other programs quantised, by what their codes are
CODED = ("NF4", "FP4", "INT8", "FP8", "Q2", "Q3", "Q4", "Q5", "Q6", "Q8")
FLOATS = ("F64", "F32", "F16", "BF16", *FLOAT8, *BLOCKS, *CODED)
CASTS = ("float32", "float16", "bfloat16")  # what a caller may ask for


def checked_cast(name: str | None) -> str | None:
    """Return the name of a dtype to cast to, or raise `ArgumentError` if it is none."""
    if name is not None and not (isinstance(name, str) and name in CASTS):
        raise ArgumentError(f"dtype: expected one of {', '.join(CASTS)}, got {quoted(name)}")
    return name


def float_dtype(nx: Backend, name: str | None):
    """Return the dtype of `nx` called `name`, float32 if it is None."""
    dtype = getattr(nx.xp, checked_cast(name) or "float32", None)
    if dtype is None:
        raise ArgumentError(f"dtype: {nx.name} has no {name}, use 'float32'")
    return dtype


def from_float8(bits: np.ndarray, tag: str) -> np.ndarray:
    """Widen float8, given as uint8, to float32, exactly.

    E5M2 is the upper half of a float16. E4M3 has its mantissa's bits and one exponent bit fewer: laid into a float16
    it is 2⁸ too small. It has no infinity, and all ones is its only NaN (Micikevicius et al. 2022, arXiv 2209.05433).
    """
    wide = bits.astype(np.uint16)
    if tag == "F8_E5M2":
        return (wide << 8).view(np.float16).astype(np.float32)
    half = ((wide & 0x7F) << 7 | (wide & 0x80) << 8).view(np.float16)
    return np.where(wide & 0x7F == 0x7F, np.float32(np.nan), 256 * half.astype(np.float32))


def dtype_tag(array: Array, dtype: str | None) -> str:
    """Return the tag of the dtype that an array is to be stored in: its own, or `dtype` if it holds floats."""
    own = TAGS[str(array.dtype).rpartition(".")[2]]  # MLX says "mlx.core.float32"
    wanted = checked_cast(dtype)
    return TAGS[wanted] if wanted and own in FLOATS else own


def to_bytes(array: Array, tag: str) -> bytes:
    """Return an array's bytes in the dtype `tag`, row by row."""
    array = backend_of(array).to_numpy(array)
    stored = to_bfloat16(array) if tag == "BF16" else array.astype(DTYPES[tag])
    return stored.tobytes()


def rounded(x: np.ndarray, tag: str) -> np.ndarray:
    """Round float32 to what the dtype `tag` can hold, and return it in float32."""
    if tag == "BF16":
        return get_backend("numpy").from_bfloat16(to_bfloat16(x))
    return x.astype(np.float16).astype(np.float32) if tag == "F16" else x.astype(np.float32)
