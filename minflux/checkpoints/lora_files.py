"""Where a LoRA lies: in a file, a folder or a repository on the Hugging Face Hub; and how strong it is to be.

style.safetensors    style.safetensors:0.8    loras/style    loras:style.safetensors:0.8
OWNER/NAME           OWNER/NAME:style.safetensors            OWNER/NAME:sub/style.safetensors:0.8
"""

import math
from collections.abc import Sequence
from pathlib import Path

from minflux.checkpoints import hub
from minflux.errors import ArgumentError, CheckpointError

SUFFIX, CONFIG = ".safetensors", "adapter_config.json"
SHOWN = 10  # files listed in a message
FORMS = "FILE, FOLDER[:FILE] or OWNER/NAME[:FILE], each with :SCALE after it or not"


def parse(text: str) -> tuple[str, float]:
    """Split "LORA:SCALE" or "LORA" into what names the LoRA and the scale, 1 unless a number follows the last colon.

    >>> parse("style.safetensors:0.8"), parse("someone/style:a.safetensors")
    (('style.safetensors', 0.8), ('someone/style:a.safetensors', 1.0))
    """
    place, _, scale = text.rpartition(":")
    if not place or Path(text).exists():
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        return text, 1.0
    if not math.isfinite(value):
        raise ArgumentError(f"lora: expected a finite scale, got {text!a}")
    return place, value


def locate_lora(text: str) -> tuple[Path, float]:
    """Return the file and the scale that a text stands for; what only the Hub has is fetched.

    Raises `ArgumentError` where nothing is there under that name, or several files are and none is named,
    `CheckpointError` where the Hub can't give it.
    """
    place, scale = parse(text)
    if Path(place).is_file():
        return Path(place), scale
    where, file = split(place)
    if where and Path(where).is_dir():
        return in_folder(Path(where), file), scale
    if hub.repository(where) is None or where in hub.NAMES:
        raise ArgumentError(f"lora: found no {place!a}; expected {FORMS}")
    return in_repository(where, file), scale


def split(place: str) -> tuple[str, str | None]:
    """Split "FOLDER:FILE" or "OWNER/NAME:FILE"; the file is None where there is none."""
    where, colon, file = place.rpartition(":")
    return (where, file) if colon and not Path(place).exists() else (place, None)


def repository_of(text: str) -> str | None:
    """Return the repository on the Hub whose LoRA a text names; None for one that lies here, or for none at all."""
    place, _ = parse(text)
    where, _ = split(place)
    here = Path(place).exists() or Path(where).exists()
    return None if here or where in hub.NAMES else hub.repository(where)


def in_folder(folder: Path, file: str | None) -> Path:
    """Return a folder's file of this name, or its only .safetensors file."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}")]
    return folder / pick(str(folder), names, file)


def in_repository(name: str, file: str | None) -> Path:
    """Fetch a repository's file of this name, or its only .safetensors file, with PEFT's config where it has one."""
    chosen = pick(name, list_repository(name), file)
    beside = (Path(chosen).parent / CONFIG).as_posix()
    return hub.fetch(name, files=(chosen, beside)) / chosen


def list_repository(name: str) -> list[str]:
    """List the .safetensors files of a repository on the Hub, or without a network those in the cache."""
    from huggingface_hub import model_info

    try:
        files = [sibling.rfilename for sibling in model_info(name, revision="main").siblings or ()]
    except Exception:  # offline, gated, not there: `fetch` finds it in the cache, or says what to do
        folder = hub.fetch(name, files=(CONFIG,))
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [file for file in files if file.endswith(SUFFIX)]


def pick(where: str, names: Sequence[str], file: str | None) -> str:
    """Return the file that is asked for, or the only one; raises `ArgumentError` where that is none of those there."""
    listed = ", ".join(sorted(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    if not names:
        raise CheckpointError(f"lora: {where}: holds no {SUFFIX} file")
    if file is None and len(names) == 1:
        return names[0]
    if file is None:
        raise ArgumentError(f"lora: {where} holds several files; name one, as in {where}:{sorted(names)[0]}: {listed}")
    if file not in names:
        raise ArgumentError(f"lora: {where} holds no {file!a}; it has {listed}")
    return file
