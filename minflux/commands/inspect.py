"""What a model is, told without loading it: parts, variant, sizes, dtypes, memory, and every weight that is not right.

Only headers and configs are read, so 24 GB take no longer than 24 MB.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from minflux import zoo
from minflux.checkpoints import hub
from minflux.checkpoints.folder import KINDS, read_config, weights_path
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.formats.safetensors import METADATA, Stored, contents, read_header
from minflux.checkpoints.parts import (
    PIPELINES,
    REDUX,
    Mismatch,
    Part,
    check_no_redux,
    find_parts,
    mismatches,
    sizes_in,
    variant,
)
from minflux.checkpoints.quantise import bits_of, is_packed
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.memory import MODES, count, held
from minflux.model.clip import CLIPConfig
from minflux.model.flux import FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import VAEConfig

TITLES = {"transformer": "transformer", "vae": "autoencoder", "text_encoder": "CLIP", "text_encoder_2": "T5"}
NAMINGS = {"bfl": "BFL's names", "diffusers": "diffusers' names", "transformers": "Hugging Face's names"}
SHOWN = 20  # wrong weights listed a part


@dataclass(frozen=True)
class Found:
    """One part as it was found: where, what its config is, and which of its weights are not right."""

    path: Path
    part: Part
    cfg: Any
    wrong: list[Mismatch]


@dataclass(frozen=True)
class Report:
    """All that was found in a file or folder."""

    path: Path
    found: list[Found]
    unknown: dict[Path, list[str]]  # names that belong to no part
    missing: list[str] = field(default_factory=list)  # parts that a whole model has, and this one lacks
    notes: list[str] = field(default_factory=list)  # what is known of it beside its weights

    @property
    def whole(self) -> bool:
        """Whether every weight is there, as it should be, and nothing else."""
        return not self.missing and not any(self.unknown.values()) and not any(found.wrong for found in self.found)

    def text(self) -> str:
        """Lay the report out for reading."""
        lines = [f"{self.path}: {_bytes(_size_on_disk(self.path))} on disk", *(f"  {note}" for note in self.notes)]
        for found in self.found:
            lines += _part_lines(found)
        for path, names in self.unknown.items():
            lines += [f"  {path.name}: {name}: belongs to no part of FLUX.1" for name in names[:SHOWN]]
            lines += _and_more(names)
        lines += [f"  {TITLES[kind]}: expected the folder {kind}, found none" for kind in self.missing]
        parts = {found.part.kind: found.part for found in self.found}
        if parts:
            modes = ", ".join(f"{_bytes(held(parts, mode))} {mode}" for mode in MODES)
            on_gpu = ", ".join(f"{_bytes(held(parts, mode, None, blockwise=True))} {mode}" for mode in MODES)
            lines.append(f"memory for the weights in float32 (on a CPU): {modes}")
            lines.append(f"memory for the weights as they are stored (MLX on a GPU): {on_gpu}")
        return "\n".join(lines)


# -- looking -------------------------------------------------------------------------------------------------


def inspect(model: str | Path) -> Report:
    """Look at a .safetensors file, an index of shards, or a model folder, by path or by name (see `where`).

    Raises `CheckpointError` when it is no model or can't be read.
    """
    path = where(model)
    if path.is_dir():
        return _inspect_folder(path)
    held = contents(path)
    if REDUX in held:
        return Report(path, [], {}, notes=_redux(held))
    found, unknown = _inspect_file(path)
    return Report(path, found, {path: unknown}, notes=_named(path, found))


def where(model: str | Path) -> Path:
    """Find a file or folder, a model that ships here, or one of the Hugging Face Hub's that was fetched before.

    Raises `ArgumentError` when there is nothing under that name, `CheckpointError` when it would have to be fetched.
    """
    path, inside = Path(model), zoo.FOLDER / str(model)
    if inside.is_dir() or path.exists():
        return inside if inside.is_dir() else path
    if repository := hub.repository(str(model)):
        return hub.cached(repository)
    raise ArgumentError(f"model: {str(model)!r} is neither a file nor a folder, nor one that ships here")


def _inspect_file(path: Path) -> tuple[list[Found], list[str]]:
    held = contents(path)
    check_no_redux(path, held)
    parts, unknown = find_parts(held)
    if not parts:
        raise CheckpointError(f"{path}: holds no part of FLUX.1; its first names are {', '.join(sorted(held)[:3])}")
    return [Found(path, part, cfg := sizes_in(path, part), mismatches(part, cfg)) for part in parts], unknown


def _inspect_folder(folder: Path) -> Report:
    """Look at every component in diffusers' layout, and at every single file beside them."""
    found, unknown = [], {}
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    pipeline = str(index.get("_class_name"))
    notes = [f"model_index.json: a {pipeline}, {PIPELINES[pipeline]}"] if pipeline in PIPELINES else []
    embedder = weights_path(folder / "image_embedder", "diffusion_pytorch_model")
    if embedder.exists() and REDUX in (held := contents(embedder)):
        return Report(folder, [], {}, notes=notes + _redux(held))
    for kind, spec in KINDS.items():
        if not (folder / kind).is_dir():
            continue
        path = weights_path(folder / kind, spec.stem)
        parts, names = find_parts(contents(path))
        cfg = read_config(folder / kind / "config.json", spec)
        parts = [part for part in parts if part.kind == kind]
        if not parts:
            raise CheckpointError(f"{path}: expected the weights of {TITLES[kind]}, found none")
        found.append(Found(path, parts[0], cfg, mismatches(parts[0], cfg)))
        unknown[path] = names
    for path in sorted(folder.glob("*.safetensors")):
        more, unknown[path] = _inspect_file(path)
        found += more
    if not found:
        raise CheckpointError(f"{folder}: holds no part of FLUX.1: no component's folder, no .safetensors file")
    missing = [kind for kind in KINDS if kind not in {f.part.kind for f in found}]
    return Report(folder, found, unknown, missing if index else [], notes or _named(folder, found))


