"""A weight tree whose arrays stay in their file until they are used, and are forgotten after it.

Each weight is read at one of three times: when the tree is made, to be kept with it ("kept"); before the steps of each
image, to be held until they are done ("steps"); or at each use ("use"). The model asks for its weights one at a time,
`linear(x, **p["proj"])`, so a tree that reads each of them when asked needs no more memory than the largest matrix,
however large the model. (On MLX, which computes nothing until it must, no more than the largest block: see `velocity`.)
Nothing in the model knows of it. What is paid is time: every weight is read, and widened to float32, at every step.

What a GGUF file has in blocks is never kept wide: at each of the three times its blocks come into memory as they are,
and each use widens them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from minflux.arrays import Array, Tree
from minflux.backend import Backend
from minflux.checkpoints.formats.safetensors import Stored, prefetch
from minflux.checkpoints.lora import Change, add_loras, lora_branches, widened
from minflux.checkpoints.quantise import BIASES, SCALES, stem_of
from minflux.checkpoints.read import read_weight
from minflux.checkpoints.stored import StoredComponent
from minflux.checkpoints.tree import tree

When = Literal["kept", "steps", "use"]
Progress = Callable[[int, int], None]  # called with how many weights are read, and of how many


def no_progress(done: int, total: int) -> None:
    """Report to nobody how far reading has come."""


def stream(
    stored: StoredComponent,
    nx: Backend,
    dtype: str | None = None,
    changes: Sequence[Change] = (),
    when: Callable[[str], When] = lambda name: "use",
) -> Tree:
    """Make a component's tree, `changes` of LoRAs added, in which each weight is read at the time that `when` says.

    Every weight is the one that `read_tree` gives, to the bit. For errors see `read_weight`; they come at first use.
    """
    own: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        own[change.module.stem].append(change)
    gone = {f"{stem}.{leaf}" for stem in widened(changes) for leaf in (SCALES, BIASES)}
    names = [name for name in stored.sources if name not in gone]
    leaves = {name: Leaf(stored, name, nx, dtype, own[stem_of(name)], when(name)) for name in names}
    flat = {name: leaf.load() if leaf.when == "kept" else leaf for name, leaf in leaves.items()}
    scales = {name: leaves[name].read() for name in leaves if changes and name.endswith(f".{SCALES}")}
    return as_streamed(tree(flat | lora_branches(scales, changes) | stored.joins))


def for_steps(p: Tree, progress: Progress = no_progress) -> Tree:
    """Load the weights marked "steps" and return a tree that holds them; they are freed with that tree.

    A tree without such weights is returned unchanged. `progress` is told of each weight that was read.
    """
    total = sum(leaf.when == "steps" for leaf in unread(p))
    counter = iter(range(1, total + 1))

    def read(node: Any) -> Any:
        if isinstance(node, Branch):
            return Branch({key: read(child) for key, child in node.nodes.items()})
        if isinstance(node, Blocks):
            return Blocks([read(block) for block in node.blocks])
        if not isinstance(node, Leaf) or node.when != "steps":
            return node
        loaded = node.load()
        node.nx.eval(loaded)
        progress(next(counter), total)
        return loaded

    return read(p) if total else p


def loaded(p: Any) -> Tree:
    """Read all that a tree has left in its files, and return a plain one."""
    if isinstance(p, Branch):
        return {key: loaded(p[key]) for key in p}
    return [loaded(block) for block in p.blocks] if isinstance(p, Blocks) else p


@dataclass
class Leaf:
    """One weight: in which component it is stored, how it is read, and what LoRAs change of its module."""

    stored: StoredComponent
    name: str
    nx: Backend
    dtype: str | None
    changes: Sequence[Change]
    when: When

    @property
    def tensors(self) -> dict[str, Stored]:
        """Return what it is made of, by the file's names: of a quantised matrix that a LoRA widens, its scales too."""
        found, stem = self.stored.sources, stem_of(self.name)
        widens = self.name == f"{stem}.weight" and stem in widened(self.changes)
        names = [self.name, f"{stem}.{SCALES}", f"{stem}.{BIASES}"] if widens else [self.name]
        return {source: self.stored.tensors[source] for name in names for source in found.get(name, ())}

    def read(self) -> Array:
        """Read it, from memory what is held there, else from its file."""
        flat = {name: read_weight(self.stored, name, self.nx, self.dtype) for name in self.tensors}
        return add_loras(self.stored.naming.load(flat, self.stored.config), self.changes)[self.name]

    def load(self) -> "Array | Leaf":
        """Bring it into memory: as an array, or, if it is in blocks, as a leaf that holds them and widens them."""
        if not any(tensor.in_blocks for tensor in self.tensors.values()):
            return self.read()
        held = {name: tensor.hold() for name, tensor in self.tensors.items()}
        return replace(self, stored=replace(self.stored, tensors=held), when="kept")

    def prefetch(self) -> None:
        """Have the system bring it from disk meanwhile."""
        for tensor in self.tensors.values():
            if tensor.held is None:
                prefetch(tensor)


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
        prefetch_all(self.nodes.values())


class Blocks(Sequence):
    """A level of numbered blocks: while one is at work, the next comes from disk; by its number, none is prefetched."""

    def __init__(self, blocks: list[Any]):
        self.blocks = blocks

    def __getitem__(self, index: Any) -> Any:
        return self.blocks[index]

    def __iter__(self) -> Iterator[Any]:
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            prefetch_all([following])
            yield block

    def __len__(self) -> int:
        return len(self.blocks)

    def prefetch(self) -> None:
        """Have the system bring all of it from disk meanwhile."""
        prefetch_all(self.blocks)


def prefetch_all(nodes: Iterable[Any]) -> None:
    """Have the system bring what is still in its file from disk meanwhile."""
    for node in nodes:
        if isinstance(node, Leaf | Branch | Blocks):
            node.prefetch()


def unread(node: Any) -> Iterator[Leaf]:
    """Yield every weight of a tree that is still in its file, or in blocks."""
    if isinstance(node, Leaf):
        yield node
    elif isinstance(node, Branch | Blocks):
        children = node.nodes.values() if isinstance(node, Branch) else node.blocks
        for child in children:
            yield from unread(child)


def as_streamed(node: Tree) -> Any:
    """Turn a plain tree's dicts into branches and its lists into blocks."""
    if isinstance(node, dict):
        return Branch({key: as_streamed(value) for key, value in node.items()})
    return Blocks([as_streamed(value) for value in node]) if isinstance(node, list) else node
