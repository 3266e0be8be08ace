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
