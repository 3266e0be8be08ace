"""Listen to a model while it runs: `on_block(name, seen)` is called after each of its blocks.

`name` is the block's place in the weight tree, "double_blocks.3". `seen` is a dict of arrays under the field's names:
the streams after the block, and what else a model says in its docstring. Nothing that a listener does with the dict
changes what is computed. Where arrays are computed only when they must be, as on MLX, a listener may ask for them, and
then the weights of one block at a time are needed.
"""

from collections.abc import Callable
from typing import Any

OnBlock = Callable[[str, dict[str, Any]], None]


def ignore(name: str, seen: dict[str, Any]) -> None:
    """Listen to nothing: the default `on_block`."""
