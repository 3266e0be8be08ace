"""What a model has beside its converted weights: its index, the scheduler's settings, tokenizers.

They are known before a weight is written, since tokenizers may have to be fetched.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from minflux.checkpoints.components import CLIP, COMPONENTS, T5, TRANSFORMER
from minflux.checkpoints.components.flux import takes
from minflux.checkpoints.fit import check_fit
from minflux.checkpoints.formats.atomic import saved
from minflux.checkpoints.open import INDEX, Checkpoint
from minflux.checkpoints.stored import StoredComponent
from minflux.inference.beside import tokenizer_folders
from minflux.inference.load import DEFAULTS, SCHEDULER, find_schedule, index_content, schedule_content

BESIDE = ("scheduler", "tokenizer", "tokenizer_2", DEFAULTS)  # no weights


def files_beside(checkpoint: Checkpoint, chosen: Sequence[StoredComponent], report: Callable) -> dict[str, bytes]:
    """Return what belongs beside the components in a model's folder, by path there, the index last.

    Of a whole model without an index it is FLUX.1's own, as for `load`; raises `CheckpointError` as that does.
    """
    folder, components = checkpoint.folder, {stored.name: stored for stored in chosen}
    is_whole = components.keys() == COMPONENTS.keys()
    if not is_whole and checkpoint.path != folder:
        return {}
    found = {path: content for name in BESIDE for path, content in read_all(folder / name, name).items()}
    if is_whole:
        check_fit(components)
        found = usual_files(checkpoint, components, report) | found
        for name, source in find_tokenizers(checkpoint, components, report).items():
            found |= read_all(source, name)
        taken = takes(components[TRANSFORMER.name].config) or ""
        found |= {INDEX: as_json(index_content(taken))}
    return found | read_all(folder / INDEX, INDEX)


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


def write_beside(target: Path, files: dict[str, bytes], report: Callable[[str], None]) -> None:
    """Write files into a model's folder, each whole or not at all, and report what the folder still lacks."""
    for name, content in files.items():
        with saved(target / name) as file:
            file.write(content)
    needed = [*COMPONENTS, "scheduler", "tokenizer", "tokenizer_2", INDEX]
    lacks = [name for name in needed if not (target / name).exists()]
    if lacks:
        report(f"{target}: lacks {', '.join(lacks)}: copy them from a model's folder, to generate with it")
