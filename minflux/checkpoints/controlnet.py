"""ControlNets' files: a folder as diffusers has it, or a single file under its names or XLabs'.

FLUX.1-dev-Controlnet-Union/config.json                           as InstantX and Shakker Labs have it
FLUX.1-dev-Controlnet-Union/diffusion_pytorch_model.safetensors   in one piece, or in shards
flux-canny-controlnet-v3.safetensors                              XLabs', whose shapes say all

A model has none as its part: they are opened by themselves, and loaded beside it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minflux.checkpoints import hub
from minflux.checkpoints.adapters import described, file_contents, sizes_of
from minflux.checkpoints.components import CONTROLNET
from minflux.checkpoints.detect import as_component
from minflux.checkpoints.family import CONTROLNET_BESIDE
from minflux.checkpoints.folder import CONFIG, folder_contents, read_config
from minflux.checkpoints.formats.atomic import is_there
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.formats.safetensors import Stored
from minflux.checkpoints.lora_files import split
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError

CLASS = CONTROLNET.library[1]
MARKS = tuple(mark for naming in CONTROLNET.namings for mark in naming.marks)


# -- opening -------------------------------------------------------------------------------------------------


def locate_controlnet(given: str | Path, fetch: bool = False) -> Path:
    """Return the file or folder that was named, or what OWNER/NAME[:FILE] is on the Hub, fetched or in the cache.

    Raises `ArgumentError` when there is nothing under that name.
    """
    if is_there(Path(given)):
        return Path(given)
    repository, file = on_hub(given)
    if repository is None:
        raise ArgumentError(
            f"controlnet: {str(given)!r}: no such file or folder, nor a name on the Hugging Face Hub, OWNER/NAME[:FILE]"
        )
    folder = (hub.fetch if fetch else hub.cached)(repository, files_of(given))
    return folder if file is None else folder / file


def on_hub(given: str | Path) -> tuple[str | None, str | None]:
    """Return the repository and its file that a text names on the Hub, None where there is none."""
    where, file = split(str(given))
    return (None if where in hub.NAMES else hub.repository(where)), file


def files_of(given: str | Path) -> tuple[str, ...]:
    """Return which of a repository's files are fetched: one that was named, or those of diffusers' folder."""
    _, file = on_hub(given)
    return hub.CONTROLNET_FILES if file is None else (CONFIG, file)


def open_controlnet(path: Path) -> StoredComponent:
    """Open a ControlNet's folder or file; raises `CheckpointError` for what is none, and at its first wrong weight."""
    stored = read_controlnet(path)
    stored.check()
    return stored


def read_controlnet(path: Path) -> StoredComponent:
    """Open a ControlNet with its config, read from the file beside it or else off the shapes."""
    if not path.exists():
        raise CheckpointError(f"{path}: expected a ControlNet, found no such file or folder")
    config = config_of(path)
    file, tensors = folder_contents(path, CONTROLNET.stem) if path.is_dir() else (path, file_contents(path))
    if not is_controlnet(tensors):
        raise CheckpointError(
            f"{file}: expected a ControlNet for FLUX.1 by diffusers' or XLabs' names, with {' or '.join(MARKS)}, found "
            f"neither; its first names are {', '.join(sorted(tensors)[:3])}"
        )
    stored, _ = as_component(file, tensors, CONTROLNET, CONTROLNET.own_naming)
    return replace(stored, config=sizes_of(stored) if config is None else config)


def config_of(path: Path) -> Any:
    """Read the config of a ControlNet's folder, or beside a file where it is a ControlNet's; None without one."""
    place = (path if path.is_dir() else path.parent) / CONFIG
    if place.exists() and (path.is_dir() or is_controlnet_config(place)):
        return read_config(place, CONTROLNET)
    return None


# -- saying what is there ------------------------------------------------------------------------------------


def is_controlnet(tensors: Mapping[str, Stored]) -> bool:
    """Return whether a file holds a ControlNet for FLUX.1: it has the matrix that embeds a control image."""
    return any(mark in tensors for mark in MARKS)


def is_controlnet_config(path: Path) -> bool:
    """Return whether a config is that of a ControlNet for FLUX.1."""
    return path.exists() and read_json(path).get("_class_name") == CLASS


def describe_controlnet(path: Path) -> tuple[list[str], dict[str, CheckpointError]]:
    """Describe a ControlNet's folder or file; return lines, and an error by its name."""
    lines, broken = [CONTROLNET_BESIDE], {}
    try:
        stored = read_controlnet(path)
        lines.append(f"  {described(stored)}")
        stored.check()
    except CheckpointError as error:
        broken[CONTROLNET.name] = error
    return lines, broken
