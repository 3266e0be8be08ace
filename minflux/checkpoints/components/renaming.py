"""One model, two sets of names: rules that turn one into the other, and matrices that only one of them joins."""

import re
from collections.abc import Iterable

from minflux.arrays import Array
from minflux.backend import backend_of

Flat = dict[str, Array]  # weights by name
Rules = tuple[tuple[str, str], ...]


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply each rule in turn to the whole parts of a dotted name; # stands for a number, which is kept.

    >>> rename("blocks.3.attn.w", [("blocks.#.attn", "layers.#.attention")])
    'layers.3.attention.w'
    """
    for old, new in rules:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        name = re.sub(rf"(?<![^.]){pattern}(?![^.])", new.replace("#", r"\1"), name)
    return name


def renamed(flat: Flat, rules: Rules) -> Flat:
    """Return weights under other names."""
    return {rename(name, rules): array for name, array in flat.items()}


def backwards(rules: Rules) -> Rules:
    """Turn rules round: what was read from left to right is read from right to left, and from the end."""
    return tuple((new, old) for old, new in reversed(rules))


# -- joint matrices ------------------------------------------------------------------------------------------
# "qkv@1.weight" is part 1 of the joint matrix "qkv.weight"; a table says how many parts each has: {"qkv": 3}.


def joint_name(name: str) -> str:
    """Return the name of the joint matrix that a part belongs to; any other name stays as it is.

    >>> joint_name("blocks.3.qkv@1.weight")
    'blocks.3.qkv.weight'
    """
    return re.sub(r"@\d", "", name)


def joined(flat: Flat) -> Flat:
    """Stack "qkv@0.weight", "qkv@1.weight", … into one "qkv.weight"; all else stays as it is."""
    parts: dict[str, dict[str, Array]] = {}
    for name, array in flat.items():
        parts.setdefault(joint_name(name), {})[name] = array
    return {name: stacked([group[part] for part in sorted(group)]) for name, group in parts.items()}


def stacked(arrays: list[Array]) -> Array:
    """Return arrays as one, their rows one after the other."""
    return arrays[0] if len(arrays) == 1 else backend_of(*arrays).concatenate(arrays, axis=0)


def exchange(flat: Flat, modules: Iterable[str]) -> Flat:
    """Exchange the upper and the lower half of the rows of these modules' weights and biases; undone by itself."""
    chosen = set(modules)
    return {name: exchanged(array) if name.rpartition(".")[0] in chosen else array for name, array in flat.items()}


def exchanged(array: Array) -> Array:
    """Exchange the upper and the lower half of the rows."""
    half = array.shape[0] // 2
    return stacked([array[half:], array[:half]])


def apart(flat: Flat, joints: dict[str, int]) -> Flat:
    """Cut the joint matrices of the table `joints` into their parts: undo `joined`."""
    result: Flat = {}
    for name, array in flat.items():
        stem, _, leaf = name.rpartition(".")
        count = parts_of(stem, joints)
        for i in range(count):
            rows = joint_rows(i, count, flat[f"{stem}.weight"].shape[1])
            result[f"{stem}@{i}.{leaf}"] = array[rows]
        if not count:
            result[name] = array
    return result


def parts_of(stem: str, joints: dict[str, int]) -> int:
    """Return how many parts the matrix called `stem` has, 0 if it is no joint one."""
    return joints.get(stem.rpartition(".")[2], 0)


def joint_rows(part: int, count: int, columns: int) -> slice:
    """Return the rows of one projection in a joint matrix of `count` projections.

    Each has as many rows as the matrix has columns; the last takes the remainder (in linear1, the MLP).
    """
    last = part == count - 1
    return slice(part * columns, None if last else (part + 1) * columns)
