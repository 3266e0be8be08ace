"""Files of weights: every dtype to the bit, bad files, and no half of a file."""

import contextlib
import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from minflux.backend import get_backend
from minflux.backend.bfloat16 import to_bfloat16
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.errors import ArgumentError, CheckpointError

EVERY_BFLOAT16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def same_bits(got: np.ndarray, expected: torch.Tensor) -> None:
    """Equal to the last bit, NaN for NaN."""
    np.testing.assert_array_equal(got, expected.float().numpy())
    assert (np.signbit(got) == np.signbit(expected.float().numpy())).all()


def test_all_65536_bfloat16_numbers_are_read_exactly(tmp_path, nx):
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file({"x": EVERY_BFLOAT16}, path)
    x = read_safetensors(path, nx)["x"]
    assert str(x.dtype).endswith("float32" if nx.name == "numpy" else "bfloat16")
    same_bits(nx.to_numpy(x), EVERY_BFLOAT16)
    same_bits(nx.to_numpy(read_safetensors(path, nx, "float32")["x"]), EVERY_BFLOAT16)


def test_all_65536_bfloat16_numbers_are_written_exactly(tmp_path, nx):
    path = tmp_path / "all.safetensors"
    x = nx.array(EVERY_BFLOAT16.float().numpy())
    write_safetensors(path, {"x": x}, dtype="bfloat16")
    same_bits(safetensors.torch.load_file(path)["x"].float().numpy(), EVERY_BFLOAT16)


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=50))
def test_rounding_to_bfloat16_is_pytorch_s(numbers):
    x = torch.tensor(numbers, dtype=torch.float32)
    halves = (x.view(torch.int32) & -65536 | 0x8000).view(torch.float32)  # ties: to even
    for values in (x, halves):
        bits = torch.from_numpy(to_bfloat16(values.numpy()).view(np.int16)).view(torch.bfloat16)
        expected = values.bfloat16()
        kept = ~expected.isnan().numpy()  # the sign that PyTorch gives a NaN depends on the processor
        same_bits(bits.float().numpy()[kept], expected[~expected.isnan()])
        assert bits.isnan().equal(expected.isnan())


DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_what_safetensors_writes(tmp_path, nx, dtype):
    x = (torch.randn(3, 5) * 3).to(getattr(torch, dtype))
    flat = {"x": x, "none": x[:0], "one": x[0, 0].clone()}
    safetensors.torch.save_file(flat, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors", nx)
    for name, expected in flat.items():
        assert tuple(got[name].shape) == tuple(expected.shape)
        expected = expected.float() if x.is_floating_point() else expected
        np.testing.assert_array_equal(nx.to_numpy(got[name]), expected.numpy())


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_safetensors_reads_what_we_write(tmp_path, nx, dtype):
    x, ids = torch.randn(3, 5), torch.arange(4, dtype=torch.int32)
    flat = {"a.x": nx.array(x.numpy()), "ids": nx.array(ids.numpy())}
    write_safetensors(tmp_path / "x.safetensors", flat, {"by": "minflux"}, dtype)
    got = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert torch.equal(got["a.x"], x.to(getattr(torch, dtype or "float32")))
    assert torch.equal(got["ids"], ids)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "minflux"}


def test_native_bfloat16_is_kept(tmp_path):
    mx = pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    x = mx.array([0.1, -3.0, 1e30]).astype(mx.bfloat16)
    write_safetensors(tmp_path / "x.safetensors", {"x": x})
    got = read_safetensors(tmp_path / "x.safetensors", nx)["x"]
    assert got.dtype == mx.bfloat16
    assert mx.array_equal(got, x)
    assert mx.array_equal(mx.load(str(tmp_path / "x.safetensors"))["x"], x)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_casting_on_reading(tmp_path, nx, dtype):
    write_safetensors(tmp_path / "x.safetensors", {"x": nx.array([1.5]), "i": nx.array(np.arange(2))})
    if (nx.name, dtype) == ("numpy", "bfloat16"):
        with pytest.raises(ArgumentError, match="dtype: numpy has no bfloat16, use 'float32'"):
            read_safetensors(tmp_path / "x.safetensors", nx, dtype)
        return
    got = read_safetensors(tmp_path / "x.safetensors", nx, dtype)
    assert str(got["x"].dtype).endswith(dtype)
    assert "int" in str(got["i"].dtype)


def test_unknown_dtypes(tmp_path, nx):
    with pytest.raises(ArgumentError, match="dtype: expected one of float32, float16, bfloat16, got 'int4'"):
        write_safetensors(tmp_path / "x.safetensors", {"x": nx.array([1.0])}, dtype="int4")
    write_safetensors(tmp_path / "x.safetensors", {"x": nx.array([1.0])})
    with pytest.raises(ArgumentError, match="got 'int4'"):
        read_safetensors(tmp_path / "x.safetensors", nx, "int4")


