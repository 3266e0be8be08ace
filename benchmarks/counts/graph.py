"""A function's graph, as MLX exports it: nothing is computed, so the arrays may be as large as FLUX.1's.

MLX exports what it would run on this machine. On a CPU it has no fused kernels, and a compiled function in an exported
one is taken apart into its ops. So while a graph is traced, both are replaced: by a `mx.depends` of zeros of the
result's shape, whose first dependency is a number that says what it stands for. In the graph that node is then given
its name back, with the fused kernel's own inputs, or is replaced by the compiled function's graph.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

FUSED = {  # kernels of mx.fast that a GPU has, and their names in a graph of MLX's -> how many inputs decide the dtype
    "layer_norm": ("LayerNorm", 3),
    "rms_norm": ("RMSNorm", 2),
    "scaled_dot_product_attention": ("ScaledDotProductAttention", 3),
}


@dataclass(frozen=True)
class Value:
    """An array of a graph: its name there, its shape and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype


@dataclass(frozen=True)
class Node:
    """An op of a graph; `parts` are the ops that one kernel computes, where they were fused."""

    op: str
    arguments: tuple
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    parts: tuple["Node", ...] = ()


@dataclass(frozen=True)
class Graph:
    """A function's arguments, its results and its ops, each after those that it needs."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]


# -- tracing -----------------------------------------------------------------------------------------------------


class Tracer:
    """Traces functions; what stands for something in their graphs is listed in `meanings`, by its number."""

    def __init__(self) -> None:
        self.meanings: list[str | Callable[..., Any]] = []
        self.is_compiling = False

    def graph(self, function: Callable[..., Any], arrays: Sequence[mx.array]) -> Graph:
        """Trace function(*arrays), whose result is a tree of arrays."""
        exported: dict[str, list[dict]] = {"inputs": [], "outputs": [], "constants": [], "primitive": []}

        def listen(what: dict) -> None:
            exported.get(what["type"], []).append(what)

        with self.replacing():
            mx.export_function(listen, lambda *xs: leaves(function(*xs)), *arrays)
        constants = {name: value for what in exported["constants"] for name, value in what["constants"]}
        nodes = [self.understood(node_of(what), constants) for what in exported["primitive"]]
        inputs, outputs = (values(exported[end][0][end]) for end in ("inputs", "outputs"))
        return reachable(Graph(inputs, outputs, tuple(nodes)))

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Replace MLX's fused kernels inside the `with` block."""
        with contextlib.ExitStack() as stack:
            for name in FUSED:
                stack.enter_context(patch.object(mx.fast, name, functools.partial(self.kernel, name)))
            yield

    def kernel(self, name: str, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
        """Stand for a fused kernel, which casts its inputs to their common dtype and gives the first one's shape."""
        title, count = FUSED[name]
        arrays = [x, *(y for y in [*arguments, *options.values()] if isinstance(y, mx.array))][:count]
        dtype = functools.reduce(mx.add, [mx.zeros(1, y.dtype) for y in arrays]).dtype
        (out,) = self.stand_in(title, [y.astype(dtype) for y in arrays], [mx.zeros(x.shape, dtype)])
        return out

    def compile(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Stand for `mx.compile`; a compiled function inside another is a part of it, as with MLX."""

        @functools.wraps(function)
        def compiled(*arguments: Any) -> Any:
            if self.is_compiling:
                return function(*arguments)
            arrays = leaves(arguments)
            result = self.inside(function, *arguments)
            inner = functools.partial(with_leaves, functools.partial(self.inside, function), arguments)
            stand_ins = iter(self.stand_in(inner, arrays, leaves(result)))
            return tree_map(lambda x: next(stand_ins), result)

        return compiled

    def inside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function as a compiled one's body."""
        self.is_compiling = True
        try:
            return function(*arguments)
        finally:
            self.is_compiling = False

    def stand_in(self, meaning: str | Callable[..., Any], inputs: list, outputs: list) -> list[mx.array]:
        """Make arrays like `outputs` that depend on `inputs`, and by a number on a meaning."""
        self.meanings.append(meaning)
        number = mx.array(len(self.meanings) - 1, mx.int32)
        return mx.depends([mx.zeros(x.shape, x.dtype) for x in outputs], [number, *inputs])

    def understood(self, node: Node, constants: dict[str, mx.array]) -> Node:
        """Give a node that stands for something its meaning: a kernel's name, or a compiled function's graph."""
        if node.op != "Depends":
            return node
        number, *inputs = node.inputs[len(node.outputs) :]
        meaning = self.meanings[int(constants[number.name])]
        if isinstance(meaning, str):
            return replace(node, op=meaning, inputs=tuple(inputs))
        graph = self.graph(meaning, [mx.zeros(x.shape, x.dtype) for x in inputs])
        return replace(node, op="Function", arguments=(graph,), inputs=tuple(inputs))


def leaves(tree: Any) -> list[mx.array]:
    """List the arrays of a tree, in its order."""
    return [x for _, x in tree_flatten(tree) if isinstance(x, mx.array)]


def with_leaves(function: Callable[..., Any], arguments: Any, *arrays: mx.array) -> Any:
    """Call a function on arguments, with other arrays in the places of theirs."""
    others = iter(arrays)
    return function(*tree_map(lambda x: next(others) if isinstance(x, mx.array) else x, arguments))


def node_of(exported: dict) -> Node:
    """Make a node of what MLX tells of a primitive."""
    inputs, outputs = values(exported["inputs"]), values(exported["outputs"])
    return Node(exported["name"], tuple(exported["arguments"]), inputs, outputs)


def values(exported: Sequence[tuple]) -> tuple[Value, ...]:
    """Make values of what MLX tells of arrays."""
    return tuple(Value(name, tuple(shape), dtype) for name, shape, dtype in exported)


def reachable(graph: Graph) -> Graph:
    """Leave out what no result depends on."""
    needed = {x.name for x in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(x.name for x in node.outputs):
            needed.update(x.name for x in node.inputs)
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))