def _redux(held: dict[str, Stored]) -> list[str]:
    """Describe Redux's adapter: two matrices with biases."""
    up, down = (held[f"redux_{name}.weight"].shape if f"redux_{name}.weight" in held else () for name in ("up", "down"))
    codes = ", ".join(sorted({stored.code for stored in held.values()}))
    numbers = sum(math.prod(stored.shape) for stored in held.values())
    sizes = f"features of {up[1]} numbers to text tokens of {down[0]}, by {up[0]}" if len(up) == len(down) == 2 else ""
    return [
        f"{PIPELINES['FluxPriorReduxPipeline']}; minflux can't draw with it",
        f"  {numbers:,} numbers in {len(held)} weights, {codes}; {sizes or f'damaged: {up} and {down}'}",
    ]


def _named(path: Path, found: list[Found]) -> list[str]:
    """Tell Krea-dev and Kontext from dev by a name, for no weight does: the file's or folder's, or one inside."""
    dev = [f for f in found if isinstance(f.cfg, FluxConfig) and f.cfg.guidance_embed]
    names = [path.name, *(part for part in path.parts if part.startswith("models--"))]  # the Hub's cache
    for f in dev:
        config = f.path.with_name("config.json")
        names += [str(read_json(config).get("_name_or_path", ""))] if config.exists() else []
        if f.path.suffix == ".safetensors":
            names += map(str, read_header(f.path)[0].get(METADATA, {}).values())
    likely = [(name, word) for name in names for word in ("Krea", "Kontext") if word.lower() in name.lower()]
    return [f"named {name!r}: {word}{'-dev' * (word == 'Krea')}, it seems" for name, word in likely[:1] if dev]


# -- writing down --------------------------------------------------------------------------------------------


def _part_lines(found: Found) -> list[str]:
    part = found.part
    codes = Counter(stored.code for stored in part.found.values())
    dtypes = ", ".join(f"{code} ({count})" if len(codes) > 1 else code for code, count in codes.most_common())
    scaled = f", {len(part.scales)} of them scaled" if part.scales else ""
    packed = Counter(bits_of(name, part.found) for name in part.found if is_packed(name, part.found))
    scaled += "".join(f", {n} matrices quantised to {bits} bits" for bits, n in packed.items())
    where = f" under {part.prefix!r}" if part.prefix else ""
    lines = [
        f"  {TITLES[part.kind]}: {count(part):,} numbers in {len(part.found)} weights, {dtypes}{scaled}; "
        f"{NAMINGS[part.naming]}{where}",
        f"    {describe(found.cfg)}",
    ]
    for wrong in found.wrong[:SHOWN]:
        lines.append(f"    {wrong}")
    return lines + _and_more(found.wrong)


def _and_more(listed: list) -> list[str]:
    return [f"    … and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []


def describe(cfg: Any) -> str:
    """Say a part's sizes in one line."""
    match cfg:
        case FluxConfig():
            return (
                f"{variant(cfg)}; width {cfg.hidden_size}, {cfg.num_heads} heads, {cfg.depth} double and "
                f"{cfg.depth_single_blocks} single blocks, {cfg.in_channels} channels in"
            )
        case VAEConfig():
            return f"{cfg.z_channels} latent channels, {cfg.downscale} pixels a latent, levels {cfg.ch_mult} × {cfg.ch}"
        case T5Config():
            return f"width {cfg.d_model}, {cfg.num_layers} layers, {cfg.num_heads} heads, {cfg.vocab_size} tokens"
        case CLIPConfig():
            return f"width {cfg.hidden_size}, {cfg.num_hidden_layers} layers, {cfg.vocab_size} tokens"
    raise TypeError(f"no config: {cfg!r}")


def _size_on_disk(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


# -- the command ---------------------------------------------------------------------------------------------


@click.command("inspect", short_help="Say what a model is and whether it is whole.")
@click.argument("model")
def command(model):
    """Say what MODEL is, a folder or a .safetensors file: its parts, their sizes, and every weight that is not right.

    Reads headers only, and fetches nothing: a name on the Hugging Face Hub is looked up in the cache. Exit code 1 when
    a weight is missing, unexpected or of a wrong shape.

    \b
    minflux inspect tiny
    minflux inspect flux1-dev.safetensors
    """
    found = inspect(model)
    click.echo(found.text())
    if not found.whole:
        click.get_current_context().exit(1)
