"""Flat names and trees: "double_blocks.3.img_attn.qkv.weight" is tree["double_blocks"][3]["img_attn"]["qkv"]["weight"].

A level whose keys are 0, 1, …, n-1 becomes a list; any other level a dict ("img_mlp" has "0" and "2": a dict).
"""

from collections.abc import Callable, Iterator

from minflux.arrays import Array, Tree


def tree(flat: dict[str, Array]) -> Tree:
    """Turn checkpoint names into nested dicts and lists.

    >>> tree({"blocks.0.w": 1, "blocks.1.w": 2, "mlp.0.w": 3, "mlp.2.w": 4})
    {'blocks': [{'w': 1}, {'w': 2}], 'mlp': {'0': {'w': 3}, '2': {'w': 4}}}
    """
    root: dict = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = root
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return _lists(root)


def _lists(node: Tree) -> Tree:
    """Make a list of every dict whose keys count from 0 without a gap."""
    if not isinstance(node, dict):
        return node
    node = {key: _lists(value) for key, value in node.items()}
    counted = [str(i) for i in range(len(node))]
    return [node[key] for key in counted] if node and set(node) == set(counted) else node


def leaves(node: Tree, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield (name, array) for every leaf, in the tree's order."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix[:-1], node


def flatten(node: Tree) -> dict[str, Array]:
    """Undo `tree`.

    >>> flatten({"blocks": [{"w": 1}, {"w": 2}]})
    {'blocks.0.w': 1, 'blocks.1.w': 2}
    """
    return dict(leaves(node))


def tree_map(function: Callable, *nodes: Tree) -> Tree:
    """Apply `function` to corresponding leaves of trees of one form, giving a tree of that form."""
    first = nodes[0]
    if isinstance(first, dict):
        return {key: tree_map(function, *(node[key] for node in nodes)) for key in first}
    if isinstance(first, list):
        return [tree_map(function, *parts) for parts in zip(*nodes, strict=True)]
    return function(*nodes)


def partition(node: Tree, trainable: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Split a tree into the leaves that are trainable and those that are frozen, two trees that `combine` joins again.

    `trainable` is asked by a leaf's flat name. Gradients are then taken by the first tree alone, and the second may
    hold what has none, as in `value_and_grad(lambda p: loss(combine(p, frozen)))`. A dict leaves out what isn't there,
    a list has {} in its place. After Equinox's functions of these names.

    >>> chosen, frozen = partition([{"weight": 1}, {"weight": 2, "lora": {"up": 3}}], lambda name: ".lora." in name)
    >>> chosen
    [{}, {'lora': {'up': 3}}]
    >>> frozen
    [{'weight': 1}, {'weight': 2}]
    """
    return _select(node, trainable), _select(node, lambda name: not trainable(name))


def _select(node: Tree, wanted: Callable[[str], bool], prefix: str = "") -> Tree:
    """Return the tree of the leaves whose names are wanted; {} stands for what isn't there."""
    if isinstance(node, list):
        return [_select(value, wanted, f"{prefix}{i}.") for i, value in enumerate(node)]
    if isinstance(node, dict):
        parts = {key: _select(value, wanted, f"{prefix}{key}.") for key, value in node.items()}
        return {key: part for key, part in parts.items() if not _is_empty(part)}
    return node if wanted(prefix[:-1]) else {}


def _is_empty(node: Tree) -> bool:
    return isinstance(node, dict) and not node


def combine(*nodes: Tree) -> Tree:
    """Join the trees that `partition` has split one tree into; raises `ValueError` where two hold the same leaf.

    >>> combine([{}, {"lora": {"up": 3}}], [{"weight": 1}, {"weight": 2}])
    [{'weight': 1}, {'lora': {'up': 3}, 'weight': 2}]
    """
    nodes = tuple(node for node in nodes if not _is_empty(node))
    if all(isinstance(node, dict) for node in nodes):
        keys = dict.fromkeys(key for node in nodes for key in node)
        return {key: combine(*(node[key] for node in nodes if key in node)) for key in keys}
    if all(isinstance(node, list) for node in nodes):
        return [combine(*parts) for parts in zip(*nodes, strict=True)]
    if len(nodes) > 1:
        raise ValueError("combine: two trees hold a leaf at the same place")
    return nodes[0]
