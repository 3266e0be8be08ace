"""Write a model in another format, block by block: no more is held in memory than the block in hand.

Only names and layout change, never a number, unless another dtype or fewer bits are asked for, or a LoRA is added.
minflux's own format is diffusers' folder with a file of our trees' names for each component, quantised where asked for;
from it, into any format, quantised matrices become floats again.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from minflux.backend import get_backend
from minflux.backend.base import GROUP
from minflux.checkpoints.components import COMPONENTS, SD3, TRANSFORMER, Naming
from minflux.checkpoints.components.base import NEVER, block_of
from minflux.checkpoints.components.renaming import Flat
from minflux.checkpoints.folder import CONFIG, OWN_FILE
from minflux.checkpoints.formats.dtypes import BLOCKS, TAGS, checked_cast, to_bytes
from minflux.checkpoints.formats.gguf import WRITABLE, to_blocks, write_gguf
from minflux.checkpoints.formats.json_files import write_json
from minflux.checkpoints.formats.safetensors import Entries, write_entries
from minflux.checkpoints.lora import Change, add_loras, read_loras, with_loras
from minflux.checkpoints.open import Checkpoint, some_of, warn_of_unexpected
from minflux.checkpoints.quantise import (
    BITS,
    SCALES,
    dequantise,
    holds_packed,
    is_quantisation_parameter,
    packed_shapes,
    quantise,
    stem_of,
)
from minflux.checkpoints.read import read_weight
from minflux.checkpoints.stored import StoredComponent
from minflux.commands.named import NONE, open_named
from minflux.commands.options import LORA, print_line, take_files, with_files
from minflux.commands.whole import check_family, files_beside, write_beside
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import find_loras

FORMATS = ("bfl", "diffusers", "minflux", "gguf")
ONE_FILE = {"bfl": ("BFL's format", ".safetensors"), "gguf": ("GGUF's format", ".gguf")}  # the others are folders
SMALL = 1024  # numbers; as in other people's GGUF files, an array of no more is float32
LARGEST = {"F16": 65504.0, "BF16": 3.3895314e38} | dict.fromkeys(BLOCKS, 65504.0)  # of a dtype; blocks' scales are F16
KEPT = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F8_E4M3": "BF16", "F8_E5M2": "BF16"}  # all others become float32
INCOMPLETE = "were written before this and stay there: they are no whole model; remove them, or convert the rest"


def convert(
    source: str | Path | None,
    target: str | Path,
    format_: str,
    part: str | None = None,
    dtype: str | None = None,
    lora: Sequence[str] = (),
    bits: int | None = None,
    report: Callable[[str], None] = lambda line: None,
    files: Mapping[str, str | Path | None] = NONE,
    comfy: str | Path | None = None,
    gguf_type: str | None = None,
) -> list[Path]:
    """Write the model in `source` to `target` as "bfl" or "gguf", one file, or as "diffusers" or "minflux", a folder.

    part: which component alone, "transformer", "vae", "text_encoder" or "text_encoder_2"; in one file the transformer
    unless told. dtype: of the floats; unless given they stay as they are, but float8, which only ComfyUI reads, becomes
    bfloat16. lora: files, each "FILE" or "FILE:SCALE", added to the weights. bits: 4 or 8, to quantise the matrices in
    minflux's format. gguf_type: a type of GGUF's, as "q8_0", to quantise them in its format. `report` is told what
    quantising changed. files: in place of the source's components, or without a source; comfy: ComfyUI's folder
    `models`, as for `load`. Returns the files of weights written, each whole or not at all. Raises `ArgumentError` for
    what can't be asked, `CheckpointError` for a source with a weight missing or wrong.
    """
    checked_cast(dtype)
    check_bits(format_, bits)
    kind = check_type(format_, gguf_type)
    wanted = part or (TRANSFORMER.name if format_ in ONE_FILE else None)
    checkpoint = open_named(source, files, comfy, [wanted] if wanted else list(COMPONENTS))
    check_family(checkpoint, format_, lora)
    target = Path(target)
    check_target(checkpoint.path, target, format_)
    chosen = choose(checkpoint, wanted)
    loras = find_loras(comfy, lora)
    changes = read_loras(loras, {stored.name: stored.config for stored in chosen})
    check_no_control(loras, chosen)
    if format_ == "gguf":
        conversion = GGUFConversion(chosen[0], dtype, changes, kind)
        conversion.write(target)
        report_errors(conversion, report)
        return [target]
    if format_ == "bfl":
        Conversion(chosen[0], chosen[0].component.own_naming, dtype, changes).write(target)
        return [target]
    beside = files_beside(checkpoint, chosen, report) if part is None else {}
    written = write_folder(target, chosen, format_, dtype, changes, bits, report)
    if part is None:
        write_beside(target, checkpoint.family, beside, report)
    return written


def write_folder(
    target: Path,
    chosen: list[StoredComponent],
    format_: str,
    dtype: str | None,
    changes: list[Change],
    bits: int | None,
    report: Callable[[str], None],
) -> list[Path]:
    """Write components into a model's folder, and report what quantising them changed; return the files of weights."""
    written: list[Path] = []
    for stored in chosen:
        component, own = stored.component, format_ == "minflux"
        path = target / component.name / (OWN_FILE if own else f"{component.stem}.safetensors")
        conversion = Conversion(stored, component.own_naming if own else component.folder_naming, dtype, changes, bits)
        try:
            write_component(path, conversion)
        except CheckpointError as error:
            left = f"; {', '.join(map(str, written))} {INCOMPLETE}" if written else ""
            raise CheckpointError(f"{error}{left}") from error
        written.append(path)
        report_errors(conversion, report)
    return written


