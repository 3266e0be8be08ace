"""Say what a model is, without loading it: parts, variant, sizes, dtypes, memory, and every weight that is not right.

Only headers and configs are read, so 24 GB take no longer than 24 MB.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from minflux.checkpoints.comfy import checkpoint_of, open_comfy
from minflux.checkpoints.diffusionkit import what_is_lost
from minflux.checkpoints.open import Checkpoint, some_of
from minflux.checkpoints.quantise import bits_of, is_packed
from minflux.checkpoints.relaid import relaid
from minflux.checkpoints.stored import StoredComponent
from minflux.commands.named import NONE, open_named
from minflux.commands.options import take_files, with_files
from minflux.errors import shown
from minflux.inference.memory import MODES, count_numbers, held, readable

SHOWN = 20  # wrong weights listed a component


@dataclass(frozen=True)
class Report:
    """All that was found under a name, and whether it is right."""

    checkpoint: Checkpoint
    shows_places: bool = False  # of each component's file, inside of ComfyUI's folder

    @property
    def missing(self) -> list[str]:
        """List the components that are missing; only a folder with an index claims to be a whole model."""
        return self.checkpoint.missing if self.checkpoint.index and self.checkpoint.found else []

    @property
    def paths(self) -> list[Path]:
        """List what was named: the model, and the files in place of its parts."""
        return list(dict.fromkeys([self.checkpoint.path, *self.checkpoint.loose.values()]))

    def place(self, stored: StoredComponent) -> str:
        """Say where a component lies, when there are several places."""
        if self.shows_places or len(self.paths) > 1:
            path = stored.path
            return f" in {path.relative_to(self.checkpoint.path) if self.shows_places else path}"
        return ""

    @property
    def ok(self) -> bool:
        """Return whether every weight is there, as it should be, and nothing else."""
        checkpoint = self.checkpoint
        unexpected = any(checkpoint.unexpected_keys.values())
        mismatched = any(stored.mismatches for stored in checkpoint.found)
        return not (checkpoint.broken or self.missing or unexpected or mismatched)

    def text(self) -> str:
        """Lay the report out for reading."""
        checkpoint = self.checkpoint
        lines = [f"{path}: {readable(size_on_disk(path))} on disk" for path in self.paths]
        lines += [f"  {note}" for note in checkpoint.notes]
        for stored in checkpoint.found:
            lines += component_lines(stored, self.place(stored))
        lines += [f"  {error}" for error in checkpoint.broken.values()]
        for path, names in checkpoint.unexpected_keys.items():
            lines += listed([f"  {path.name}: {name}: belongs to no part of the model" for name in names])
        lines += [f"  {checkpoint.family[name].title}: expected the folder {name}, found none" for name in self.missing]
        return "\n".join(map(shown, lines + memory_lines(checkpoint)))


def inspect(
    model: str | Path | None = None, files: Mapping[str, str | Path | None] = NONE, comfy: str | Path | None = None
) -> Report:
    """Look at a .safetensors file, an index of shards, a component's folder or a model's, by path or by name.

    files: in place of the model's parts, or alone. comfy: ComfyUI's folder `models`; without a model and files all of
    it. Raises `CheckpointError` when it is no model or can't be read.
    """
    named = {name: path for name, path in files.items() if path is not None}
    if comfy is not None and model is None and not named:
        return Report(checkpoint_of(open_comfy(comfy)), shows_places=True)
    return Report(open_named(model, named, comfy))


def component_lines(stored: StoredComponent, place: str = "") -> list[str]:
    """Describe a component: its numbers, dtypes, names and sizes, and each weight that is wrong."""
    prefix = f" under {stored.prefix!r}" if stored.prefix else ""
    numbers = f"{count_numbers(stored):,} numbers in {len(stored.tensors)} weights"
    return [
        f"  {stored.component.title}{place}: {numbers}, {dtypes(stored)}; {stored.naming.title}{prefix}",
        f"    {stored.component.describe(stored.config)}",
        *(f"    {note}" for note in what_is_lost(stored)),
        *left_out_lines(stored),
        *listed([f"    {mismatch}" for mismatch in stored.mismatches]),
    ]


def left_out_lines(stored: StoredComponent) -> list[str]:
    """Say which weights are not read, because the model has no use for them."""
    names = stored.left_out
    return [f"    {len(names)} more weights are not read, nor needed: {some_of(names)}"] if names else []


def dtypes(stored: StoredComponent) -> str:
    """Describe how a component's weights are stored: dtypes, float8 scales, quantised matrices."""
    counts = Counter(tensor.dtype for tensor in stored.tensors.values())
    listing = ", ".join(f"{tag} ({count})" if len(counts) > 1 else tag for tag, count in counts.most_common())
    scaled = f", {len(stored.scales)} of them scaled" if stored.scales else ""
    packed = [name for name in stored.tensors if is_packed(name, stored.tensors)]
    by_bits = Counter(bits_of(name, stored.tensors) for name in packed)
    return listing + scaled + "".join(f", {n} matrices quantised to {bits} bits" for bits, n in by_bits.items())


def memory_lines(checkpoint: Checkpoint) -> list[str]:
    """Say what the weights take in each memory mode, on a CPU and on a GPU."""
    components = checkpoint.components
    if not components:
        return []
    on_cpu = ", ".join(f"{readable(held(components, mode))} {mode}" for mode in MODES)
    for_mlx = {name: relaid(stored) for name, stored in components.items()}
    on_gpu = ", ".join(f"{readable(held(for_mlx, mode, None, blockwise=True))} {mode}" for mode in MODES)
    return [
        f"memory for the weights in float32 (on a CPU): {on_cpu}",
        f"memory for the weights as they are stored (MLX on a GPU): {on_gpu}",
    ]


def listed(lines: list[str]) -> list[str]:
    """Return the first lines of a long list, and how many more there are."""
    more = len(lines) - SHOWN
    return lines[:SHOWN] + ([f"    … and {more} more"] if more > 0 else [])


def size_on_disk(path: Path) -> int:
    """Return how many bytes a file, or all files of a folder, take."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


# -- the command ---------------------------------------------------------------------------------------------


@click.command("inspect", short_help="Say what a model is and whether it is whole.")
@click.argument("model", required=False)
@with_files
def command(model, **given):
    """Say what MODEL is, a folder or a .safetensors file: its parts, their sizes, and every weight that is not right.

    Files may be named in place of its parts, or alone; of ComfyUI's folder alone all that it has is said.

    Reads headers only, and fetches nothing: a name on the Hugging Face Hub is looked up in the cache. Exit code 1 when
    a weight is missing, unexpected or of a wrong shape.

    \b
    minflux inspect tiny
    minflux inspect flux1-dev.safetensors
    minflux inspect --comfy ComfyUI/models
    """
    files = take_files(given)
    comfy = files.pop("comfy")
    report = inspect(model, files, comfy)
    click.echo(report.text())
    if not report.ok:
        click.get_current_context().exit(1)
