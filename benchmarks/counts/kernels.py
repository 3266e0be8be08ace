"""The kernels that a graph launches on a GPU, and the bytes that each reads and writes.

An op that only looks at an array in another way, as a transpose, launches none: its result is a view, strides on the
same memory. So strides are followed here, by NumPy's views of memory that is never touched. Some kernels want their
rows side by side, and where they aren't MLX copies the array first. Where it does is as in MLX's `backend/metal`.

A kernel reads each number of its inputs once, and one that is seen by several views once too; it writes each result
once. What an attention or a product reads again, from a cache or not, is not counted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided

from benchmarks.counts.fusion import ELEMENTWISE, fused
from benchmarks.counts.graph import Graph, Node, Value

BYTE = np.empty(1, np.int8)


@dataclass(frozen=True)
class Laid:
    """An array in memory: its view, whose one byte stands for a number, and what it is a view of."""

    value: Value
    view: np.ndarray
    base: Value

    @property
    def numbers(self) -> int:
        """How many different numbers it sees: a broadcast array sees each of its own once."""
        return prod(n for n, stride in zip(self.view.shape, self.view.strides, strict=True) if stride)

    @property
    def is_dense(self) -> bool:
        """Whether its numbers fill a piece of memory, in any order of axes."""
        outermost_first = np.argsort(self.view.strides)[::-1]
        return self.view.transpose(outermost_first).flags.c_contiguous


@dataclass(frozen=True)
class Kernel:
    """A kernel: of what kind, what it computes, and how many bytes it reads and writes."""

    kind: str
    op: str
    read: int
    written: int
    outputs: tuple[Value, ...]


@dataclass
class Counts:
    """The kernels of a graph."""

    kernels: list[Kernel] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Bytes that are read."""
        return sum(kernel.read for kernel in self.kernels)

    @property
    def written(self) -> int:
        """Bytes that are written."""
        return sum(kernel.written for kernel in self.kernels)

    @property
    def kinds(self) -> Counter[str]:
        """How many kernels there are of each kind."""
        return Counter(kernel.kind for kernel in self.kernels)

    def wide(self, numbers: int) -> int:
        """Count the float32 arrays with at least so many numbers that are written."""
        arrays = [x for kernel in self.kernels for x in kernel.outputs]
        return sum(x.dtype == mx.float32 and prod(x.shape) >= numbers for x in arrays)


def count(graph: Graph) -> Counts:
    """Count the kernels of a graph whose arguments lie in memory row by row."""
    device = Device()
    device.run(graph)
    return Counts(device.kernels)


class Device:
    """A GPU that computes nothing: it knows how each array lies, and notes the kernels that it would run."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.memory: dict[str, Laid] = {}

    def run(self, graph: Graph) -> None:
        """Run a graph's ops, one after the other."""
        for node in graph.nodes:
            if node.op == "Function":
                self.call(node)
                continue
            if node.op not in OPS:
                raise NotImplementedError(f"{node.op}: say in benchmarks/counts/kernels.py what it does on a GPU")
            OPS[node.op](self, node, [self.laid(x) for x in node.inputs])

    def call(self, node: Node) -> None:
        """Run a compiled function, its elementwise ops fused; its arrays have names of their own."""
        graph: Graph = fused(node.arguments[0])
        inner = Device()
        inner.memory = {x.name: self.laid(given) for x, given in zip(graph.inputs, node.inputs, strict=True)}
        inner.run(graph)
        self.kernels += inner.kernels
        for x, result in zip(node.outputs, graph.outputs, strict=True):
            self.memory[x.name] = inner.laid(result)

    def laid(self, x: Value) -> Laid:
        """Return how an array lies; an argument or a constant lies row by row."""
        return self.memory.get(x.name) or self.new(x)

    def new(self, x: Value, like: Laid | None = None) -> Laid:
        """Give an array memory of its own: row by row, or in another's order of axes."""
        strides = rows(*x.shape) if like is None else like.view.strides
        self.memory[x.name] = Laid(x, as_strided(BYTE, x.shape, strides), x)
        return self.memory[x.name]

    def look(self, x: Value, of: Laid, view: np.ndarray) -> None:
        """Make an array a view of another: no kernel."""
        self.memory[x.name] = Laid(x, view, of.base)

    def launch(self, kind: str, op: str, inputs: Sequence[Laid], outputs: Sequence[Value]) -> None:
        """Note a kernel."""
        written = sum(prod(x.shape) * x.dtype.size for x in outputs)
        self.kernels.append(Kernel(kind, op, bytes_seen(inputs), written, tuple(outputs)))

    def with_rows(self, op: str, x: Laid, is_fine: bool) -> Laid:
        """Return an array as it lies where that is fine, or else a copy of it that lies row by row."""
        if is_fine:
            return x
        copy = replace(x.value, name=f"{x.value.name} for {op}")
        self.launch("copy", op, [x], [copy])
        return self.new(copy)


