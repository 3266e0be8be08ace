"""Loose files: a component each, in place of a model's own ones, as ComfyUI and CivitAI lay them out.

    flux1-schnell.safetensors   clip_l.safetensors   t5xxl_fp16.safetensors   ae.safetensors

The transformer's file is a model by itself that lacks the others, so that each further file takes the place of a
component that is there, or is not.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minflux.checkpoints.components import COMPONENTS, TRANSFORMER
from minflux.checkpoints.folder import CONFIG, read_config
from minflux.checkpoints.formats.atomic import is_there
from minflux.checkpoints.open import INDEX, Checkpoint, open_component_folder, open_file, open_model
from minflux.errors import ArgumentError, CheckpointError, quoted

Files = dict[str, Path]

TOKENIZER = "tokenizer"  # of the named files the one that is a folder, with both tokenizers' folders in it
TOKENIZERS = ("tokenizer", "tokenizer_2")
SHIPPED = "tiny"


def option(name: str) -> str:
    """Return what a component's file is called on the command line."""
    return f"--{name.replace('_', '-')}"


# -- what is named -------------------------------------------------------------------------------------------


def named_files(given: Mapping[str, str | Path | None]) -> Files:
    """Return the files that were named, by component; raises `ArgumentError` for one that is not there."""
    files = {name: Path(path) for name, path in given.items() if path is not None}
    for name, path in files.items():
        if not is_there(path):
            raise ArgumentError(f"{option(name)}: {quoted(str(path))}: no such file or folder")
    return files


def model_of(model: str | Path | None, files: Files) -> tuple[str, Files]:
    """Return the model, and the files that take the place of its parts.

    Without a name the transformer's file is the model, and without that it is the one that ships.
    """
    if model is not None or TRANSFORMER.name not in files:
        return str(SHIPPED if model is None else model), files
    rest = {name: path for name, path in files.items() if name != TRANSFORMER.name}
    return str(files[TRANSFORMER.name]), rest


# -- opening -------------------------------------------------------------------------------------------------


def open_with_files(model: str | Path, files: Files, fetch: bool = False) -> Checkpoint:
    """Open a model with files in place of some of its parts; for `fetch` and what is raised see `open_model`.

    files: for a component's name a file, an index of shards or the component's folder; for "tokenizer" a folder that
    holds `tokenizer` and `tokenizer_2`. Of what they replace no weight is fetched.
    """
    parts = {name: path for name, path in files.items() if name != TOKENIZER}
    base = open_model(model, fetch, without=tuple(parts))
    return with_tokenizers(with_parts(base, parts), files.get(TOKENIZER))


def open_files_alone(files: Files) -> Checkpoint:
    """Open files that are named for some components, and nothing else."""
    parts = {name: path for name, path in files.items() if name != TOKENIZER}
    if not parts:
        raise ArgumentError(f"name a model, or files: {', '.join(map(option, COMPONENTS))}")
    path = next(iter(parts.values()))
    return with_tokenizers(with_parts(Checkpoint(path, path.parent, []), parts), files.get(TOKENIZER))


def with_parts(base: Checkpoint, parts: Files) -> Checkpoint:
    """Return a checkpoint with files in place of some of its components."""
    opened = {name: open_part(path, name, config_of(base, name)) for name, path in parts.items()}
    taken = [single.components[name] for name, single in opened.items()]
    unexpected = {path: names for single in opened.values() for path, names in single.unexpected_keys.items()}
    return replace(
        base,
        found=taken + [stored for stored in base.found if stored.name not in parts],
        broken={name: error for name, error in base.broken.items() if name not in parts},
        unexpected_keys=base.unexpected_keys | unexpected,
        loose=base.loose | parts,
    )


def open_part(path: Path, name: str, replaced: Any) -> Checkpoint:
    """Open what was named for a component; raises `CheckpointError` if it holds others, or none.

    replaced: the config of the component whose place it takes.
    """
    is_folder = path.is_dir() and (path / CONFIG).exists() and not (path / INDEX).exists()
    if path.is_dir() and not is_folder:
        raise ArgumentError(f"{option(name)}: {str(path)!r} is no component's folder: it has no {CONFIG}; name a file")
    opened = open_component_folder(path) if is_folder else open_file(path, {name: replaced})
    if name not in opened.components:
        title, held = COMPONENTS[name].title, [stored.component for stored in opened.found]
        options = " or ".join(option(component.name) for component in held)
        titles = ", ".join(component.title for component in held) or "none of a model's parts"
        raise CheckpointError(f"{path}: expected {title}, found {titles}" + (f": name it by {options}" if held else ""))
    return opened


def config_of(base: Checkpoint, name: str) -> Any:
    """Return the config of a model's component, read from its folder where its weights are not there."""
    path = base.folder / name / CONFIG
    if name in base.components:
        return base.components[name].config
    return read_config(path, COMPONENTS[name]) if path.exists() else None


def with_tokenizers(checkpoint: Checkpoint, folder: Path | None) -> Checkpoint:
    """Return a checkpoint with the tokenizers of a folder; raises `ArgumentError` where one of them is not there."""
    if folder is None:
        return checkpoint
    found = {name: folder / name for name in TOKENIZERS}
    lacks = [name for name, path in found.items() if not path.is_dir()]
    if lacks:
        raise ArgumentError(
            f"--tokenizer: {str(folder)!r} has no folder {' and no '.join(lacks)}: name one that holds both, as any "
            "FLUX.1 model's does"
        )
    return replace(checkpoint, tokenizers=checkpoint.tokenizers | found)
