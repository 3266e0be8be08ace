"""minflux's two blocks as they run on a GPU, and the inputs that all are given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from benchmarks.counts.graph import Graph, Tracer, leaves, with_leaves
from minflux.backend import serving
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.tree import tree
from minflux.inference.compiled import block_runner
from minflux.model.blocks import double_block, single_block
from minflux.model.flux import SCHNELL

DTYPE = mx.bfloat16
TEXT, IMAGE = 512, 4096  # tokens of a 1024² image and its prompt
CONFIG = replace(SCHNELL, depth=1, depth_single_blocks=1)


@dataclass(frozen=True)
class Block:
    """A block to count: whose, which of the two, and its graph on a GPU."""

    who: str
    kind: str
    graph: Graph


def zeros(*shape: int, dtype: mx.Dtype = DTYPE) -> mx.array:
    """Return an array of a shape that nothing is computed of."""
    return mx.zeros(shape, dtype)


def traced(tracer: Tracer, function: Callable[..., Any], *arguments: Any) -> Graph:
    """Return the graph of function(*arguments), whose arguments are trees of arrays."""
    return tracer.graph(partial(with_leaves, function, arguments), leaves(arguments))


def streams() -> tuple[mx.array, mx.array]:
    """Return image and text tokens (1, I, D) and (1, T, D)."""
    return zeros(1, IMAGE, CONFIG.hidden_size), zeros(1, TEXT, CONFIG.hidden_size)


def joined() -> mx.array:
    """Return the joint sequence (1, T + I, D)."""
    return zeros(1, TEXT + IMAGE, CONFIG.hidden_size)


def ours(tracer: Tracer) -> list[Block]:
    """Trace minflux's blocks: their modulations are an argument, for all steps' are computed before the first."""
    weights = tree({name: zeros(*shape) for name, shape in flux_shapes(CONFIG).items()})
    double, single = weights["double_blocks"][0], weights["single_blocks"][0]
    width = CONFIG.hidden_size
    angles = zeros(1, 1, TEXT + IMAGE, width // CONFIG.num_heads // 2, dtype=mx.float32)
    pe = angles, angles
    mod = {"img": zeros(1, 6 * width), "txt": zeros(1, 6 * width)}
    with serving("mlx-fused") as nx, patch.object(nx, "on_gpu", True):
        run = block_runner(nx)
        return [
            Block(
                "minflux", "double", traced(tracer, partial(run, double_block), double, *streams(), mod, pe, None, None)
            ),
            Block(
                "minflux",
                "single",
                traced(tracer, partial(run, single_block), single, joined(), zeros(1, 3 * width), pe, None, None),
            ),
        ]