def bytes_seen(arrays: Sequence[Laid]) -> int:
    """Return how many bytes of memory arrays see: what several of them see of one memory is no more than it has."""
    seen: Counter[Value] = Counter()
    for x in arrays:
        seen[x.base] += x.numbers * x.value.dtype.size
    return sum(min(count, prod(base.shape) * base.dtype.size) for base, count in seen.items())


# -- ops ---------------------------------------------------------------------------------------------------------


def view(change: Callable[[np.ndarray, Node], np.ndarray]) -> Callable[[Device, Node, list[Laid]], None]:
    """Make an op that looks at its input in another way."""

    def op(device: Device, node: Node, inputs: list[Laid]) -> None:
        device.look(node.outputs[0], inputs[0], change(inputs[0].view, node))

    return op


def sliced(x: np.ndarray, node: Node) -> np.ndarray:
    """Return every step-th number from start to stop, on each axis."""
    starts, stops, steps = node.arguments
    return x[tuple(along(*axis) for axis in zip(starts, stops, steps, strict=True))]


def along(start: int, stop: int, step: int) -> slice:
    """Return a slice; backwards to before the first number, where Python wants None.

    >>> along(3, -5, -1), along(0, 2, 1)
    (slice(3, None, -1), slice(0, 2, 1))
    """
    return slice(start, None if step < 0 and stop < 0 else stop, step)


def split(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Look at an array in parts."""
    places, axis = node.arguments
    for x, part in zip(node.outputs, np.split(inputs[0].view, places, axis), strict=True):
        device.look(x, inputs[0], part)


def reshape(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Look at an array in another shape, or copy it where its strides don't allow that."""
    (x,), (out,) = inputs, node.outputs
    try:
        device.look(out, x, np.reshape(x.view, out.shape, copy=False))
    except ValueError:
        device.launch("copy", node.op, [x], [out])
        device.new(out)


def elementwise(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Compute each number of the results from those in its place; they lie as the inputs do if these lie alike."""
    whole = [x for x in inputs if x.view.shape == node.outputs[0].shape and 0 not in x.view.strides]
    alike = whole and all(x.is_dense and x.view.strides == whole[0].view.strides for x in whole)
    device.launch("cast" if node.op == "AsType" else "elementwise", node.op, inputs, node.outputs)
    for out in node.outputs:
        device.new(out, whole[0] if alike else None)


def norm(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Normalise rows, which are to lie one after the other."""
    x, *weights = inputs
    *_, between, inner = x.view.strides
    width = x.view.shape[-1]
    x = device.with_rows(node.op, x, x.is_dense and inner == 1 and between in (0, width))
    device.launch("norm", node.op, [x, *weights], node.outputs)
    device.new(node.outputs[0], x)


def product(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Multiply matrices, rows or columns of which are to lie side by side; a third input is added."""
    matrices = [device.with_rows(node.op, x, 1 in x.view.strides[-2:]) for x in inputs[:2]]
    device.launch("product", node.op, [*matrices, *inputs[2:]], node.outputs)
    device.new(node.outputs[0])


def attention(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Attend, in one kernel; of its result a token's heads lie side by side."""
    inputs = [device.with_rows(node.op, x, x.view.strides[-1] == 1) for x in inputs]
    device.launch("attention", node.op, inputs, node.outputs)
    (out,) = node.outputs
    batch, heads, length, width = out.shape
    by_token = np.swapaxes(as_strided(BYTE, (batch, length, heads, width), rows(batch, length, heads, width)), 1, 2)
    device.memory[out.name] = Laid(out, by_token, out)


def rows(*shape: int) -> tuple[int, ...]:
    """Return the strides of an array that lies row by row.

    >>> rows(2, 3, 4)
    (12, 4, 1)
    """
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def concatenate(device: Device, node: Node, inputs: list[Laid]) -> None:
    """Copy each input to its place."""
    (out,) = node.outputs
    for x in inputs:
        device.launch("join", node.op, [x], [replace(x.value, name=out.name)])
    device.new(out)


def in_shape(x: np.ndarray, node: Node) -> np.ndarray:
    """Return an array with axes of length 1 put in or left out."""
    return np.reshape(x, node.outputs[0].shape, copy=False)


OPS: dict[str, Callable[[Device, Node, list[Laid]], None]] = {
    "Broadcast": view(lambda x, node: np.broadcast_to(x, node.outputs[0].shape)),
    "Transpose": view(lambda x, node: x.transpose(node.arguments[0])),
    "ExpandDims": view(in_shape),
    "Squeeze": view(in_shape),
    "Slice": view(sliced),
    "Split": split,
    **dict.fromkeys(("Reshape", "Flatten", "Unflatten"), reshape),
    **dict.fromkeys(("Compiled", *ELEMENTWISE), elementwise),
    **dict.fromkeys(("LayerNorm", "RMSNorm"), norm),
    **dict.fromkeys(("Matmul", "AddMM"), product),
    "ScaledDotProductAttention": attention,
    "Concatenate": concatenate,
}
