"""A model from one format into another, block by block: no more is held in memory than the block in hand.

Only names and layout change, never a number, unless another dtype or fewer bits are asked for, or a LoRA is added.
minflux's own format is diffusers' folder with a file of our trees' names for each part, quantised where asked for; from
it, into any format, quantised matrices become floats again.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from minflux.backend import get_backend
from minflux.checkpoints import names
from minflux.checkpoints.folder import KINDS, OWN_FILE
from minflux.checkpoints.formats.atomic import saved
from minflux.checkpoints.formats.dtypes import CODES, checked_cast, to_bytes
from minflux.checkpoints.formats.json_files import write_json
from minflux.checkpoints.formats.safetensors import write_entries
from minflux.checkpoints.lora import Change, added, read_loras
from minflux.checkpoints.names import Flat
from minflux.checkpoints.parts import FOLDER_NAMING, OWN_NAMING, expected, load_weight, warn_of, whole_name
from minflux.checkpoints.quantise import (
    BITS,
    SCALES,
    floats,
    holds_packed,
    is_beside,
    is_matrix,
    packed_shapes,
    quantise,
    stem_of,
)
from minflux.commands.inspect import TITLES, Found, inspect, where
from minflux.commands.options import LORA
from minflux.errors import ArgumentError, CheckpointError

Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype's code and shape
LARGEST = {"F16": 65504.0, "BF16": 3.3895314e38}  # finite numbers of a dtype
NOT_A_MODEL = "were written before and are left: with parts missing they are no model yet"
FORMATS = ("bfl", "diffusers", "minflux")
KEPT = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E4M3": "BF16", "F8_E5M2": "BF16"}  # all others become float32
BESIDE = ("scheduler", "tokenizer", "tokenizer_2", "minflux.json", "model_index.json")  # no weights; the index last
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
    bits: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write the model in `source` to `target` as "bfl" (one file, one part), "diffusers" or "minflux" (a folder, all).

    part: which one alone, "transformer", "vae", "text_encoder" or "text_encoder_2"; in BFL's format the transformer
    unless told. dtype: of the floats; unless given they stay as they are, but float8, which only ComfyUI reads, becomes
    bfloat16. lora: files, each "FILE" or "FILE:SCALE", added to the weights. bits: 4 or 8, to quantise the matrices in
    minflux's format; `report` is told what that changed. Returns the files of weights written, each whole or not at
    all. Raises `ArgumentError` for what can't be asked, `CheckpointError` for a source with a weight missing or wrong.
    """
    checked_cast(dtype)
    check_bits(format_, bits)
    source, target = where(source), Path(target)
    found = chosen(source, part or ("transformer" if format_ == "bfl" else None))
    check_target(source, target, format_)
    changes = read_loras(lora, {f.part.kind: f.cfg for f in found})
    if format_ == "bfl":
        kind = found[0].part.kind
        write_part(target, found[0], OWN_NAMING[kind], dtype, changes)
        return [target]
    written: list[Path] = []
    for f in found:
        try:
            path, errors = _write_component(target, f, format_, dtype, changes, bits)
        except CheckpointError as error:
            left = f"; {', '.join(map(str, written))} {NOT_A_MODEL}" if written else ""
            raise CheckpointError(f"{error}{left}") from error
        written.append(path)
        if errors:
            report(f"{TITLES[f.part.kind]}: {errors}")
    if part is None and source.is_dir():
        _copy_beside(source, target)
    elif part is None:
        report(f"{target}: lacks {', '.join(BESIDE)}, which no single file holds: copy them from a model's folder")
    return written


def chosen(source: Path, part: str | None) -> list[Found]:
    """Find one part in a source, or all of them; raises `CheckpointError` when it isn't there, or isn't right."""
    looked = inspect(source)
    for path, strangers in looked.unknown.items():
        warn_of(path, strangers)
    parts = {f.part.kind: f for f in reversed(looked.found)}  # of two of a kind, the first
    if not parts:
        raise CheckpointError(f"{source}: holds no part that can be converted: {' '.join(looked.notes).strip()}")
    if part is not None and part not in parts:
        raise CheckpointError(f"{source}: holds no {TITLES[part]}, only {', '.join(TITLES[kind] for kind in parts)}")
    found = [f for kind, f in parts.items() if part in (None, kind)]
    for f in found:
        for wrong in f.wrong:
            raise CheckpointError(f"{f.path}: {wrong}")
    return found


