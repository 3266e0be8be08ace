"""A model from one format into another, block by block: no more is held in memory than the block in hand.

Only names and layout change, never a number, unless another dtype is asked for or a LoRA is added.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from minflux.backend import get_backend
from minflux.errors import ArgumentError, CheckpointError
from minflux.inspect import TITLES, Found, inspect, where
from minflux.weights import names
from minflux.weights.files import CODES, checked_cast, to_bytes, write_entries, write_json
from minflux.weights.folder import KINDS
from minflux.weights.lora import Change, added, read_loras
from minflux.weights.names import Flat
from minflux.weights.parts import FOLDER_NAMING, expected, load_weight, whole_name

KEPT = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E4M3": "BF16", "F8_E5M2": "BF16"}  # all others become float32
BESIDE = ("model_index.json", "minflux.json", "scheduler", "tokenizer", "tokenizer_2")  # what is no weights
TO_BFL: dict[str, Callable[[Flat], Flat]] = {"transformer": names.flux_to_bfl, "vae": names.vae_to_bfl}
TO_DIFFUSERS: dict[str, Callable[[Flat], Flat]] = {
    "transformer": names.flux_to_diffusers,
    "vae": names.vae_to_diffusers,
}


def convert(
    source: str | Path,
    target: str | Path,
    format_: str,
    part: str | None = None,
    dtype: str | None = None,
    lora: Sequence[str] = (),
) -> list[Path]:
    """Write the model in `source` to `target` as "bfl" (one file, one part) or "diffusers" (a folder, every part).

    part: which one alone, "transformer", "vae", "text_encoder" or "text_encoder_2"; in BFL's format the transformer
    unless told. dtype: of the floats; unless given they stay as they are, but float8, which only ComfyUI reads, becomes
    bfloat16. lora: files, each "FILE" or "FILE:SCALE", added to the weights. Returns the files of weights written, each
    whole or not at all. Raises `ArgumentError` for what can't be asked, `CheckpointError` for a source with a weight
    missing or wrong.
    """  # fmt: skip
    checked_cast(dtype)
    source, target = where(source), Path(target)
    found = chosen(source, part or ("transformer" if format_ == "bfl" else None))
    check_target(source, target, format_)
    changes = read_loras(lora, {f.part.kind: f.cfg for f in found})
    if format_ == "bfl":
        kind = found[0].part.kind
        write_part(target, found[0], "bfl" if kind in TO_BFL else "transformers", dtype, changes)
        return [target]
    written = [_write_component(target, f, dtype, changes) for f in found]
    if part is None:
        _copy_beside(source, target)
    return written


def chosen(source: Path, part: str | None) -> list[Found]:
    """Find one part in a source, or all of them; raises `CheckpointError` when it isn't there, or isn't right."""
    parts = {f.part.kind: f for f in reversed(inspect(source).found)}  # of two of a kind, the first
    if part is not None and part not in parts:
        raise CheckpointError(f"{source}: holds no {TITLES[part]}, only {', '.join(TITLES[kind] for kind in parts)}")
    found = [f for kind, f in parts.items() if part in (None, kind)]
    for f in found:
        for wrong in f.wrong:
            raise CheckpointError(
                f"{f.path}: {wrong.name}: expected {wrong.expected or 'no such weight'}, "
                f"found {wrong.found or 'no such weight'}"
            )
    return found


def check_target(source: Path, target: Path, format_: str) -> None:
    """Raise `ArgumentError` when the target is no place for this format, or is the source itself."""
    if format_ not in ("bfl", "diffusers"):
        raise ArgumentError(f"format must be 'bfl' or 'diffusers', got {format_!r}")
    if format_ == "bfl" and target.suffix != ".safetensors":
        raise ArgumentError(f"target: BFL's format is one .safetensors file, got {str(target)!r}")
    if format_ == "diffusers" and (target.suffix == ".safetensors" or target.is_file()):
        raise ArgumentError(f"target: diffusers' format is a folder, got {str(target)!r}")
    if not target.absolute().parent.is_dir():
        raise ArgumentError(f"target: the folder {str(target.parent)!r} does not exist; make it first")
    if source.resolve() == target.resolve():
        raise ArgumentError(f"target: {str(target)!r} is the source itself; choose another name")


def _write_component(folder: Path, found: Found, dtype: str | None, changes: list[Change]) -> Path:
    """Write one part as diffusers lays it out: its weights and their config."""
    kind, spec = found.part.kind, KINDS[found.part.kind]
    path = folder / kind / f"{spec.stem}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_part(path, found, FOLDER_NAMING[kind], dtype, changes)
    write_json(path.with_name("config.json"), spec.write_config(found.cfg))
    return path


def _copy_beside(source: Path, target: Path) -> None:
    """Copy what a model folder holds beside its weights: index, schedule, tokenizers."""
    for name in BESIDE:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).is_file():
            shutil.copy(source / name, target / name)


# -- one part ------------------------------------------------------------------------------------------------


def write_part(path: Path, found: Found, naming: str, dtype: str | None, changes: list[Change]) -> None:
    """Write one part under other names, under a progress bar."""
    part, nx = found.part, get_backend("numpy")
    blocks: dict[str, list[str]] = defaultdict(list)
    codes: dict[str, set[str]] = defaultdict(set)
    for name, stored in part.found.items():
        blocks[block_of(part.kind, name)].append(name)
        codes[origin(part.kind, part.naming, name)].add(KEPT.get(stored.code, "F32"))

    @lru_cache(maxsize=1)
    def rewritten(block: str) -> Flat:
        return renamed(
            {name: load_weight(part, name, nx) for name in blocks[block]}, part.kind, part.naming, naming, changes
        )

    def code(name: str) -> str:
        own = codes[origin(part.kind, naming, name)]
        return CODES[dtype] if dtype else min(own) if len(own) == 1 else "F32"

    wanted = expected(part.kind, naming, found.cfg)
    entries = {name: (code(name), shape) for name, shape in wanted.items()}
    with tqdm(total=len(entries), desc=TITLES[part.kind], unit="weight") as bar:

        def bytes_of(name: str) -> bytes:
            bar.update()
            return to_bytes(rewritten(block_of(part.kind, name))[name], entries[name][0])

        write_entries(path, entries, bytes_of)


def renamed(flat: Flat, kind: str, old: str, new: str, changes: list[Change]) -> Flat:
    """Turn a block's weights from one naming to another, and add the changes of LoRAs on the way."""
    if old == new and not changes:
        return flat
    ours = TO_BFL[kind](flat) if old == "diffusers" else flat
    ours = added(ours, [change for change in changes if change.module.kind == kind])
    return TO_DIFFUSERS[kind](ours) if new == "diffusers" else ours


def block_of(kind: str, name: str) -> str:
    """Name the block that a weight is converted with: its own, or of the autoencoder, whose levels are reversed, all.

    >>> block_of("transformer", "single_transformer_blocks.3.proj_mlp.weight")
    'single_blocks.3'
    """
    if kind == "vae":
        return ""
    if kind != "transformer":
        return name
    match = re.match(r"(single|double)?_?(?:transformer_)?blocks\.(\d+)\.", name)
    return f"{match[1] or 'double'}_blocks.{match[2]}" if match else ""


def origin(kind: str, naming: str, name: str) -> str:
    """Name the weight that a weight is, or is a part of; all of the autoencoder's count as one."""
    return "" if kind == "vae" else whole_name(kind, naming, name)
