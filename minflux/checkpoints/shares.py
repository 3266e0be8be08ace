"""One model in several processes: each has a share of the large matrices, and reads that alone.

    q, k, v, and an MLP's first matrix      some of the rows: whole heads, and some channels of the hidden layer
    what follows them                       the columns for these; what comes of them is summed over all processes
    modulations                             some of the rows; what comes of them is put side by side

A block then runs as ever, with fewer heads (tensor parallelism: Shoeybi et al. 2019, arXiv 1909.08053). Whole in every
process are norms, what leads into the blocks and out of them, CLIP and the VAE. The first process alone has the biases
of what is summed, so that they are added once.
"""

import re
from dataclasses import replace

from minflux.backend.processes import Group
from minflux.checkpoints.components import Component
from minflux.checkpoints.components.base import Sharing
from minflux.checkpoints.formats.dtypes import BLOCKS
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.slices import Range, sliced
from minflux.checkpoints.quantise import is_packed, is_quantisation_parameter, stem_of
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError

MOST = 1024  # processes; none are named beyond


def shared(stored: StoredComponent, group: Group) -> StoredComponent:
    """Return what one process of a group has of a component.

    Raises `ArgumentError` when the group can't have equal shares, `CheckpointError` for a matrix that can't be cut.
    """
    sharings = stored.component.sharings(stored.config)
    if group.size == 1 or not sharings:
        return stored
    check_even(stored, group)
    tensors, scales, joins = dict(stored.tensors), dict(stored.scales), {}
    for name, tensor in stored.tensors.items():
        ours = stored.naming.our_part(name, stored.config)
        sharing = sharing_of(ours, stored.component, sharings)
        if sharing is None:
            continue
        if ours.endswith(".bias") and sharing.axis == 1:
            if not group.is_first:
                del tensors[name]
            continue
        tensors[name] = share(stored, name, sharing, group)
        if name in scales and sharing.axis == 0 and scales[name].shape not in ((), (1,)):
            scales[name] = sliced(scales[name], 0, ranges(sharing.parts, group))
        if sharing.joined:
            joins[f"{stem_of(stored.our_names[name])}.{sharing.joined}"] = group.size
    return replace(stored, tensors=tensors, scales=scales, joins=joins)


def sharing_of(ours: str, component: Component, sharings: dict[str, Sharing]) -> Sharing | None:
    """Return how a weight is shared, by our name, in which "qkv@1" is a part of a joint matrix; None for a whole one."""
    if not component.in_blocks.match(ours):
        return None
    module, part = re.fullmatch(r"(.*?)(?:@(\d))?", stem_of(ours)).groups()
    found = next((sharing for called, sharing in sharings.items() if is_called(module, called)), None)
    return found if found is None or part is None else replace(found, parts=(found.parts[int(part)],))


def is_called(module: str, name: str) -> bool:
    """Return whether a module's name ends so, in whole words."""
    return re.search(rf"(^|[._]){re.escape(name)}$", module) is not None


def share(stored: StoredComponent, name: str, sharing: Sharing, group: Group) -> Stored:
    """Return one process's part of an array: of a quantised matrix, of each of the three that stand for it."""
    tensor = stored.tensors[name]
    matrix = f"{stem_of(name)}.weight" if is_quantisation_parameter(name, stored.tensors) else name
    shape, where = stored.shape(matrix), f"{tensor.path}: {stored.prefix}{name}"
    if type(tensor) is not Stored:
        raise CheckpointError(
            f"{where}: is stored as {tensor.dtype}, which can't be split: split floats, GGUF's blocks, or a model that "
            "minflux convert --quantize made"
        )
    if shape[sharing.axis] != sum(sharing.parts):
        raise CheckpointError(f"{where}: expected {sum(sharing.parts)} along axis {sharing.axis}, found {shape}")
    if sharing.axis == 0:
        return sliced(tensor, 0, ranges(sharing.parts, group))
    unit = columns_together(stored, matrix)
    cut = ranges(sharing.parts, group)
    if any(end % unit for range_ in cut for end in range_):
        raise CheckpointError(
            f"{where}: {unit} columns are quantised together, and {group.size} processes would cut through them: split "
            "among fewer, or another checkpoint"
        )
    width, columns = tensor.shape[1], shape[1]
    return sliced(tensor, 1, [(first * width // columns, last * width // columns) for first, last in cut])


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


def check_even(stored: StoredComponent, group: Group) -> None:
    """Raise `ArgumentError` unless a group of this size can have equal shares, whole heads among them."""
    counts = stored.component.shared_counts(stored.config)
    uneven = [f"{count} {what}" for what, count in counts.items() if count % group.size]
    if uneven:
        fitting = [str(n) for n in range(2, MOST) if not any(count % n for count in counts.values())]
        raise ArgumentError(
            f"split: {group.size} processes can't have equal shares of the {stored.component.title}'s "
            f"{' and '.join(uneven)}: start {' or '.join(fitting) or 'one, without split'}"
        )