def report_errors(conversion: "Conversion", report: Callable[[str], None]) -> None:
    """Report what quantising changed, if anything was quantised."""
    if conversion.errors:
        report(f"{conversion.component.title}: {conversion.errors}")


def write_component(path: Path, conversion: "Conversion") -> None:
    """Write one component into a model folder: its weights, and their config."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob("*.safetensors*"):
        if other.name != path.name:
            raise ArgumentError(
                f"target: {str(path.parent)!r} holds other weights, {other.name}; choose another folder"
            )
    conversion.write(path)
    stored = conversion.stored
    write_json(path.with_name(CONFIG), stored.component.write_config(stored.config))


def check_no_control(loras: Sequence[str], chosen: list[StoredComponent]) -> None:
    """Raise `ArgumentError` for a control LoRA, with which the model would have another shape."""
    for stored in chosen:
        if stored.name == TRANSFORMER.name and with_loras(loras, stored.config) != stored.config:
            raise ArgumentError("lora: a control LoRA widens the model, and is not merged; generate takes it, --lora")


# -- what is asked -------------------------------------------------------------------------------------------


def choose(checkpoint: Checkpoint, part: str | None) -> list[StoredComponent]:
    """Return one component of a source, or all; raises `CheckpointError` when it isn't there, or isn't right."""
    source, held = checkpoint.path, checkpoint.components
    warn_of_unexpected(checkpoint.unexpected_keys)
    for error in checkpoint.broken.values() if part is None else ():
        raise error
    if not held:
        raise CheckpointError(f"{source}: holds no part that can be converted: {' '.join(checkpoint.notes).strip()}")
    if part is not None and part not in held and part not in checkpoint.broken:
        titles = ", ".join(stored.component.title for stored in held.values())
        raise CheckpointError(f"{source}: holds no {part}, only {titles}")
    chosen = [checkpoint.take(name) for name in ([part] if part else held)]
    warn_of_left_out(chosen)
    return chosen


def warn_of_left_out(chosen: Sequence[StoredComponent]) -> None:
    """Warn of weights that a model has no use for, and that are therefore not converted."""
    for stored in chosen:
        if stored.left_out:
            names = some_of(stored.left_out)
            warnings.warn(
                f"{stored.path}: left out {len(stored.left_out)} weights that are not needed: {names}", stacklevel=3
            )


def check_target(source: Path, target: Path, format_: str) -> None:
    """Raise `ArgumentError` when the target is no place for this format, or is the source itself."""
    if format_ not in FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(FORMATS)}, got {format_!r}")
    title, suffix = ONE_FILE.get(format_, ("", ""))
    if suffix and target.suffix != suffix:
        raise ArgumentError(f"target: {title} is one {suffix} file, got {str(target)!r}")
    if not suffix and (target.suffix in (".safetensors", ".gguf") or target.is_file()):
        raise ArgumentError(f"target: the format {format_!r} is a folder, got {str(target)!r}")
    if not target.absolute().parent.is_dir():
        raise ArgumentError(f"target: the folder {str(target.parent)!r} does not exist; make it first")
    if source.resolve() == target.resolve():
        raise ArgumentError(f"target: {str(target)!r} is the source itself; choose another name")


def check_bits(format_: str, bits: int | None) -> None:
    """Raise `ArgumentError` for a number of bits that can't be, or not in this format."""
    if bits not in (None, *BITS):
        raise ArgumentError(f"quantize must be {' or '.join(map(str, BITS))}, got {bits!r}")
    if bits and format_ == "gguf":
        raise ArgumentError(f"quantize: GGUF has types, no bits: one of {', '.join(WRITABLE).lower()}; got {bits}")
    if bits and format_ != "minflux":
        raise ArgumentError(f"quantize: the format {format_!r} holds no quantised weights; use --format minflux")


