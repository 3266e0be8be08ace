"""The model that a command is about, opened by name, by files for its parts, or as ComfyUI's folder has it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from minflux.checkpoints.comfy import choose_from_comfy
from minflux.checkpoints.loose import named_files, open_files_alone, open_with_files
from minflux.checkpoints.open import Checkpoint

NONE: Mapping[str, str | Path | None] = {}


def open_named(
    model: str | Path | None,
    files: Mapping[str, str | Path | None],
    comfy: str | Path | None,
    wanted: Sequence[str] = (),
) -> Checkpoint:
    """Open a model with files in place of its parts, or, without a model, the files alone.

    comfy: ComfyUI's folder `models`, in which files may be named; without a model the components `wanted` are taken
    from it too.
    """
    named = {name: path for name, path in files.items() if path is not None}
    completing = wanted if model is None else ()
    chosen = named_files(named) if comfy is None else choose_from_comfy(comfy, named, completing)
    return open_with_files(model, chosen) if model is not None else open_files_alone(chosen)