def test_equal_weights_make_equal_files(tmp_path):
    flat = {"b": np.ones(3, np.float32), "a": np.zeros(2, np.float16)}
    write_safetensors(tmp_path / "1", flat)
    write_safetensors(tmp_path / "2", dict(reversed(flat.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def header(**entries) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (pickle.dumps({"x": [1.0] * 99}), "is a Python pickle, which can run code when opened"),
        (b"PK\x03\x04" + bytes(99), "is a PyTorch pickle"),
        (b"GGUF" + bytes(99), "is cut short, or no GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"", "is no safetensors file"),
        (b"hello, world, this is a text", "is no safetensors file"),
        (header(x=GOOD)[:-9] + bytes(8), "is cut short, in the header|expected JSON"),
        (header(x=GOOD)[:20], "is cut short, in the header"),
        (header(x=GOOD) + bytes(7), "is cut short: x ends at byte 8 of 7"),
        (header(x=GOOD | {"shape": [3]}) + bytes(8), r"x: expected 12 bytes for F32 \(3,\), found 8"),
        (header(x=GOOD | {"shape": [-2]}) + bytes(8), "x: expected a shape of at most 8 axes"),
        (header(x=GOOD | {"data_offsets": [-8, 0]}) + bytes(8), "x: expected 8 bytes"),
        (header(x=GOOD | {"dtype": "F3"}) + bytes(8), "x: can't read its header entry"),
        (header(x=GOOD | {"data_offsets": [0.0, 8.0]}) + bytes(8), "x: can't read its header entry"),
        (header(x=[1, 2]) + bytes(8), "x: can't read its header entry"),
        ((9).to_bytes(8, "little") + b"{'a': 1}!", "expected JSON"),
    ],
)
def test_bad_files(tmp_path, nx, content, complaint):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"bad.safetensors: ({complaint})") as error:
        read_safetensors(path, nx)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders(tmp_path, nx):
    with pytest.raises(CheckpointError, match=r"no.safetensors: no such file"):
        read_safetensors(tmp_path / "no.safetensors", nx)
    with pytest.raises(CheckpointError, match="is a directory"):
        read_safetensors(tmp_path, nx)
    (tmp_path / "x.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found a list"):
        read_safetensors(tmp_path / "x.index.json", nx)


def test_a_file_is_on_the_disk_before_it_is_renamed_and_its_name_after(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renamed(*paths):
        done.append("renamed")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": np.ones(3, np.float32)})
    assert done == [path.stat().st_ino, "renamed", tmp_path.stat().st_ino]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with contextlib.suppress(ZeroDivisionError), written_whole(path) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]
    with written_whole(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


# -- float8 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float8_is_read_exactly(tmp_path, nx, dtype):
    x = torch.arange(256, dtype=torch.uint8).view(dtype)
    safetensors.torch.save_file({"x": x}, tmp_path / "x.safetensors")
    got = read_safetensors(tmp_path / "x.safetensors", nx)["x"]
    np.testing.assert_array_equal(nx.to_numpy(got), x.float().numpy())
    assert str(got.dtype).endswith("float32" if nx.name == "numpy" else "bfloat16")


# -- JSON ------------------------------------------------------------------------------------------------------

NO_SETTINGS = {
    "deep": ("[" * 200_000, "expected JSON"),
    "33 levels": ('{"a":' * 33 + "1" + "}" * 33, "at most 32 levels"),
    "no number": ('{"a": NaN}', "NaN is no number"),
    "too large a number": ('{"a": 1e400}', "1e400 is no number"),
    "many digits": ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
    "an escape": ('{"a": 1, "\x1b[2J', r"expected JSON"),
}


@pytest.mark.parametrize(("text", "words"), NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_what_is_no_json_of_settings(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_json(path)
    assert str(caught.value).isprintable()


def test_settings_of_32_levels_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a":' * 32 + "1" + "}" * 32)
    assert list(read_json(path)) == ["a"]


def test_a_file_of_settings_is_read_no_further_than_its_bound(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole: takes no room
    with pytest.raises(CheckpointError, match="expected settings of at most 67,108,864 bytes"):
        read_json(path)


@pytest.mark.parametrize("name", ["\x1b[31m.json", "two\nlines.json", "\u202egnp.json"])
def test_no_message_holds_control_characters_of_a_file_s_name(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(CheckpointError) as caught:
        read_json(tmp_path / name)
    assert str(caught.value).isprintable()
