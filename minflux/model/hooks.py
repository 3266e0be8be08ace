"""Listen to a model while it runs: `on_block(name, seen)` is called after each of its blocks.

`name` is the block's place in the weight tree, "double_blocks.3". `seen` is a dict of arrays under the field's names:
the streams after the block, and what else a model says in its docstring. Nothing that a listener does with the dict
changes what is computed. Where arrays are computed only when they must be, as on MLX, a listener may ask for them, and
then the weights of one block at a time are needed.

`run_block(block, *arguments)` says how each block is run, for those who train: `minflux/train/recompute.py` has one
that keeps nothing of what is computed inside it.
"""

from collections.abc import Callable
from typing import Any

OnBlock = Callable[[str, dict[str, Any]], None]


RunBlock = Callable[..., Any]


def run(block: Callable, *arguments: Any) -> Any:
    """Run a block on its arguments: the default `run_block`."""
    return block(*arguments)


def ignore(name: str, seen: dict[str, Any]) -> None:
    """Listen to nothing: the default `on_block`."""
