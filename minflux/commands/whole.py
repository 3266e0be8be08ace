"""What a model has beside its converted weights: its index, the scheduler's settings, tokenizers.

They are known before a weight is written, since tokenizers may have to be fetched.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from minflux.checkpoints.components import CLIP, COMPONENTS, SD1, SD3, T5, TRANSFORMER, Family
from minflux.checkpoints.components.flux import takes
from minflux.checkpoints.fit import check_fit
from minflux.checkpoints.formats.atomic import saved
from minflux.checkpoints.open import INDEX, Checkpoint
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import CheckpointError
from minflux.inference.beside import tokenizer_folders
from minflux.inference.load import DEFAULTS, SCHEDULER, find_schedule, index_content, schedule_content


def check_family(checkpoint: Checkpoint, format_: str, lora: Sequence[str]) -> None:
    """Raise `CheckpointError` for a model that is not written so: FLUX.1 alone in one file, or with LoRAs."""
    path, family = checkpoint.path, checkpoint.family
    if family is COMPONENTS:
        return
    if family is SD1:
        raise CheckpointError(f"{path}: minflux converts FLUX.1, FLUX.2 and SD3 alone, and this is another model")
    title = "an SD3" if family is SD3 else "a FLUX.2"
    if format_ not in ("diffusers", "minflux"):
        raise CheckpointError(f"{path}: is {title}, of which no {format_} file is written: take diffusers or minflux")
    if lora:
        raise CheckpointError(f"{path}: is {title}, to which minflux adds no LoRA")


def files_beside(checkpoint: Checkpoint, chosen: Sequence[StoredComponent], report: Callable) -> dict[str, bytes]:
    """Return what belongs beside the components in a model's folder, by path there, the index last.

    Of a whole FLUX.1 without an index it is its own, as for `load`; raises `CheckpointError` as that does.
    """
    folder, components = checkpoint.folder, {stored.name: stored for stored in chosen}
    is_whole = components.keys() == checkpoint.family.keys()
    if not is_whole and checkpoint.path != folder:
        return {}
    beside = ["scheduler", *tokenizers_of(checkpoint.family), DEFAULTS]
    found = {path: content for name in beside for path, content in read_all(folder / name, name).items()}
    if is_whole and checkpoint.family is COMPONENTS:
        check_fit(components)
        found = usual_files(checkpoint, components, report) | found
        for name, source in find_tokenizers(checkpoint, components, report).items():
            found |= read_all(source, name)
        taken = takes(components[TRANSFORMER.name].config) or ""
        found |= {INDEX: as_json(index_content(taken))}
    return found | read_all(folder / INDEX, INDEX)


def tokenizers_of(family: Family) -> list[str]:
    """List the folders of a model's tokenizers, one for each of its text encoders."""
    encoders = [name for name, component in family.items() if component.stage == "text"]
    return [name.replace("text_encoder", "tokenizer") for name in encoders]


def usual_files(checkpoint: Checkpoint, components: dict[str, StoredComponent], report: Callable) -> dict[str, bytes]:
    """Return the scheduler's settings with which `load` would sample."""
    schedule = find_schedule(checkpoint, components[TRANSFORMER.name].config, report)
    return {SCHEDULER: as_json(schedule_content(schedule))}


def find_tokenizers(
    checkpoint: Checkpoint, components: dict[str, StoredComponent], report: Callable
) -> dict[str, Path]:
    """Map the tokenizers' names to the folders from which `load` would read them."""
    return tokenizer_folders(checkpoint, components[CLIP.name].config, components[T5.name].config, report)


def read_all(source: Path, name: str) -> dict[str, bytes]:
    """Read a file, or all files of a folder, by their paths in a folder in which it is called `name`."""
    files = sorted(path for path in [source, *source.rglob("*")] if path.is_file())
    return {(Path(name) / path.relative_to(source)).as_posix(): path.read_bytes() for path in files}


def as_json(content: dict) -> bytes:
    """Return a JSON file's bytes."""
    return json.dumps(content, indent=2).encode() + b"\n"


def write_beside(target: Path, family: Family, files: dict[str, bytes], report: Callable[[str], None]) -> None:
    """Write files into a model's folder, each whole or not at all, and report what the folder still lacks."""
    for name, content in files.items():
        with saved(target / name) as file:
            file.write(content)
    needed = [*family, "scheduler", *tokenizers_of(family), INDEX]
    lacks = [name for name in needed if not (target / name).exists()]
    if lacks:
        report(f"{target}: lacks {', '.join(lacks)}: copy them from a model's folder, to generate with it")
