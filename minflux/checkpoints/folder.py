"""A component's folder, as diffusers and transformers lay it out: a config, and its weights in one of many ways.

transformer/config.json
transformer/diffusion_pytorch_model.safetensors                       in one piece, or
transformer/diffusion_pytorch_model-00001-of-00003.safetensors, …     in shards, with an index or without, or
transformer/diffusion_pytorch_model.fp16.safetensors                  of a variant, or
transformer/minflux.safetensors                                       under our names, quantised or not, or
transformer/model.safetensors.index.json, 0.safetensors, …            under mflux's names, quantised or not
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from minflux.arrays import Tree
from minflux.checkpoints.components import Component, component_of
from minflux.checkpoints.foreign import join_quantised, refuse_quantised_config
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.formats.safetensors import PICKLE, Stored, contents, joined_contents, write_safetensors
from minflux.checkpoints.tree import flatten
from minflux.errors import CheckpointError

CONFIG = "config.json"
OWN_FILE = "minflux.safetensors"  # a component's weights under our names, quantised or not
MFLUX_INDEX = "model.safetensors.index.json"  # of mflux's shards, 0.safetensors and on, whatever the component
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
DEPTHS = ("depth", "depth_single_blocks", "num_layers", "num_hidden_layers", "num_res_blocks", "layers_per_block")
DEEPEST = 1000  # blocks; a damaged config could ask for a billion


# -- the config ----------------------------------------------------------------------------------------------


def read_config(path: Path, component: Component) -> Any:
    """Read a component's config.json; its errors name the file."""
    try:
        content = read_json(path)
        refuse_quantised_config(path, content)
        config = component.read_config(content)
        check_depth(config)
        return config
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a config of {component.name}, can't read it: {error}") from error


def check_depth(config: Any) -> None:
    """Raise `CheckpointError` for a config that asks for more blocks than any model has."""
    for field in fields(config):
        if field.name in DEPTHS and getattr(config, field.name) > DEEPEST:
            raise CheckpointError(f"expected at most {DEEPEST} for {field.name}, found {getattr(config, field.name)}")


# -- the weights ---------------------------------------------------------------------------------------------


def folder_contents(folder: Path, stem: str) -> tuple[Path, dict[str, Stored]]:
    """Return the path of a folder's weights, for messages, and what they hold.

    Raises `CheckpointError` when there are none, when a shard is missing, and when there are several variants.
    """
    whole, index, own = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json", folder / OWN_FILE
    for path in (whole, index, own, folder / MFLUX_INDEX):
        if path.exists():
            return path, join_quantised(path, contents(path))
    variants = find_variants(folder, stem)
    if not variants:
        check_no_pickles(folder, whole)
        raise CheckpointError(f"{whole}: no such file or directory")
    if len(variants) > 1:
        listed = ", ".join(paths[0].name for paths in variants.values())
        raise CheckpointError(
            f"{folder}: expected one variant, found {listed}: keep one, or name the file or the index of one by the "
            "part's option, as --transformer FILE"
        )
    (paths,) = variants.values()
    check_complete(paths)
    path = folder if len(paths) > 1 else paths[0]
    return path, join_quantised(path, joined_contents(paths))


def find_variants(folder: Path, stem: str) -> dict[str, list[Path]]:
    """List a folder's weights by variant, "" for none: of each variant one file, or its shards in order."""
    pattern = re.compile(rf"{re.escape(stem)}(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
    variants: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        match = pattern.fullmatch(path.name)
        if match:
            variants.setdefault(match[1] or "", []).append(path)
    return variants


def shards_of(path: Path) -> int | None:
    """Return how many shards there are by the name of one; None for a file of another name."""
    counted = re.search(r"-\d{1,9}-of-(\d{1,9})\.safetensors$", path.name)
    return int(counted[1]) if counted else None


def check_complete(paths: list[Path]) -> None:
    """Raise `CheckpointError` unless all shards are there: as many as their names say."""
    count = shards_of(paths[0]) or 1
    if len(paths) != count:
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"{paths[0].parent}: expected {count} shards, and found no index; there are {names}: fetch the others"
        )


def check_no_pickles(folder: Path, expected: Path) -> None:
    """Raise `CheckpointError` for a folder whose weights are pickles alone."""
    pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
    if pickles and not list(folder.glob("*.safetensors*")):
        raise CheckpointError(f"{folder}: expected {expected.name}, found {pickles[0]} alone, a pickle, {PICKLE}")


# -- writing -------------------------------------------------------------------------------------------------


def save_component(folder: str | Path, name: str, config: Any, p: Tree, dtype: str | None = None) -> None:
    """Write a component's config and weights so that diffusers or transformers, and `load_component`, open it.

    Floats are stored as `dtype` ("float32", "float16" or "bfloat16"), or as they are.
    """
    component, target = component_of(name, config), Path(folder) / name
    target.mkdir(parents=True, exist_ok=True)
    flat = component.folder_naming.store(flatten(p), config)
    write_safetensors(target / f"{component.stem}.safetensors", flat, dtype=dtype)
    write_json(target / CONFIG, component.write_config(config))
