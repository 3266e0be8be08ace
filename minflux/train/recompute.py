"""Gradient checkpointing: a block's inside is not kept for the gradients but computed again when they come to it.

Of each block only what goes in is held, which is the two streams. The rest, some 30 times as much, is there for one
block at a time; for it a step takes up to a third more time. Where nothing is compiled (on Linux CPUs without g++) it
saves nothing. Source: Chen et al. 2016 (arXiv 1604.06174).
"""

from collections.abc import Callable
from typing import Any

from minflux.arrays import Tree
from minflux.backend import Backend
from minflux.checkpoints.tree import combine, partition
from minflux.model.hooks import RunBlock


def is_lora(name: str) -> bool:
    """Return whether a weight, by its flat name, belongs to a LoRA beside a matrix."""
    return ".lora." in name


def recompute(nx: Backend, is_trained: Callable[[str], bool]) -> RunBlock:
    """Make a `run_block` that computes each block again for its gradients.

    is_trained: tells the weights that gradients are taken by, which MLX wants as arguments. The others, which may be
    packed and have none, stay out of them.
    """

    def run_block(block: Callable, p: Tree, *arguments: Any) -> Any:
        trained, frozen = partition(p, is_trained)

        def inside(trained: Tree, *arguments: Any) -> Any:
            return block(combine(trained, frozen), *arguments)

        return nx.xp.checkpoint(inside)(trained, *arguments)

    return run_block
