"""Whatever is wrong with a file, the end is minflux's own error, or the very weights that were stored."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minflux.backend import get_backend
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.folder import save_component
from minflux.checkpoints.formats.dtypes import DTYPES
from minflux.checkpoints.lora import read_lora
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten
from minflux.commands.convert import convert
from minflux.commands.inspect import inspect
from minflux.errors import MinfluxError
from tests import tiny_model

NX = get_backend("numpy")
T5 = replace(tiny_model.T5, d_model=64, d_kv=32, d_ff=64, num_layers=1, vocab_size=4)
CLIP = replace(tiny_model.CLIP, num_hidden_layers=1, hidden_size=4, intermediate_size=4, vocab_size=8)


@pytest.fixture(scope="module", params=["floats", "quantised"])
def original(request, tmp_path_factory):
    """A file, its bytes and its weights: a text encoder of floats, or one in 4 bits."""
    folder = tmp_path_factory.mktemp("fuzz")
    kind, cfg = ("text_encoder", CLIP) if request.param == "floats" else ("text_encoder_2", T5)
    shapes = clip_shapes(CLIP) if request.param == "floats" else t5_shapes(T5)
    save_component(folder, kind, cfg, tiny_model.random_tree(shapes, np.random.default_rng(0)))
    file = folder / kind / "model.safetensors"
    if request.param == "quantised":
        convert(folder, folder / "packed", "minflux", part=kind, bits=4)
        file = folder / "packed" / kind / "minflux.safetensors"
    return file, file.read_bytes(), flatten(load_component(file.parent.parent, kind, NX)[1])


def opened(file: Path, content: bytes) -> dict | None:
    """The weights in a file of this content, None when minflux refuses it; any other error is a failure."""
    file.write_bytes(content)
    folder, kind = file.parent.parent, file.parent.name
    for look in (lambda: inspect(folder).text(), lambda: read_lora(file, {"text_encoder": CLIP})):
        with contextlib.suppress(MinfluxError):
            look()
    try:
        return flatten(load_component(folder, kind, NX)[1])
    except MinfluxError:
        return None


def with_header(content: bytes, header: object) -> bytes:
    """The same file with another header."""
    size = int.from_bytes(content[:8], "little")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def header_of(content: bytes) -> dict:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def same(got: dict | None, expected: dict) -> bool:
    return got is None or (
        got.keys() == expected.keys() and all(np.array_equal(got[name], w) for name, w in expected.items())
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
SIZES = st.integers(-2, 9) | st.integers(2**30, 2**70)


@settings(max_examples=400)
@given(data=st.data())
def test_a_changed_entry(original, data):
    file, content, expected = original
    header = header_of(content)
    name = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    entry = header[name]
    wrong = {
        "dtype": st.sampled_from([code for code in DTYPES if code not in ("F32", "U32")]) | ANYTHING,
        "shape": st.lists(SIZES, max_size=12) | ANYTHING,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | ANYTHING,
    }
    key = data.draw(st.sampled_from(sorted(wrong)))
    header[name] = data.draw(ANYTHING) if data.draw(st.booleans()) else entry | {key: data.draw(wrong[key])}
    assert same(opened(file, with_header(content, header)), expected)


@settings(max_examples=200)
@given(data=st.data())
def test_changed_names(original, data):
    file, content, expected = original
    header = header_of(content)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        entry = header.pop(name)
        if data.draw(st.booleans()):
            header[data.draw(st.text(max_size=8) | st.just(f"{name}.weight") | st.just(name.upper()))] = entry
    assert same(opened(file, with_header(content, header)), expected)


@settings(max_examples=200)
@given(header=ANYTHING | st.dictionaries(st.text(max_size=8), ANYTHING))
def test_any_header_at_all(original, header):
    file, content, _ = original
    assert opened(file, with_header(content, header)) is None


@settings(max_examples=200)
@given(length=st.integers(0, 5000), junk=st.binary(max_size=64))
def test_a_file_cut_short_or_too_long(original, length, junk):
    file, content, expected = original
    assert same(opened(file, content[:length] + junk), expected)


@settings(max_examples=400)
@given(data=st.data())
def test_flipped_bits_of_the_header(original, data):
    """A flip may be in a name's spelling of the metadata, or leave a number as it is; else it must be seen."""
    file, content, expected = original
    size = 8 + int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert same(opened(file, bytes(changed)), expected)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', '{"__metadata__": 3}', "{}", "null", ""])
def test_odd_headers(original, text):
    file, content, _ = original
    assert opened(file, len(text).to_bytes(8, "little") + text.encode() + content[:100]) is None


def test_a_weight_that_is_there_twice_is_named(original):
    file, content, _ = original
    name = next(name for name in header_of(content) if name != "__metadata__")
    text = json.dumps(header_of(content))[:-1] + f', "{name}": {{}}}}'
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(MinfluxError, match=f"'{name}' is there twice"):
        load_component(file.parent.parent, file.parent.name, NX)
