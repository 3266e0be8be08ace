"""Quantised matrices as other programs write them, and the numbers that they stand for, by the programs' formulas.

Each quantiser takes a weight's name and a float32 matrix, and returns the arrays of the file and the expected matrix.
The formulas were compared with the packages themselves, once and by hand, on matrices of odd shapes: equal to the bit.
bitsandbytes 0.50.2: `functional.quantize_4bit`, `dequantize_4bit`, `int8_vectorwise_dequant`.
optimum-quanto 0.2.7: `WeightQBytesTensor.dequantize`, which rounds to bfloat16 what is float32 here.
torchao 0.18.0: `Int8Tensor.dequantize`, `Float8Tensor.dequantize`.
"""

import json
from collections.abc import Callable

import numpy as np
import torch

Arrays = dict[str, torch.Tensor]
Quantiser = Callable[[str, np.ndarray], tuple[Arrays, np.ndarray]]

TABLES = {  # bitsandbytes' value of each 4-bit code; FP4's is a sign, two bits of exponent, one of mantissa
    "nf4": [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    "fp4": [
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25, 0.0,
        -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
    ],
}  # fmt: skip


def json_bytes(settings: dict) -> torch.Tensor:
    """Settings as bitsandbytes packs them: JSON in an array of bytes."""
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The number of the table's entry that is nearest to each value."""
    return (values[..., None] - table).abs().argmin(-1)


def four_bits(kind: str, nested: bool, block: int = 64) -> Quantiser:
    """bitsandbytes' `quantize_4bit`: value = table[code] · absmax of the block, and absmax in 8 bits where nested."""

    def quantise(name: str, matrix: np.ndarray) -> tuple[Arrays, np.ndarray]:
        table, n = torch.tensor(TABLES[kind]), matrix.size
        blocks = torch.nn.functional.pad(torch.from_numpy(matrix).reshape(-1), (0, -n % block)).reshape(-1, block)
        absmax = blocks.abs().amax(1)
        arrays, settings = {}, {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": matrix.shape}
        if nested:
            offset, table2 = absmax.mean(), torch.linspace(-0.99, 1, 256)
            groups = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
            absmax2 = groups.abs().amax(1)
            codes2 = nearest(groups / absmax2[:, None], table2)
            absmax = (table2[codes2] * absmax2[:, None]).reshape(-1)[: len(absmax)] + offset
            settings |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
            arrays = {f"{name}.nested_absmax": absmax2, f"{name}.nested_quant_map": table2}
            arrays[f"{name}.absmax"] = codes2.reshape(-1)[: len(absmax)].to(torch.uint8)
        codes = nearest(blocks / absmax[:, None], table)
        expected = (table[codes] * absmax[:, None]).reshape(-1)[:n].reshape(matrix.shape)
        flat = torch.nn.functional.pad(codes.reshape(-1)[:n], (0, n % 2)).to(torch.uint8)
        arrays[name] = (flat[::2] << 4 | flat[1::2])[:, None]
        arrays[f"{name}.quant_map"] = table
        arrays.setdefault(f"{name}.absmax", absmax)
        arrays[f"{name}.quant_state.bitsandbytes__{kind}"] = json_bytes(settings)
        return arrays, expected.numpy()

    return quantise


def int8_by_rows(name: str, matrix: np.ndarray) -> tuple[Arrays, np.ndarray]:
    """bitsandbytes' `int8_vectorwise_quant`: value = code · absmax of the row / 127."""
    absmax = torch.from_numpy(matrix).abs().amax(1)
    codes = (torch.from_numpy(matrix) * (127 / absmax[:, None])).round().to(torch.int8)
    module = name.removesuffix(".weight")
    arrays = {name: codes, f"{module}.SCB": absmax, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return arrays, (codes * absmax.view(-1, 1) * 7.874015718698502e-3).numpy()


def by_quanto(dtype: torch.dtype) -> Quantiser:
    """quanto's `WeightQBytesTensor`: value = scale of the row · code; scales in bfloat16, and two of activations."""

    def quantise(name: str, matrix: np.ndarray) -> tuple[Arrays, np.ndarray]:
        scale, codes = row_codes(matrix, dtype, torch.bfloat16)
        ones = {f"{name.removesuffix('weight')}{kind}_scale": torch.ones(()) for kind in ("input", "output")}
        expected = scale.float() * codes.float()
        return {f"{name}._data": codes, f"{name}._scale": scale} | ones, expected.numpy()

    return quantise


def by_torchao(dtype: torch.dtype) -> Quantiser:
    """torchao's `Int8Tensor` or `Float8Tensor`: value = scale of the row · (code - zero point)."""

    def quantise(name: str, matrix: np.ndarray) -> tuple[Arrays, np.ndarray]:
        scale, codes = row_codes(matrix, dtype, torch.float32)
        stem = name.removesuffix("weight")
        arrays, zero = {f"{stem}_weight_qdata": codes, f"{stem}_weight_scale": scale}, torch.zeros(len(codes), 1)
        if dtype == torch.int8:
            zero = torch.arange(len(codes))[:, None] % 3
            arrays[f"{stem}_weight_zero_point"] = zero.to(torch.int8)
        return arrays, (scale * (codes.float() - zero)).numpy()

    return quantise


def row_codes(matrix: np.ndarray, dtype: torch.dtype, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of each row, (O, 1), and its codes."""
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    weight = torch.from_numpy(matrix)
    scale = (weight.abs().amax(1, keepdim=True) / largest).to(scale_dtype)
    codes = (weight / scale.float()).clamp(-largest, largest)
    return scale, (codes.round() if dtype == torch.int8 else codes).to(dtype)


def torchao_texts(arrays: Arrays) -> dict[str, str]:
    """What torchao writes into the header's text: the type of each weight."""
    types = {}
    for name, array in arrays.items():
        if name.endswith("._weight_qdata"):
            kind = "Int8Tensor" if array.dtype == torch.int8 else "Float8Tensor"
            types[f"{name.removesuffix('._weight_qdata')}.weight"] = json.dumps({"_type": kind, "_data": {}})
    return types


QUANTISERS: dict[str, Quantiser] = {
    "NF4": four_bits("nf4", nested=False),
    "NF4, scales in 8 bits": four_bits("nf4", nested=True),
    "FP4": four_bits("fp4", nested=False, block=32),
    "FP4, scales in 8 bits": four_bits("fp4", nested=True),
    "int8 by bitsandbytes": int8_by_rows,
    "int8 by quanto": by_quanto(torch.int8),
    "float8 by quanto": by_quanto(torch.float8_e4m3fn),
    "float8 e5m2 by quanto": by_quanto(torch.float8_e5m2),
    "int8 by torchao": by_torchao(torch.int8),
    "float8 by torchao": by_torchao(torch.float8_e4m3fn),
}
