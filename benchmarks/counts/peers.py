"""mflux's and mlx-examples' blocks on the same inputs, where they are installed.

mflux is on the package index. mlx-examples is not: the folder of a clone of it is asked for.
"""

import importlib
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from benchmarks.counts.blocks import CONFIG, DTYPE, IMAGE, TEXT, Block, joined, streams, traced, zeros
from benchmarks.counts.graph import Tracer

MFLUX = "mflux.models.flux.model.flux_transformer"
MLX_EXAMPLES = Path("flux", "flux", "layers.py")


def peers(tracer: Tracer, clone: Path | None = None) -> Iterator[Block]:
    """Trace the blocks of whoever is here; `clone` is a folder with mlx-examples."""
    if find_spec("mflux"):
        yield from mflux(tracer)
    if clone is not None:
        yield from mlx_examples(tracer, clone / MLX_EXAMPLES)


def mflux(tracer: Tracer) -> Iterator[Block]:
    """Trace mflux's blocks, with the rotations that it makes itself."""
    joint = module(tracer, f"{MFLUX}.joint_transformer_block").JointTransformerBlock(0)
    single = module(tracer, f"{MFLUX}.single_transformer_block").SingleTransformerBlock(0)
    pe = module(tracer, f"{MFLUX}.embed_nd").EmbedND()(ids())
    vec, (img, txt) = zeros(1, CONFIG.hidden_size), streams()
    yield Block("mflux", "double", of_module(tracer, joint, img, txt, vec, like(pe)))
    yield Block("mflux", "single", of_module(tracer, single, joined(), vec, like(pe)))


def mlx_examples(tracer: Tracer, path: Path) -> Iterator[Block]:
    """Trace mlx-examples' blocks, with the rotations that it makes itself, and rounds to the blocks' dtype."""
    layers = run_file(path)
    width, heads = CONFIG.hidden_size, CONFIG.num_heads
    double = layers.DoubleStreamBlock(width, heads, CONFIG.mlp_ratio, qkv_bias=True)
    single = layers.SingleStreamBlock(width, heads, CONFIG.mlp_ratio)
    pe = layers.EmbedND(width // heads, CONFIG.theta, list(CONFIG.axes_dim))(ids()).astype(DTYPE)
    vec, (img, txt) = zeros(1, width), streams()
    yield Block("mlx-examples", "double", of_module(tracer, double, img, txt, vec, like(pe)))
    yield Block("mlx-examples", "single", of_module(tracer, single, joined(), vec, like(pe)))


def module(tracer: Tracer, name: str) -> ModuleType:
    """Import a module whose functions may be compiled, or name a fused kernel, when it is imported."""
    with tracer.replacing():
        return importlib.import_module(name)


def run_file(path: Path) -> ModuleType:
    """Return the module that a file is, without the package around it."""
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path}: expected mlx-examples' layers")
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def ids() -> mx.array:
    """Return the tokens' positions (1, T + I, 3)."""
    return zeros(1, TEXT + IMAGE, len(CONFIG.axes_dim), dtype=mx.int32)


def like(x: mx.array) -> mx.array:
    """Return an array of the same shape and dtype, as an argument and no longer a result."""
    return zeros(*x.shape, dtype=x.dtype)


def of_module(tracer: Tracer, block: nn.Module, *arguments: Any) -> Any:
    """Return the graph of a module, whose weights are arguments too."""
    weights = tree_map(lambda x: zeros(*x.shape), block.parameters())

    def run(weights: Any, *arguments: Any) -> Any:
        block.update(weights)
        return block(*arguments)

    return traced(tracer, run, weights, *arguments)
