"""Blocks as compiled functions: on a GPU what is elementwise in them is fused, and most of their bytes need not move.

A block has some forty elementwise ops, each a kernel that reads and writes a whole activation. Compiled, those between
two products are one kernel (`python -m benchmarks.counts` counts them). On a CPU blocks run as they are: there the ops
are NumPy's, which fuses by itself.
"""

import functools
from collections.abc import Callable
from typing import Any

from minflux.arrays import Tree
from minflux.backend import Backend
from minflux.checkpoints.lazy import loaded
from minflux.model.hooks import RunBlock, run

MODULATION = ("img_mod", "txt_mod", "modulation")  # of a block's weights, what has done its work before the steps


def block_runner(nx: Backend) -> RunBlock:
    """Return the `run_block` for a backend: compiled blocks where there is a GPU, or else blocks as they are."""
    return compiled_runner(nx) if nx.on_gpu else run


@functools.cache
def compiled_runner(nx: Backend) -> RunBlock:
    """Return the `run_block` that compiles each kind of block once.

    A compiled function takes a block's weights as arguments, so it serves all blocks of a kind. It can't show what is
    inside, so a block that is asked for its q, k and v runs as it is; so does one whose attention has a bias.
    """
    compiled = functools.cache(nx.compile)

    def run_compiled(block: Callable[..., Any], p: Tree, *arguments: Any) -> Any:
        *arrays, seen, bias = arguments
        if seen is not None or bias is not None:
            return block(p, *arguments)
        return compiled(block)({key: loaded(p[key]) for key in p if key not in MODULATION}, *arrays)

    return run_compiled
