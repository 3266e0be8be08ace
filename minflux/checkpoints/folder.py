"""A component of a model folder in diffusers' layout: its config and its weights, read, checked, written.

    folder/transformer/config.json    folder/transformer/diffusion_pytorch_model.safetensors
    folder/vae/…                      folder/text_encoder/model.safetensors    folder/text_encoder_2/…

What the config asks for is compared with what the file's header promises before any weight is read. The
shapes to expect need no list: the shapes of our tree, sent through the same renaming as real weights, are
those of the file.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array, Tree
from minflux.backend import backend_of
from minflux.checkpoints import config, names
from minflux.checkpoints import expected as shapes
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.formats.json_files import read_json, write_json
from minflux.checkpoints.formats.safetensors import PICKLE, Stored, same_bytes, write_safetensors
from minflux.checkpoints.names import Flat
from minflux.checkpoints.quantise import is_packed
from minflux.checkpoints.tree import flatten
from minflux.errors import CheckpointError

DEPTHS = ("depth", "depth_single_blocks", "num_layers", "num_hidden_layers", "num_res_blocks")
DEEPEST = 1000  # blocks; a damaged config could ask for a billion
OWN_FILE = "minflux.safetensors"  # a component's weights under our names, quantised or not


@dataclass(frozen=True)
class Kind:
    """How one kind of component is stored: its config, its weights' names, its file.

    `alias` gives a name in a file its standard form, or None to a weight that is not used.
    """

    read_config: Callable[[dict], Any]
    write_config: Callable[[Any], dict]
    shapes: Callable[[Any], shapes.Shapes]
    to_ours: Callable[[Flat], Flat] = dict
    to_file: Callable[[Flat], Flat] = dict
    alias: Callable[[str], str | None] = str
    stem: str = "model"


def vae_to_ours(flat: Flat) -> Flat:
    """diffusers' autoencoder to our tree's names and layout."""
    return names.to_channels_last(names.vae_to_bfl(flat))


def vae_to_file(flat: Flat) -> Flat:
    """Undo `vae_to_ours`."""
    return names.vae_to_diffusers(names.to_torch_layout(flat))


def t5_alias(name: str) -> str | None:
    """Some files hold the token table, and its scale, twice, or under their second name only."""
    return name.replace("encoder.embed_tokens.", "shared.", 1) if name.startswith("encoder.embed_tokens.") else name


def clip_alias(name: str) -> str | None:
    """transformers 5 drops the prefix "text_model."; old files hold the numbers 0 to 76 as a weight."""
    if name.endswith("position_ids"):
        return None
    return name if name.startswith("text_model.") else f"text_model.{name}"


KINDS = {
    "transformer": Kind(
        config.read_flux_config, config.write_flux_config, shapes.flux_shapes,
        names.flux_to_bfl, names.flux_to_diffusers, stem="diffusion_pytorch_model",
    ),
    "vae": Kind(
        config.read_vae_config, config.write_vae_config, shapes.vae_shapes,
        vae_to_ours, vae_to_file, stem="diffusion_pytorch_model",
    ),
    "text_encoder": Kind(
        config.read_clip_config, config.write_clip_config, shapes.clip_shapes, alias=clip_alias
    ),
    "text_encoder_2": Kind(config.read_t5_config, config.write_t5_config, shapes.t5_shapes, alias=t5_alias),
}  # fmt: skip


# -- reading -------------------------------------------------------------------------------------------------


def read_config(path: Path, spec: Kind) -> Any:
    """Read a component's config.json; its errors name the file."""
    try:
        cfg = spec.read_config(read_json(path))
        deep = [f.name for f in fields(cfg) if f.name in DEPTHS and getattr(cfg, f.name) > DEEPEST]
        if deep:
            raise CheckpointError(f"expected at most {DEEPEST} for {deep[0]}, found {getattr(cfg, deep[0])}")
        return cfg
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a config of {path.parent.name}, can't read it: {error}") from error


