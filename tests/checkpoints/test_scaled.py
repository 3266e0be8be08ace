"""Damaged and unusual files of quanto, torchao and ComfyUI: told by name before a number is read, or read."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from minflux.backend import get_backend
from minflux.checkpoints.foreign import join_quantised
from minflux.checkpoints.formats.safetensors import contents, read_array
from minflux.errors import CheckpointError
from tests.checkpoints.quantisers import QUANTISERS, json_bytes, torchao_texts

NAME = "single_blocks.0.linear1.weight"
STEM = "single_blocks.0.linear1"
MATRIX = np.random.default_rng(0).standard_normal((6, 70)).astype(np.float32)
BYTES = torch.zeros(6, 70, dtype=torch.uint8)


def joined(path, arrays, texts=None):
    safetensors.torch.save_file(arrays, path, texts)
    return join_quantised(path, contents(path))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6, 1), (6, 7)])
def test_scales_of_all_of_rows_and_of_groups(tmp_path, shape):
    codes, scale = torch.randint(-128, 128, (6, 70), dtype=torch.int8), torch.rand(shape)
    columns = scale.repeat_interleave(10, 1) if shape == (6, 7) else scale
    found = joined(tmp_path / "x.safetensors", {f"{NAME}._data": codes, f"{NAME}._scale": scale})
    np.testing.assert_array_equal(read_array(found[NAME], get_backend("numpy")), (codes * columns).numpy())


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("int8 by quanto", {f"{NAME}._scale": None}, f"{NAME}._scale: missing"),
        ("int8 by quanto", {f"{NAME}._scale": torch.ones(6, 4)}, r"_scale: expected .* found F32 \(6, 4\)"),
        ("int8 by quanto", {f"{NAME}._scale": torch.ones(6, 0)}, r"_scale: expected .* found F32 \(6, 0\)"),
        ("int8 by quanto", {f"{NAME}._data": BYTES}, "_data: expected a matrix of int8 or float8, found U8"),
        ("int8 by quanto", {f"{NAME}._data": None}, "_scale: the file is quantised to 2 or 4 bits by quanto"),
        ("int8 by torchao", {f"{STEM}._weight_qdata": None}, "expected torchao's type of it in the header's text"),
        ("int8 by torchao", {f"{STEM}._weight_zero_point": torch.ones(6, 70)}, "zero_point: expected I8"),
        ("int8 by torchao", {f"{STEM}._weight_scale": torch.ones(70, 1)}, r"_weight_scale: .*\(70, 1\)"),
    ],
)
def test_a_damaged_part_is_named(tmp_path, kind, change, words):
    arrays = {"img_in.weight": torch.zeros(2, 2), **QUANTISERS[kind](NAME, MATRIX)[0], **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(CheckpointError, match=words):
        joined(tmp_path / "x.safetensors", arrays, torchao_texts(arrays))


def test_a_type_of_torchao_s_that_is_not_read_is_named(tmp_path):
    arrays, _ = QUANTISERS["int8 by torchao"](NAME, MATRIX)
    texts = {NAME: json.dumps({"_type": "Int4Tensor"})}
    with pytest.raises(CheckpointError, match="a 'Int4Tensor' of torchao, and Int8Tensor and Float8Tensor are read"):
        joined(tmp_path / "x.safetensors", arrays, texts)


@pytest.mark.parametrize("format_", ["float8_e4m3fn", "nvfp4", None])
def test_comfyui_s_marks(tmp_path, format_):
    """A weight that is marked as float8 is read with its scale, as in files without marks; others are named."""
    arrays = {NAME: torch.ones(2, 2).to(torch.float8_e4m3fn), f"{STEM}.weight_scale": torch.tensor(2.0)}
    arrays[f"{STEM}.comfy_quant"] = json_bytes({"format": format_})
    if format_ == "float8_e4m3fn":
        assert joined(tmp_path / "x.safetensors", arrays).keys() == arrays.keys()
    else:
        with pytest.raises(CheckpointError, match=f"quantised to {format_!a} by ComfyUI"):
            joined(tmp_path / "x.safetensors", arrays)
