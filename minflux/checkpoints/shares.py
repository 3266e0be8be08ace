"""One model in several processes: each has a share of the large matrices, and reads that alone.

    q, k, v, and an MLP's first matrix      some of the rows: whole heads, and some channels of the hidden layer
    what follows them                       the columns for these; what comes of them is summed over all processes
    modulations                             some of the rows; what comes of them is put side by side

A block then runs as ever, with fewer heads (tensor parallelism: Shoeybi et al. 2019, arXiv 1909.08053). Whole in every
process are norms, what leads into the blocks and out of them, CLIP and the VAE. The first process alone has the biases
of what is summed, so that they are added once.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minflux.backend.processes import Group
from minflux.checkpoints.components.base import Sharing
from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.slices import Range, sliced
from minflux.checkpoints.quantise import is_packed, is_quantisation_parameter, stem_of
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError


def share_model(components: Mapping[str, StoredComponent], group: Group) -> dict[str, StoredComponent]:
    """Return what one process of a group has of a model's components, by name; for errors see `shared`."""
    if group.size > 1:
        check_even(components.values(), group)
    return {name: shared(stored, group) for name, stored in components.items()}


def shared(stored: StoredComponent, group: Group) -> StoredComponent:
    """Return what one process of a group has of a component.

    Raises `ArgumentError` when the group can't have equal shares, `CheckpointError` for a matrix that can't be cut.
    """
    sharings = stored.component.sharings(stored.config)
    if group.size == 1 or not sharings:
        return stored
    check_even([stored], group)
    found = {name: sharing_of(stored, name, sharings) for name in stored.tensors}
    cut = {name: sharing for name, sharing in found.items() if sharing is not None}
    once = {name for name, sharing in cut.items() if sharing.axis == 1 and is_bias(stored, name)}  # added after a sum
    tensors = dict(stored.tensors) if group.is_first else without(stored.tensors, once)
    tensors |= {name: share(stored, name, sharing, group) for name, sharing in without(cut, once).items()}
    scales = {name: share_of_scale(scale, cut.get(name), group) for name, scale in stored.scales.items()}
    modules = {stem_of(stored.our_names[name]): sharing.joined for name, sharing in cut.items()}
    joins = {f"{module}.{joined}": group.size for module, joined in modules.items() if joined}
    return replace(stored, tensors=tensors, scales=scales, joins=joins)


def sharing_of(stored: StoredComponent, name: str, sharings: Mapping[str, Sharing]) -> Sharing | None:
    """Return how a weight is shared, by the file's name; of a part of a joint matrix, that part; None: not at all."""
    ours = stored.naming.our_part(name, stored.config)
    module, _, part = stem_of(ours).partition("@")
    found = [sharing for called, sharing in sharings.items() if is_called(module, called)]
    if not found or not stored.component.in_blocks.match(ours):
        return None
    return replace(found[0], parts=(found[0].parts[int(part)],)) if part else found[0]


def without(named: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a dict without some of its keys."""
    return {name: value for name, value in named.items() if name not in names}


def is_bias(stored: StoredComponent, name: str) -> bool:
    """Return whether a weight, by the file's name, is what a layer adds."""
    return stored.our_names[name].endswith(".bias")


def is_called(module: str, name: str) -> bool:
    """Return whether a module's name ends so, in whole words."""
    return re.search(rf"(^|[._]){re.escape(name)}$", module) is not None


def share(stored: StoredComponent, name: str, sharing: Sharing, group: Group) -> Stored:
    """Return one process's part of an array: of a quantised matrix, of each of the three that stand for it."""
    tensor = stored.tensors[name]
    matrix = f"{stem_of(name)}.weight" if is_quantisation_parameter(name, stored.tensors) else name
    shape = stored.shape(matrix)
    check_cuttable(stored, name, shape, sharing)
    cut = ranges(sharing.parts, group)
    if sharing.axis == 0:
        return sliced(tensor, 0, cut)
    check_groups(stored, name, columns_together(stored, matrix), cut, group)
    width, columns = tensor.shape[1], shape[1]
    return sliced(tensor, 1, [(first * width // columns, last * width // columns) for first, last in cut])


def check_cuttable(stored: StoredComponent, name: str, shape: tuple[int, ...], sharing: Sharing) -> None:
    """Raise `CheckpointError` for a weight in another program's quantisation, or of another shape than the config's."""
    tensor, count = stored.tensors[name], sum(sharing.parts)
    if type(tensor) is not Stored:
        raise CheckpointError(
            f"{tensor.path}: {stored.prefix}{name}: is stored as {tensor.dtype}, which can't be split: take a file of "
            "floats or of GGUF's blocks, or convert it by minflux convert --format minflux --quantize 8"
        )
    if shape[sharing.axis] != count:
        raise CheckpointError(
            f"{tensor.path}: {stored.prefix}{name}: expected {count} along axis {sharing.axis}, found {shape}"
        )


def check_groups(stored: StoredComponent, name: str, unit: int, cut: Sequence[Range], group: Group) -> None:
    """Raise `CheckpointError` where a process would have a part of the `unit` columns that are quantised together."""
    if any(end % unit for range_ in cut for end in range_):
        raise CheckpointError(
            f"{stored.tensors[name].path}: {stored.prefix}{name}: {unit} columns at a time are quantised together, and "
            f"{group.size} processes would cut through them: start fewer, or take a file of floats"
        )


def share_of_scale(scale: Stored, sharing: Sharing | None, group: Group) -> Stored:
    """Return one process's part of a float8 weight's scale: all of it, unless there is one for each of the rows."""
    if sharing is None or sharing.axis == 1 or scale.shape in ((), (1,)):
        return scale
    return sliced(scale, 0, ranges(sharing.parts, group))


def columns_together(stored: StoredComponent, matrix: str) -> int:
    """Return how many columns of a matrix can't be cut apart: a group's or a block's; 1 of floats."""
    tensor = stored.tensors[matrix]
    if is_packed(matrix, stored.tensors):
        return tensor.group
    return BLOCKS[tensor.dtype][0] if tensor.in_blocks else 1


def ranges(parts: tuple[int, ...], group: Group) -> list[Range]:
    """Return what one process has of parts that lie one after the other, as many as there are parts.

    >>> ranges((6, 6, 24), Group(rank=1, size=2))
    [(3, 6), (9, 12), (24, 36)]
    """
    starts = [sum(parts[:i]) for i in range(len(parts))]
    pieces = [part // group.size for part in parts]
    return [
        (start + group.rank * piece, start + (group.rank + 1) * piece)
        for start, piece in zip(starts, pieces, strict=True)
    ]


def check_even(components: Iterable[StoredComponent], group: Group) -> None:
    """Raise `ArgumentError` unless a group of this size can have equal shares, whole heads among them."""
    counts = {
        f"{what} ({stored.component.title})": count
        for stored in components
        for what, count in stored.component.shared_counts(stored.config).items()
    }
    uneven = [f"{count} {what}" for what, count in counts.items() if count % group.size]
    if uneven:
        most = math.gcd(*counts.values())
        fitting = [str(size) for size in range(2, most + 1) if most % size == 0]
        raise ArgumentError(
            f"split: {group.size} processes can't have equal shares of {' and '.join(uneven)}: "
            f"start {' or '.join(fitting) or 'one, without split'}"
        )