@dataclass(frozen=True)
class Copy:
    """A weight that a file holds under two names."""

    name: str
    other: str
    stored: Stored
    again: Stored

    def check(self) -> None:
        """Raise `CheckpointError` unless the numbers under both names are the same, to the bit."""
        both = [(stored.code, stored.shape) for stored in (self.stored, self.again)]
        if both[0] != both[1] or not same_bytes(self.stored, self.again):
            raise CheckpointError(
                f"{self.again.path}: {self.name}, {self.other}: expected one weight under two names, found two"
            )


def standard_names(found: dict[str, Stored], spec: Kind, prefix: str = "") -> tuple[dict[str, Stored], dict[str, Copy]]:
    """Give every stored weight its standard name, and leave out those that are not used; list those found twice.

    prefix: what was taken off the names in `found`, for messages.
    """
    named: dict[str, str] = {}
    copies = {}
    for name in sorted(found, key=lambda name: spec.alias(name) != name):  # of two names, the standard one first
        alias = spec.alias(name)
        if alias in named:
            copies[alias] = Copy(prefix + named[alias], prefix + name, found[named[alias]], found[name])
        elif alias is not None:
            named[alias] = name
    return {alias: found[name] for alias, name in named.items()}, copies


def weights_path(part: Path, stem: str) -> Path:
    """Find a component's weights: one file, the index of several, or a file of minflux's own."""
    whole = part / f"{stem}.safetensors"
    pickles = [path.name for path in sorted(part.glob("*")) if path.suffix in (".bin", ".ckpt", ".pt", ".pth")]
    if pickles and not list(part.glob("*.safetensors*")):
        raise CheckpointError(f"{part}: expected {stem}.safetensors, found {pickles[0]} alone, a pickle, {PICKLE}")
    others = (part / f"{stem}.safetensors.index.json", part / OWN_FILE)
    return next((path for path in (whole, *others) if path.exists()), whole)


def file_shapes(spec: Kind, cfg: Any) -> shapes.Shapes:
    """Work out a file's names and shapes: arrays that take no memory, renamed as weights are on writing."""
    ghosts = {name: np.broadcast_to(np.int8(0), shape) for name, shape in spec.shapes(cfg).items()}
    return {name: ghost.shape for name, ghost in spec.to_file(ghosts).items()}


def check_shapes(path: Path, found: dict[str, Stored], expected: shapes.Shapes) -> None:
    """Raise `CheckpointError` at the first weight that is missing, of another shape, no floats, or not asked for."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path}: {name}: expected shape {shape}, found no such weight")
        if found[name].shape != shape:
            raise CheckpointError(f"{found[name].path}: {name}: expected shape {shape}, found {found[name].shape}")
        if not has_right_code(name, found):
            what = "packed numbers" if is_packed(name, found) else "floats"
            raise CheckpointError(f"{found[name].path}: {name}: expected {what}, found {found[name].code}")
    for name in found.keys() - expected.keys():
        raise CheckpointError(f"{found[name].path}: {name}: expected no such weight, found {found[name].shape}")


def has_right_code(name: str, found: dict[str, Stored]) -> bool:
    """Tell whether a weight is stored as floats, or a quantised one as packed numbers."""
    return found[name].code in (("U32",) if is_packed(name, found) else FLOATS)


def check_finite(path: Path, name: str, array: Array) -> None:
    """Raise `CheckpointError` when a weight holds NaN or infinity."""
    if not bool(backend_of(array).xp.isfinite(array).all()):
        raise CheckpointError(f"{path}: {name}: expected finite numbers, found NaN or infinity")


# -- writing -------------------------------------------------------------------------------------------------


def save_component(folder: str | Path, kind: str, cfg: Any, p: Tree, dtype: str | None = None) -> None:
    """Write a component's config and weights so that diffusers or transformers, and `load_component`, open
    it.

    Floats are stored as `dtype` ("float32", "float16" or "bfloat16"), or as they are.
    """
    spec, part = KINDS[kind], Path(folder) / kind
    part.mkdir(parents=True, exist_ok=True)
    write_safetensors(part / f"{spec.stem}.safetensors", spec.to_file(flatten(p)), dtype=dtype)
    write_json(part / "config.json", spec.write_config(cfg))
