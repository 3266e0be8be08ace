"""Damaged and unusual files of bitsandbytes: told by name before a number is read, or read."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from minflux.backend import get_backend
from minflux.checkpoints.foreign import join_quantised
from minflux.checkpoints.formats.safetensors import contents, read_array
from minflux.errors import CheckpointError
from tests.checkpoints.quantisers import QUANTISERS, json_bytes

NAME = "single_blocks.0.linear1.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"
MATRIX = np.random.default_rng(0).standard_normal((6, 70)).astype(np.float32)
RIGHT = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [6, 70]}


def joined(path, arrays):
    safetensors.torch.save_file(arrays, path)
    return join_quantised(path, contents(path))


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_may_be_stored_as_floats(tmp_path, storage):
    """`bnb_4bit_quant_storage`, for FSDP: the same bytes under another dtype."""
    matrix = MATRIX[:, :64]
    arrays, expected = QUANTISERS["NF4"](NAME, matrix)
    arrays[NAME] = arrays[NAME].reshape(-1).view(storage)[:, None]
    (stored,) = joined(tmp_path / "x.safetensors", arrays).values()
    np.testing.assert_array_equal(read_array(stored, get_backend("numpy")), expected)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("NF4", {f"{NAME}.absmax": None}, f"{NAME}.absmax: missing"),
        ("NF4", {f"{NAME}.quant_map": torch.zeros(15)}, r"quant_map: expected F32 or F16 or BF16 \(16,\), found F32"),
        ("NF4", {f"{NAME}.absmax": torch.zeros(6)}, r"absmax: expected F32 or F16 or BF16 \(7,\), found F32 \(6,\)"),
        ("NF4", {NAME: None}, f"{NAME}: expected 210 bytes of 4-bit codes, found none"),
        ("NF4", {NAME: torch.zeros(209, 1, dtype=torch.uint8)}, "expected 210 bytes of 4-bit codes, found 209"),
        ("NF4", {STATE: None}, "quantised to 4 bits by bitsandbytes, and lacks the settings beside it"),
        ("NF4", {STATE: torch.zeros(8)}, "expected at most 4096 bytes, found F32"),
        ("NF4", {STATE: torch.zeros(1 << 13, dtype=torch.uint8)}, "expected at most 4096 bytes, found U8"),
        ("NF4", {STATE: json_bytes(RIGHT | {"blocksize": 48})}, "expected blocks of one of"),
        ("NF4", {STATE: json_bytes(RIGHT | {"blocksize": 64.0})}, "expected blocks of one of"),
        ("NF4", {STATE: json_bytes(RIGHT | {"shape": [6, 10**9]})}, "expected 3000000000 bytes of 4-bit codes"),
        ("NF4", {STATE: json_bytes(RIGHT | {"shape": [6, True]})}, "expected a shape of sizes"),
        ("NF4", {STATE: json_bytes(RIGHT | {"nested_offset": 10**400})}, "a finite offset"),
        ("NF4, scales in 8 bits", {f"{NAME}.nested_quant_map": torch.zeros(2)}, r"nested_quant_map: .*\(256,\)"),
        ("NF4, scales in 8 bits", {f"{NAME}.nested_absmax": torch.zeros(2)}, r"nested_absmax: .*\(1,\)"),
        ("int8 by bitsandbytes", {NAME.replace("weight", "SCB"): torch.zeros(7)}, r"SCB: .*\(6,\)"),
        ("int8 by bitsandbytes", {NAME: None}, "expected a matrix of int8 by rows"),
        ("int8 by bitsandbytes", {NAME: torch.zeros(6, 70)}, "expected I8"),
        (
            "int8 by bitsandbytes",
            {NAME.replace("weight", "weight_format"): torch.tensor(2, dtype=torch.uint8)},
            "expected a matrix of int8 by rows, found another layout",
        ),
    ],
)
def test_a_damaged_part_is_named(tmp_path, kind, change, words):
    arrays = {"img_in.weight": torch.zeros(2, 2), **QUANTISERS[kind](NAME, MATRIX)[0], **change}
    with pytest.raises(CheckpointError, match=words):
        joined(tmp_path / "x.safetensors", {name: x for name, x in arrays.items() if x is not None})


SIZES = st.one_of(st.integers(-2, 100), st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3))
SETTINGS = st.dictionaries(
    st.sampled_from(["blocksize", "nested_blocksize", "nested_offset", "shape"]),
    st.one_of(SIZES, st.sampled_from([32, 64, 128, 4096]), st.lists(SIZES, max_size=5)),
)


@given(SETTINGS)
@pytest.mark.parametrize("kind", ["NF4", "NF4, scales in 8 bits"])
def test_any_settings_are_refused_or_read(tmp_path, kind, settings):
    arrays, _ = QUANTISERS[kind](NAME, MATRIX)
    old = json.loads(bytes(arrays[STATE].tolist()))
    try:
        (stored,) = joined(tmp_path / "x.safetensors", arrays | {STATE: json_bytes(old | settings)}).values()
    except CheckpointError:
        return
    assert read_array(stored, get_backend("numpy")).shape == stored.shape


def test_numbers_that_are_none_give_no_warning(tmp_path):
    arrays, _ = QUANTISERS["NF4"](NAME, MATRIX)
    arrays[f"{NAME}.absmax"][:] = np.inf
    (stored,) = joined(tmp_path / "x.safetensors", arrays).values()
    assert not np.isfinite(read_array(stored, get_backend("numpy"))).all()