def check_type(format_: str, gguf_type: str | None) -> str | None:
    """Return GGUF's name of a type; raise `ArgumentError` for one that can't be written, or not in this format."""
    if gguf_type is None:
        return None
    if format_ != "gguf":
        raise ArgumentError(f"quantize: {gguf_type!r} needs --format gguf; --format minflux takes 4 or 8")
    kind = gguf_type.upper()
    if kind not in WRITABLE:
        known = ", ".join(WRITABLE).lower()
        raise ArgumentError(f"quantize: the gguf package can't write {gguf_type!r}; it can write {known}")
    return kind


# -- one component -------------------------------------------------------------------------------------------


class Conversion:
    """One component on its way into another naming, dtype or number of bits, with the changes of LoRAs added."""

    def __init__(
        self,
        stored: StoredComponent,
        naming: Naming,
        dtype: str | None = None,
        changes: Sequence[Change] = (),
        bits: int | None = None,
    ):
        self.stored = stored
        self.component = stored.component
        self.naming = naming
        self.dtype = dtype
        self.changes = [change for change in changes if change.module.component == stored.name]
        self.bits = bits
        self.errors = Errors()
        self.in_hand: tuple[str, Flat] = ("", {})  # the block that was converted last

    def write(self, path: Path) -> None:
        """Write the component under a progress bar, the file whole or not at all."""
        entries = self.entries()
        with tqdm(total=len(entries), desc=self.component.title, unit="weight") as bar:

            def bytes_of(name: str) -> bytes:
                bar.update()
                array, tag = self.converted(self.block(self.our_name(name)))[name], entries[name][0]
                check_fits(path, name, array, tag)
                return self.encoded(name, array, tag)

            self.write_file(path, entries, bytes_of)

    def encoded(self, name: str, array: np.ndarray, tag: str) -> bytes:
        """Return a weight's bytes in the dtype `tag`."""
        return to_bytes(array, tag)

    def write_file(self, path: Path, entries: Entries, bytes_of: Callable[[str], bytes]) -> None:
        """Write the file."""
        write_entries(path, entries, bytes_of)

    # -- what is written -------------------------------------------------------------------------------------

    def entries(self) -> Entries:
        """Return the dtype and shape of every weight that is written; a quantised matrix is three of them."""
        entries: Entries = {}
        for name, shape in self.component.file_shapes(self.naming, self.stored.config).items():
            tag = self.tag(name)
            if self.is_quantised(name, shape):
                arrays = packed_shapes(name, shape, self.bits or 0)
                entries |= {part: ("U32" if part == name else tag, size) for part, size in arrays.items()}
            else:
                entries[name] = (tag, shape)
        return entries

    def is_quantised(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a weight is to be quantised; only minflux's own format has such, which has our names."""
        return self.bits is not None and self.component.is_quantisable(name, shape, GROUP)

    def tag(self, name: str) -> str:
        """Return the dtype of a weight's floats: as asked, or its own; where parts of two dtypes meet, float32."""
        if self.dtype:
            return TAGS[self.dtype]
        own = self.own_tags[self.our_name(name)]
        return min(own) if len(own) == 1 else "F32"

    @cached_property
    def own_tags(self) -> dict[str, set[str]]:
        """Map our name of a weight to the dtypes of the floats that it is made of."""
        tensors = self.stored.tensors
        tags: dict[str, set[str]] = {}
        for name, ours in self.stored.our_names.items():
            if not is_quantisation_parameter(name, tensors):
                tensor = tensors[name]
                counted = tensors.get(f"{stem_of(name)}.{SCALES}", tensor) if holds_packed(tensor) else tensor
                tags.setdefault(ours, set()).add(KEPT.get(counted.dtype, "F32"))
        return tags

    def our_name(self, name: str) -> str:
        """Return our name of a weight that is written."""
        return self.naming.our_name(name, self.stored.config)

    # -- block by block --------------------------------------------------------------------------------------

    def block(self, ours: str) -> str:
        """Return the block that a weight, by our name, is converted with; a network that has none is one block."""
        if self.component.in_blocks is NEVER:
            return ""
        block = block_of(ours)
        return stem_of(ours) if block == ours else block

    @cached_property
    def blocks(self) -> dict[str, list[str]]:
        """Map each block to the names in the source that it is made of."""
        blocks: dict[str, list[str]] = {}
        for name, ours in self.stored.our_names.items():
            blocks.setdefault(self.block(ours), []).append(name)
        return blocks

    def converted(self, block: str) -> Flat:
        """Return a block's weights as they are written; the block in hand is not read again."""
        held, flat = self.in_hand
        if held != block or not flat:
            flat = self.convert(block)
            self.in_hand = block, flat
        return flat

    def convert(self, block: str) -> Flat:
        """Read a block, and turn it into what is asked for."""
        nx, old, new = get_backend("numpy"), self.stored.naming, self.naming
        config = self.stored.config
        flat = dequantise({name: read_weight(self.stored, name, nx) for name in self.blocks[block]})
        if old is not new or self.changes:
            flat = new.store(add_loras(old.load(flat, config), self.changes), config)
        return self.quantised(flat)

    def quantised(self, flat: Flat) -> Flat:
        """Quantise a block's matrices, and note the error of each."""
        result: Flat = {}
        for name, array in flat.items():
            if self.is_quantised(name, array.shape):
                names = packed_shapes(name, array.shape, self.bits or 0)
                arrays = dict(zip(names, quantise(array, self.bits or 0, self.tag(name)), strict=True))
                self.errors.note(name, array, dequantise(arrays)[name])
                result |= arrays
            else:
                result[name] = array
        return result


class GGUFConversion(Conversion):
    """One component on its way into a GGUF file; with a `kind`, the matrices that may be quantised are of that type.

    As in other people's files, what is small or no matrix is float32, and what leads into the blocks and out of them
    stays as it is. Source: ComfyUI-GGUF `tools/convert.py`.
    """

    def __init__(self, stored: StoredComponent, dtype: str | None, changes: Sequence[Change], kind: str | None):
        if stored.component.gguf is None:
            raise ArgumentError(f"format: no {stored.component.title} is kept as gguf; use bfl, diffusers or minflux")
        naming, self.architecture = stored.component.gguf
        super().__init__(stored, stored.component.naming(naming), dtype, changes)
        self.kind = kind

    def entries(self) -> Entries:
        """Return the type and shape of every weight that is written."""
        shapes = self.component.file_shapes(self.naming, self.stored.config)
        return {name: (self.type_of(name, shape), shape) for name, shape in shapes.items()}

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the type that a weight is written in."""
        if len(shape) < 2 or math.prod(shape) <= SMALL:
            return "F32"
        fits = self.kind and self.component.is_quantisable(self.our_name(name), shape, BLOCKS[self.kind][0])
        return self.kind if self.kind and fits else self.tag(name)

    def encoded(self, name: str, array: np.ndarray, tag: str) -> bytes:
        """Return a weight's bytes in its type, and note the error of a matrix that is quantised."""
        if tag not in BLOCKS:
            return super().encoded(name, array, tag)
        blocks, back = to_blocks(array, tag)
        self.errors.note(name, array, back)
        return blocks.tobytes()

    def write_file(self, path: Path, entries: Entries, bytes_of: Callable[[str], bytes]) -> None:
        """Write the file."""
        write_gguf(path, self.architecture, self.kind, entries, bytes_of)


def check_fits(path: Path, name: str, array: np.ndarray, tag: str) -> None:
    """Raise `CheckpointError` for numbers that are not finite, or will not be in the dtype `tag`."""
    largest = float(np.abs(array).max(initial=0)) if tag != "U32" else 0.0
    if not largest <= LARGEST.get(tag, math.inf) or largest == math.inf:
        raise CheckpointError(f"{path}: {name}: a number as large as {largest:.3g} doesn't fit into {tag}")


class Errors(dict[str, tuple[float, float]]):
    """What quantising changed: for each matrix |W' - W|² and |W|²."""

    def note(self, name: str, matrix: np.ndarray, back: np.ndarray) -> None:
        """Note the error of a matrix, given as it was and as it is read back."""
        self[name] = squared(back - matrix), max(squared(matrix), 1e-30)

    def __str__(self) -> str:
        changed, whole = (math.sqrt(sum(pair[i] for pair in self.values())) for i in (0, 1))
        relative = {name: math.sqrt(error / size) for name, (error, size) in self.items()}
        worst = max(relative, key=lambda name: relative[name])
        return (
            f"{len(self)} matrices quantised, relative error {changed / whole:.2%}; "
            f"the worst is {worst}, {relative[worst]:.2%}"
        )


def squared(x: np.ndarray) -> float:
    """Return the sum of squares."""
    return float(np.vdot(x, x))


# -- the command ---------------------------------------------------------------------------------------------

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


@click.command("convert", short_help="Write a model in another format, or quantised.")
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] TARGET", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(FORMATS), required=True, help="Whose names.")
@click.option(
    "--part", type=click.Choice(list(COMPONENTS | SD3)), help="This part alone; for bfl the transformer unless given."
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Unless given, as in SOURCE (of float8: bf16).")
@click.option(
    "--quantize", metavar="4|8|q8_0|…", help="Bits a weight, with --format minflux; GGUF's type, with --format gguf."
)
@LORA
@with_files
def command(paths, format_, part, dtype, quantize, lora, **given):
    """Write the model in SOURCE to TARGET: a BFL or GGUF file, or a folder under diffusers' or our own.

    Files may be named in place of SOURCE's parts, or of SOURCE.

    \b
    minflux convert FLUX.1-dev flux1-dev.safetensors --format bfl
    minflux convert flux1-dev.safetensors FLUX.1-dev --format diffusers --dtype f16 --lora style.safetensors:0.8
    minflux convert FLUX.1-dev FLUX.1-dev-4bit --format minflux --quantize 4
    minflux convert FLUX.1-dev flux1-dev-Q8_0.gguf --format gguf --quantize q8_0
    minflux convert --comfy ComfyUI/models FLUX.1-dev-4bit --format minflux --quantize 4

    Quantised weights take a quarter of the memory that bfloat16 takes, or half; what that changes is measured and said.
    """
    files = take_files(given)
    comfy = files.pop("comfy")
    source, target = source_and_target(paths)
    bits = int(quantize) if quantize and quantize.isdecimal() else None
    kind = None if bits is not None else quantize
    dtype = DTYPES.get(dtype)
    for path in convert(source, target, format_, part, dtype, lora, bits, print_line, files, comfy, kind):
        click.echo(path)


def source_and_target(paths: tuple[Path, ...]) -> tuple[Path | None, Path]:
    """Return a model and where to write it; None in place of a model that is named by files alone."""
    if len(paths) > 2:
        raise ArgumentError(f"expected SOURCE and TARGET, found {', '.join(map(str, paths))}")
    return (paths[0] if len(paths) == 2 else None), paths[-1]