def check_target(source: Path, target: Path, format_: str) -> None:
    """Raise `ArgumentError` when the target is no place for this format, or is the source itself."""
    if format_ not in FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(FORMATS)}, got {format_!r}")
    if format_ == "bfl" and target.suffix != ".safetensors":
        raise ArgumentError(f"target: BFL's format is one .safetensors file, got {str(target)!r}")
    if format_ != "bfl" and (target.suffix == ".safetensors" or target.is_file()):
        raise ArgumentError(f"target: the format {format_!r} is a folder, got {str(target)!r}")
    if not target.absolute().parent.is_dir():
        raise ArgumentError(f"target: the folder {str(target.parent)!r} does not exist; make it first")
    if source.resolve() == target.resolve():
        raise ArgumentError(f"target: {str(target)!r} is the source itself; choose another name")


def check_bits(format_: str, bits: int | None) -> None:
    """Raise `ArgumentError` for a number of bits that can't be, or not in this format."""
    if bits not in (None, *BITS):
        raise ArgumentError(f"bits must be {' or '.join(map(str, BITS))}, got {bits!r}")
    if bits and format_ != "minflux":
        raise ArgumentError(f"bits: the format {format_!r} holds no quantised weights; use 'minflux'")


def _write_component(
    folder: Path, found: Found, format_: str, dtype: str | None, changes: list[Change], bits: int | None
) -> tuple[Path, "Errors"]:
    """Write one part into a model folder: its weights, under diffusers' names or our own, and their config."""
    kind, spec = found.part.kind, KINDS[found.part.kind]
    own = format_ == "minflux"
    path = folder / kind / (OWN_FILE if own else f"{spec.stem}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob("*.safetensors*"):
        if other.name != path.name:
            raise ArgumentError(
                f"target: {str(path.parent)!r} holds other weights, {other.name}; choose another folder"
            )
    errors = write_part(path, found, (OWN_NAMING if own else FOLDER_NAMING)[kind], dtype, changes, bits)
    write_json(path.with_name("config.json"), spec.write_config(found.cfg))
    return path, errors


def _copy_beside(source: Path, target: Path) -> None:
    """Copy what a model folder holds beside its weights: index, schedule, tokenizers."""
    for name in BESIDE:
        files = (source / name).rglob("*") if (source / name).is_dir() else [source / name]
        for file in sorted(path for path in files if path.is_file()):
            with saved(target / file.relative_to(source)) as copy:
                copy.write(file.read_bytes())


# -- one part ------------------------------------------------------------------------------------------------


def write_part(
    path: Path, found: Found, naming: str, dtype: str | None, changes: list[Change], bits: int | None = None
) -> "Errors":
    """Write one part under other names, under a progress bar; return what quantising it to `bits` changed."""
    part, nx, errors = found.part, get_backend("numpy"), Errors()
    blocks: dict[str, list[str]] = defaultdict(list)
    codes: dict[str, set[str]] = defaultdict(set)
    for name, stored in part.found.items():
        blocks[block_of(part.kind, name)].append(name)
        if not is_beside(name, part.found):
            floats_of = part.found.get(f"{stem_of(name)}.{SCALES}", stored) if holds_packed(stored) else stored
            codes[origin(part.kind, part.naming, name)].add(KEPT.get(floats_of.code, "F32"))

    def code(name: str) -> str:
        own = codes[origin(part.kind, naming, name)]
        return CODES[dtype] if dtype else min(own) if len(own) == 1 else "F32"

    @lru_cache(maxsize=1)
    def rewritten(block: str) -> Flat:
        flat = floats({name: load_weight(part, name, nx) for name in blocks[block]})
        flat = renamed(flat, part.kind, part.naming, naming, changes)
        return quantised(flat, part.kind, bits, code, errors) if bits else flat

    wanted = expected(part.kind, naming, found.cfg)
    entries = {name: (code(name), shape) for name, shape in wanted.items()}
    if bits:
        entries = with_quantised(entries, part.kind, bits)
    with tqdm(total=len(entries), desc=TITLES[part.kind], unit="weight") as bar:

        def bytes_of(name: str) -> bytes:
            bar.update()
            array = rewritten(block_of(part.kind, name))[name]
            check_fits(path, name, array, entries[name][0])
            return to_bytes(array, entries[name][0])

        write_entries(path, entries, bytes_of)
    return errors


def check_fits(path: Path, name: str, array: np.ndarray, code: str) -> None:
    """Raise `CheckpointError` for numbers that are not finite, or will not be in the dtype `code`."""
    largest = float(np.abs(array).max(initial=0)) if code != "U32" else 0.0
    if not largest <= LARGEST.get(code, math.inf) or largest == math.inf:
        raise CheckpointError(f"{path}: {name}: a number as large as {largest:.3g} doesn't fit into {code}")


def renamed(flat: Flat, kind: str, old: str, new: str, changes: list[Change]) -> Flat:
    """Turn a block's weights from one naming to another, and add the changes of LoRAs on the way."""
    if old == new and not changes:
        return flat
    ours = TO_BFL[kind](flat) if old == "diffusers" else flat
    ours = added(ours, [change for change in changes if change.module.kind == kind])
    return TO_DIFFUSERS[kind](ours) if new == "diffusers" else ours


# -- fewer bits ----------------------------------------------------------------------------------------------


class Errors(dict[str, tuple[float, float]]):
    """What quantising changed: for each matrix |W' - W|² and |W|²."""

    def __str__(self) -> str:
        changed, whole = (math.sqrt(sum(pair[i] for pair in self.values())) for i in (0, 1))
        name, worst = max(((name, math.sqrt(e / w)) for name, (e, w) in self.items()), key=lambda item: item[1])
        return f"{len(self)} matrices quantised, relative error {changed / whole:.2%}; the worst is {name}, {worst:.2%}"


def quantised(flat: Flat, kind: str, bits: int, code: Callable[[str], str], errors: Errors) -> Flat:
    """Quantise a block's matrices, and note the error of each."""
    result: Flat = {}
    for name, array in flat.items():
        if is_matrix(kind, name, array.shape):
            three = dict(zip(packed_shapes(name, array.shape, bits), quantise(array, bits, code(name)), strict=True))
            back = floats(three)[name]
            errors[name] = (_squared(back - array), max(_squared(array), 1e-30))
            result |= three
        else:
            result[name] = array
    return result


def _squared(x: np.ndarray) -> float:
    return float(np.vdot(x, x))


def with_quantised(entries: Entries, kind: str, bits: int) -> Entries:
    """Put three entries in the place of one for every matrix that is quantised."""
    result: Entries = {}
    for name, (code, shape) in entries.items():
        if is_matrix(kind, name, shape):
            shapes = packed_shapes(name, shape, bits)
            result |= {part: ("U32" if part == name else code, size) for part, size in shapes.items()}
        else:
            result[name] = (code, shape)
    return result


# -- names ---------------------------------------------------------------------------------------------------


def block_of(kind: str, name: str) -> str:
    """Name the block that a weight is converted with; of text encoders its layer, of the autoencoder, whose levels are
    reversed, all.

    >>> block_of("transformer", "single_transformer_blocks.3.proj_mlp.weight")
    'single_blocks.3'
    """
    if kind == "vae":
        return ""
    if kind != "transformer":
        return stem_of(name)
    match = re.match(r"(single|double)?_?(?:transformer_)?blocks\.(\d+)\.", name)
    return f"{match[1] or 'double'}_blocks.{match[2]}" if match else ""


def origin(kind: str, naming: str, name: str) -> str:
    """Name the weight that a weight is, or is a part of; all of the autoencoder's count as one."""
    return "" if kind == "vae" else whole_name(kind, naming, name)


# -- the command ---------------------------------------------------------------------------------------------

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


@click.command("convert", short_help="Write a model in another format, or quantised.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(FORMATS), required=True, help="Whose names.")
@click.option("--part", type=click.Choice(list(TITLES)), help="This part alone; for bfl the transformer unless given.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Unless given, as in SOURCE (of float8: bf16).")
@click.option(
    "--quantize", "bits", type=click.Choice(list(map(str, BITS))), help="Bits a weight, with --format minflux."
)
@LORA
def command(source, target, format_, part, dtype, bits, lora):
    """Write the model in SOURCE to TARGET: a file under BFL's names, or a folder under diffusers' or minflux's own.

    \b
    minflux convert FLUX.1-dev flux1-dev.safetensors --format bfl
    minflux convert flux1-dev.safetensors FLUX.1-dev --format diffusers --dtype f16 --lora style.safetensors:0.8
    minflux convert FLUX.1-dev FLUX.1-dev-4bit --format minflux --quantize 4

    Quantised weights take a quarter of the memory that bfloat16 takes, or half; what that changes is measured and said.
    """
    if bits and format_ != "minflux":
        raise ArgumentError(f"--quantize: the format {format_!r} holds no quantised weights; use --format minflux")
    bits = int(bits) if bits else None
    for path in convert(source, target, format_, part, DTYPES.get(dtype), lora, bits, click.echo):
        click.echo(path)
