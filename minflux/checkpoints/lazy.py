"""A weight tree whose arrays stay in their file until they are used, and are forgotten after it.

Each weight is read at one of three times: when the tree is made, to be kept with it ("kept"); before the steps of each
picture, to be held until they are done ("steps"); or at each use ("use"). The model asks for its weights one at a time,
`linear(x, **p["proj"])`, so a tree that reads each of them when asked needs no more memory than the largest matrix,
however large the model. (On MLX, which computes nothing until it must, no more than the largest block: see `velocity`.)
Nothing in the model knows of it. What is paid is time: every weight is read, and widened to float32, at every step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.formats.safetensors import prefetch
from minflux.checkpoints.lora import Change, added, beside
from minflux.checkpoints.parts import Part, load_weight, to_ours, whole_name
from minflux.checkpoints.quantise import SCALES
from minflux.checkpoints.tree import tree

When = Literal["kept", "steps", "use"]


def stream(
    part: Part,
    nx: Backend,
    dtype: str | None = None,
    changes: Sequence[Change] = (),
    when: Callable[[str], When] = lambda name: "use",
) -> Tree:
    """Make a part's tree, `changes` of LoRAs added, in which each weight is read at the time that `when` says.

    Every weight is the one that `load_part` gives, to the bit. For errors see `load_weight`; they come at first use.
    """
    sources: dict[str, list[str]] = defaultdict(list)
    for name in part.found:
        sources[whole_name(part.kind, part.naming, name)].append(name)
    leaves = {name: Leaf(part, name, tuple(found), nx, dtype, changes, when(name)) for name, found in sources.items()}
    flat = {name: leaf.read() if leaf.when == "kept" else leaf for name, leaf in leaves.items()}
    scales = {name: leaves[name].read() for name in leaves if changes and name.endswith(f".{SCALES}")}
    return _streamed(tree(flat | beside(scales, changes)))


def for_steps(p: Tree) -> Tree:
    """Read what every step of a picture needs, to be held as long as the result is; a plain tree stays as it is.

    Reading that takes more than a second is shown by a progress bar.
    """
    from tqdm import tqdm

    total = sum(leaf.when == "steps" for leaf in _leaves(p))
    with tqdm(total=total, desc="reading the transformer", unit="weight", delay=1, leave=False) as bar:

        def read(node: Any) -> Any:
            if isinstance(node, Branch):
                return Branch({key: read(child) for key, child in node.nodes.items()})
            if isinstance(node, Blocks):
                return Blocks([read(block) for block in node])
            if not isinstance(node, Leaf) or node.when != "steps":
                return node
            array = node.read()
            node.nx.eval(array)
            bar.update()
            return array

        return read(p) if total else p


@dataclass
class Leaf:
    """One weight: where it is stored, in one piece or several, and how it is read."""

    part: Part
    name: str
    sources: tuple[str, ...]
    nx: Backend
    dtype: str | None
    changes: Sequence[Change]
    when: When

    def read(self) -> Array:
        """Read it from its file."""
        flat = {name: load_weight(self.part, name, self.nx, self.dtype) for name in self.sources}
        return added(to_ours(self.part, flat), self.changes)[self.name]

    def prefetch(self) -> None:
        """Have the system bring it from disk meanwhile."""
        for name in self.sources:
            prefetch(self.part.found[name])


class Branch(Mapping):
    """A level of the tree with names: asked for a weight, it reads it."""

    def __init__(self, nodes: dict[str, Any]):
        self.nodes = nodes

    def __getitem__(self, key: str) -> Any:
        node = self.nodes[key]
        return node.read() if isinstance(node, Leaf) else node

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def prefetch(self) -> None:
        """Have the system bring all of it from disk meanwhile."""
        _prefetch(self.nodes.values())


class Blocks(Sequence):
    """A level of numbered blocks: while one is at work, the next comes from disk."""

    def __init__(self, blocks: list[Any]):
        self.blocks = blocks

    def __getitem__(self, index: Any) -> Any:
        return self.blocks[index]

    def __iter__(self) -> Iterator[Any]:
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            _prefetch([following])
            yield block

    def __len__(self) -> int:
        return len(self.blocks)

    def prefetch(self) -> None:
        """Have the system bring all of it from disk meanwhile."""
        _prefetch(self.blocks)


def _prefetch(nodes: Iterable[Any]) -> None:
    for node in nodes:
        if isinstance(node, Leaf | Branch | Blocks):
            node.prefetch()


def _leaves(node: Any) -> Iterator[Leaf]:
    """Yield every weight of a tree that is still in its file."""
    if isinstance(node, Leaf):
        yield node
    elif isinstance(node, Branch | Blocks):
        for child in node.nodes.values() if isinstance(node, Branch) else node.blocks:
            yield from _leaves(child)


def _streamed(node: Tree) -> Any:
    if isinstance(node, dict):
        return Branch({key: _streamed(value) for key, value in node.items()})
    return Blocks([_streamed(value) for value in node]) if isinstance(node, list) else node
