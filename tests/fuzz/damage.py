"""What strangers write into files: JSON with one thing wrong, and bytes with some changed."""

import json
import math
from typing import Any

from hypothesis import strategies as st

CONTROL = "\x1b[31mred\x1b[0m", "two\nlines", "\x00", "\x9b2J", "\u202egnp", "\ud800"
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 2**31, 10**9, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf]
)
TEXTS = st.sampled_from(["", "x", "1", "null", "../..", "/etc/passwd", "é" * 20, "long " * 2000, *CONTROL])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | st.integers(-3, 40)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
TEXT = (  # what no serialiser writes
    "", "null", "[]", '"text"', "{", '{"a": 1} {"b": 2}', "[" * 200_000, '{"a":' * 50_000, '{"a": 1, "a": 2}',
    "\ufeff{}", '{"a": NaN}', '{"n": ' + "9" * 10_000 + "}", '{"a": "\x1b[2J"}', "\x1b[2J",
    '{"\\u001b[2J": ' + "[" * 2000,
)  # fmt: skip


def places(value: Any) -> list[tuple]:
    """Return the way to every value inside a JSON value, as keys and indices."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, inner in pairs for way in [(key,), *((key, *rest) for rest in places(inner))]]


@st.composite
def damaged_json(draw, original: str) -> bytes:
    """JSON text in which one to three values, keys or entries are others, or which is no JSON of an object at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(TEXT)).encode("utf-8", "surrogatepass")
    value = json.loads(original)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(value)
        if ways:
            change(draw, value, draw(st.sampled_from(ways)))
    return json.dumps(value).encode()


def change(draw, value: Any, way: tuple) -> None:
    """Change what lies at a place: another value, one like it, none, or the same under another key."""
    *parents, key = way
    for parent in parents:
        value = value[parent]
    old = value[key]
    how = draw(st.sampled_from(["any", "like", "gone", "key"]))
    if how == "gone":
        del value[key]
    elif how == "key" and isinstance(value, dict):
        value[draw(TEXTS)] = value.pop(key)
    else:
        value[key] = draw(like(old) if how == "like" else ANYTHING)


def like(old: Any) -> st.SearchStrategy:
    """Values of nearly the old one's kind."""
    if isinstance(old, bool) or old is None:
        return st.sampled_from([not old, int(bool(old)), str(old)])
    if isinstance(old, int | float):
        return NUMBERS | st.sampled_from([old + 1, old * 2, -old, str(old), [old], old > 0])
    if isinstance(old, str):
        return TEXTS | st.sampled_from([old.upper(), old + "\x1b[1m", [old], {old: old}])
    if isinstance(old, list):
        return st.sampled_from([old[:-1], old + old, [old], old * 1000, dict(enumerate(map(str, old)))])
    return st.sampled_from([list(old), {}, {"a": old}, {**old, "\x1b[1m": 1}])


@st.composite
def damaged_bytes(draw, original: bytes, header: int) -> bytes:
    """Bytes some of which, mostly in the first `header`, are others, or missing, or there twice."""
    content = bytearray(original)
    how = draw(st.sampled_from(["flip", "flip", "number", "cut", "insert"]))
    at = draw(st.integers(0, min(header, len(content)) - 1))
    if how == "flip":
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, min(header, len(content)) - 1))] = draw(st.integers(0, 255))
    elif how == "number":
        content[at : at + 8] = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])).to_bytes(8, "little")
    elif how == "cut":
        del content[at:]
    else:
        content[at:at] = draw(st.sampled_from([bytes(9), b"\x1b[2J", b"\xff" * 8, bytes(content[:at][-40:])]))
    return bytes(content)


def with_header(content: bytes, header: bytes) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(content[:8], "little")
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def header_of(content: bytes) -> str:
    return content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
