"""Make a FLUX.1 checkpoint of the true names, shapes and dtypes, with random weights.

    python -m tools.synthetic_checkpoint OUT [--variant schnell] [--format bfl|diffusers|comfy] [--dtype bf16]
        [--depth 19 38] [--shard 5000000000] [--seed 0]

BFL's and ComfyUI's formats give one file, diffusers' a folder with shards and their index. Weights are made one at a
time, so the full model of 12 billion needs no more memory than its largest matrix. At full size expect 24 GB in bf16.

The values are sane: matrices keep the variance of what goes through them, norms' scales are about 1, biases small.
"""

import argparse
import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minflux.backend.bfloat16 import to_bfloat16
from minflux.checkpoints.components import COMPONENTS, TRANSFORMER
from minflux.checkpoints.components.flux import COMFY
from minflux.checkpoints.components.shapes import Shapes
from minflux.checkpoints.formats.dtypes import DTYPES
from minflux.checkpoints.formats.json_files import write_json
from minflux.checkpoints.formats.safetensors import write_entries
from minflux.model.flux import DEV, SCHNELL, FluxConfig

VARIANTS = {
    "schnell": SCHNELL,
    "dev": DEV,
    "fill": replace(DEV, in_channels=384),
    "canny": replace(DEV, in_channels=128),
}
TAGS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "f8_e4m3": "F8_E4M3", "f8_e5m2": "F8_E5M2"}
NAMINGS = {"bfl": "bfl", "comfy": "bfl", "diffusers": "diffusers"}


def values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw a weight, float32, from its name and the seed alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    x = rng.standard_normal(shape, np.float32)
    if name.endswith("SelfAttention.q.weight"):  # T5 has no scale in its softmax: its queries are small
        x /= np.float32(8)  # √ of a head's width
    if len(shape) > 1:
        return x / np.float32(math.sqrt(math.prod(shape[1:])))
    return 1 + 0.1 * x if "norm" in name and name.endswith(("scale", "weight")) else 0.02 * x


def encoded(x: np.ndarray, code: str) -> bytes:
    """Return float32 numbers as bytes of the dtype; float8 by way of float16 (see `from_float8`)."""
    if code == "BF16":
        return to_bfloat16(x).tobytes()
    if code == "F8_E5M2":
        return nearest(x.astype(np.float16).view(np.uint16), drop=8).astype(np.uint8).tobytes()
    if code == "F8_E4M3":
        half = (np.clip(x, -448, 448) / 256).astype(np.float16).view(np.uint16)
        return ((half & 0x8000) >> 8 | nearest(half & 0x7FFF, drop=7)).astype(np.uint8).tobytes()
    return x.astype(DTYPES[code]).tobytes()


def nearest(bits: np.ndarray, drop: int) -> np.ndarray:
    """Drop the lowest bits of floats' bits, rounding to nearest, ties to even."""
    return (bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)) >> drop


def write_file(path: Path, shapes: Shapes, code: str, seed: int, prefix: str = "") -> None:
    """Write one file of random weights."""
    bar = tqdm(total=len(shapes), desc=path.name, unit="weight")

    def bytes_of(name: str) -> bytes:
        bar.update()
        bare = name.removeprefix(prefix)
        return encoded(values(bare, shapes[bare], seed), code)

    path.parent.mkdir(parents=True, exist_ok=True)
    with bar:
        write_entries(path, {prefix + name: (code, shape) for name, shape in shapes.items()}, bytes_of)


def shards(shapes: Shapes, itemsize: int, limit: int) -> list[Shapes]:
    """Deal weights in order to shards of at most `limit` bytes, a larger weight alone."""
    dealt: list[Shapes] = [{}]
    room = limit
    for name, shape in shapes.items():
        size = itemsize * math.prod(shape)
        if size > room and dealt[-1]:
            dealt.append({})
            room = limit
        dealt[-1][name] = shape
        room -= size
    return dealt


def make_component(
    folder: Path, kind: str, cfg: Any, dtype: str = "bf16", seed: int = 0, shard: int = 5 * 10**9
) -> None:
    """Write `folder`/`kind`, a component of a model folder, as Hugging Face's libraries do: shards, index, config."""
    spec, part, code = COMPONENTS[kind], folder / kind, TAGS[dtype]
    dealt = shards(spec.file_shapes(spec.folder_naming, cfg), np.dtype(DTYPES[code]).itemsize, shard)
    where = {}
    for i, shapes in enumerate(dealt, 1):
        file = part / f"{spec.stem}-{i:05d}-of-{len(dealt):05d}.safetensors"
        write_file(file, shapes, code, seed)
        where |= dict.fromkeys(shapes, file.name)
    write_json(part / f"{spec.stem}.safetensors.index.json", {"metadata": {}, "weight_map": where})
    write_json(part / "config.json", spec.write_config(cfg))


def make(
    out: Path, cfg: FluxConfig, format_: str = "bfl", dtype: str = "bf16", seed: int = 0, shard: int = 5 * 10**9
) -> None:
    """Write a transformer of these sizes to `out`: a file, or for diffusers' format a folder."""
    if format_ == "diffusers":
        make_component(out, "transformer", cfg, dtype, seed, shard)
    else:
        shapes = TRANSFORMER.file_shapes(TRANSFORMER.naming(NAMINGS[format_]), cfg)
        write_file(out, shapes, TAGS[dtype], seed, COMFY if format_ == "comfy" else "")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a .safetensors file; for diffusers' format a folder")
    parser.add_argument("--variant", choices=VARIANTS, default="schnell")
    parser.add_argument("--format", choices=NAMINGS, default="bfl")
    parser.add_argument("--dtype", choices=TAGS, default="bf16")
    parser.add_argument("--depth", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"), help="fewer blocks than 19 and 38")
    parser.add_argument("--shard", type=int, default=5 * 10**9, help="bytes a shard at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cfg = VARIANTS[args.variant]
    if args.depth:
        cfg = replace(cfg, depth=args.depth[0], depth_single_blocks=args.depth[1])
    make(args.out, cfg, args.format, args.dtype, args.seed, args.shard)


if __name__ == "__main__":
    main()
