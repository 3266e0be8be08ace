"""Which ops `mx.compile` makes one kernel of, by the rules of MLX's own `compile.cpp` (`compile_fuse`).

From each op, the last one first, it walks towards the inputs, and takes in elementwise ops whose results nobody else
needs. A kernel has at most 24 inputs, and its ops lie at most 11 deep.
"""

from collections import defaultdict
from dataclasses import replace

from benchmarks.counts.graph import Graph, Node, Value

DEEPEST, MOST_INPUTS = 11, 24
ELEMENTWISE = frozenset({
    "Abs", "Add", "AsType", "Cos", "Divide", "Equal", "Erf", "Exp", "Greater",
    "GreaterEqual", "Less", "LessEqual", "Log", "LogicalNot", "Maximum", "Minimum", "Multiply", "Negative",
    "NotEqual", "Power", "Round", "Select", "Sigmoid", "Sign", "Sin", "Sqrt", "Square",
    "Subtract", "Tanh",
})  # fmt: skip


def fused(graph: Graph) -> Graph:
    """Return the graph with a node "Compiled" in place of each group of ops that becomes one kernel."""
    fuser = Fuser(graph)
    for node in reversed(graph.nodes):
        fuser.visit(node)
    return replace(graph, nodes=tuple(reversed(fuser.tape)))


class Fuser:
    """Goes through a graph from its end; `tape` are the kernels found so far, the last one first."""

    def __init__(self, graph: Graph):
        self.results = {x.name for x in graph.outputs}
        self.makers = {x.name: node for node in graph.nodes for x in node.outputs}
        self.users: dict[str, set[str]] = defaultdict(set)
        for node in graph.nodes:
            for x in node.inputs:
                self.users[x.name].update(y.name for y in node.outputs)
        self.taken: set[str] = set()
        self.tape: list[Node] = []

    def visit(self, node: Node) -> None:
        """Add the kernel that ends with a node, unless the node is in a later one."""
        last = node.outputs[0]
        if last.name in self.taken:
            return
        group = Group(self, last)
        if node.op in ELEMENTWISE:
            group.walk(last, depth=0)
        if len(group.inside) < 2:
            self.tape.append(node)
            return
        parts = group.parts(node)
        self.taken.update(x.name for part in parts for x in part.outputs)
        self.tape.append(kernel(parts, self.results))


class Group:
    """The ops that become one kernel with its last one."""

    def __init__(self, fuser: Fuser, last: Value):
        self.fuser, self.last = fuser, last
        self.inside: set[str] = set()
        self.inputs: set[str] = set()

    def walk(self, x: Value, depth: int) -> None:
        """Take in what makes an array, and go on to its inputs, or note the array as an input."""
        if x.name in self.inside:
            return
        maker = self.fuser.makers.get(x.name)
        if maker is None or not self.may_take(x, maker, depth):
            self.inputs.add(x.name)
            return
        self.inputs.discard(x.name)
        if len(self.inputs) >= MOST_INPUTS:
            return
        self.inside.add(x.name)
        for y in maker.inputs:
            self.walk(y, depth + 1)

    def may_take(self, x: Value, maker: Node, depth: int) -> bool:
        """Return whether an op may join: an elementwise one, not too deep, that nobody outside needs.

        A broadcast that others need too stays outside, where it costs nothing.
        """
        is_other_result = x.name in self.fuser.results and x.shape != self.last.shape
        if depth >= DEEPEST or is_other_result or maker.op not in ELEMENTWISE | {"Broadcast"}:
            return False
        return depth == 0 or self.fuser.users[x.name] <= self.inside

    def parts(self, last: Node) -> list[Node]:
        """List the group's ops, each after those that it needs."""
        found: dict[str, Node] = {}

        def add(node: Node) -> None:
            for x in node.inputs:
                if x.name in self.inside and x.name not in found:
                    add(self.fuser.makers[x.name])
            found[node.outputs[0].name] = node

        add(last)
        return list(found.values())


def kernel(parts: list[Node], results: set[str]) -> Node:
    """Return one node for several: its inputs are those from outside, its outputs the last one and results."""
    made = {x.name for part in parts for x in part.outputs}
    inputs = {x.name: x for part in parts for x in part.inputs if x.name not in made}
    inner = [x for part in parts[:-1] for x in part.outputs if x.name in results]
    return Node("Compiled", (), tuple(inputs.values()), (*inner, *parts[-1].outputs), tuple(parts))
