"""LoRA: a small change to some of a model's matrices, W + scale · (α / r) · B A, with A (r, in) and B (out, r).

Three families of names are in use:

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight    PEFT's and diffusers'
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight     kohya's, with an α beside each pair
    double_blocks.0.img_attn.qkv.lora_A.weight                  BFL's

In all of them a key is a prefix, the name of a module under BFL's or diffusers' names (kohya's with underscores for
dots), and the role it plays. `read_lora` takes keys apart so, and says which it can't place.

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of, get_backend
from minflux.checkpoints import names
from minflux.checkpoints.folder import KINDS
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.formats.json_files import parse_json
from minflux.checkpoints.formats.safetensors import METADATA, contents, load, read_header
from minflux.checkpoints.parts import expected, some_of
from minflux.checkpoints.quantise import SCALES, holds_packed, stem_of
from minflux.errors import ArgumentError, CheckpointError

# How a module's name begins in a file, by the part of the model it is in.
PREFIXES = {
    "transformer": (
        "transformer.",
        "model.diffusion_model.",
        "diffusion_model.",
        "lora_unet_",
        "lora_transformer_",
        "",
    ),
    "text_encoder": ("text_encoder.", "lora_te1_", "lora_te_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
}  # fmt: skip
NAMINGS = {"transformer": ("bfl", "diffusers"), "text_encoder": ("transformers",), "text_encoder_2": ("transformers",)}
ROLES = {
    "down": ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight"),
    "up": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight"),
    "bias": ("lora_B.bias",),
    "alpha": ("alpha",),
}
OTHERS = ("dora_scale", "lora_magnitude_vector", "hada_w1", "lokr_w1", "oft_blocks", "diff_b", "lora_mid")


@dataclass(frozen=True)
class Module:
    """A matrix that a LoRA may change: the part of the model, its name there, and which part of a joint matrix."""

    kind: str
    stem: str
    joint: int | None = None
    swapped: bool = False  # diffusers' final modulation, whose halves lie the other way round


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to one matrix, or to one part of a joint one: up @ down, and to the bias where it has any.

    `source` is its file and name, for messages.
    """

    source: str
    module: Module
    down: np.ndarray  # (r, in) float32
    up: np.ndarray  # (out, r) float32, times scale · α / r
    bias: np.ndarray | None = None


# -- reading -------------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[Path, float]:
    """Split "FILE:SCALE" or "FILE" into path and scale, 1 unless given; raises `ArgumentError` for what is no number.

    >>> parse("style.safetensors:0.8")
    (PosixPath('style.safetensors'), 0.8)
    """
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentError(f"lora: expected FILE or FILE:SCALE with a number for the scale, got {text!r}")
    return Path(path), value


def read_loras(texts: Sequence[str], configs: dict[str, Any]) -> list[Change]:
    """Read several LoRAs, each given as "FILE" or "FILE:SCALE", for the parts of a model (see `read_lora`)."""
    return [change for path, scale in map(parse, texts) for change in read_lora(path, configs, scale)]


def read_lora(path: Path, configs: dict[str, Any], scale: float = 1.0) -> list[Change]:
    """Read a LoRA file for the parts of a model, kind -> config.

    Warns of keys that fit nothing. Raises `CheckpointError` when no key fits, when half of a pair is missing, when a
    shape is not the matrix's, when a number is not finite, and for kinds of adapter that are no LoRA.
    """
    found = contents(path)
    strange = [key for key in found if any(mark in key for mark in OTHERS)]
    if strange:
        raise CheckpointError(f"{path}: {strange[0]}: is of another kind of adapter than LoRA; minflux can't add it")
    known = {kind: modules(kind, cfg) for kind, cfg in configs.items() if kind in NAMINGS}
    roles: dict[Module, dict[str, np.ndarray]] = defaultdict(dict)
    spelled: dict[Module, str] = {}
    unmatched = []
    for key, stored in found.items():
        module, name, role = _place(key, known)
        if module is None:
            unmatched.append(key)
        elif role in roles[module]:
            raise CheckpointError(f"{path}: {key}: is there twice, under different names")
        elif stored.code not in FLOATS:
            raise CheckpointError(f"{path}: {key}: expected floats, found {stored.code}")
        else:
            roles[module][role], spelled[module] = load(stored, get_backend("numpy")), name
    if not roles:
        raise CheckpointError(f"{path}: none of its {len(found)} keys fits this model; it has {some_of(unmatched)}")
    if unmatched:
        warnings.warn(f"{path}: left out {len(unmatched)} keys that fit nothing: {some_of(unmatched)}", stacklevel=2)
    settings = read_settings(path)
    return [
        _change(f"{path}: {spelled[module]}", module, arrays, scale, configs, settings.of(spelled[module]))
        for module, arrays in roles.items()
    ]


def _place(key: str, known: dict[str, dict[str, Module]]) -> tuple[Module | None, str, str]:
    """Tell which module a key belongs to, how the file spells it, and the key's role."""
    for role, endings in ROLES.items():
        for ending in endings:
            name = key.removesuffix(f".{ending}")
            for kind, table in known.items() if name != key else ():
                for prefix in PREFIXES[kind]:
                    bare = name.removeprefix(prefix)
                    if name == prefix + bare and bare in table:
                        return table[bare], name, role
    return None, key, ""


def modules(kind: str, cfg: Any) -> dict[str, Module]:
    """Name every matrix of a part in all ways that files do: BFL's and diffusers' names, with dots or underscores."""
    table = {}
    for naming in NAMINGS[kind]:
        for name, shape in expected(kind, naming, cfg).items():
            stem, _, leaf = name.rpartition(".")
            if leaf == "weight" and len(shape) == 2:
                table[stem] = table[stem.replace(".", "_")] = _module(kind, naming, stem)
    return table


def _module(kind: str, naming: str, stem: str) -> Module:
    if naming != "diffusers":
        return Module(kind, stem)
    ours, _, joint = names.rename(stem, names.FLUX_RULES).partition("@")
    return Module(kind, ours, int(joint) if joint else None, swapped=ours == names.FINAL_MODULATION)


# -- how strong ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """PEFT's settings, which diffusers writes into the header: "transformer.lora_alpha" and others."""

    values: dict[str, Any]

    def of(self, name: str) -> tuple[float | None, bool]:
        """Give a module's α, None where the file doesn't say, and whether it is divided by √r in place of r."""
        part, _, stem = name.partition(".")
        patterns = self.values.get(f"{part}.alpha_pattern", {})
        fitting = (a for pattern, a in patterns.items() if stem == pattern or stem.endswith(f".{pattern}"))
        alpha = next(fitting, self.values.get(f"{part}.lora_alpha"))
        return alpha, bool(self.values.get(f"{part}.use_rslora"))


def read_settings(path: Path) -> Settings:
    """Read what a file's header says of its α; nothing in most files."""
    header, _ = read_header(path)
    text = header.get(METADATA, {}).get("lora_adapter_metadata", "{}")
    settings = parse_json(path, str(text).encode())
    for key, value in settings.items():
        if key.endswith("alpha_pattern"):
            fits = isinstance(value, dict) and all(map(is_number, value.values()))
        else:
            fits = not key.endswith("lora_alpha") or is_number(value)
        if not fits:
            raise CheckpointError(f"{path}: {key}: expected numbers, found {value!r}")
    return Settings(settings)


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number that a float32 can hold."""
    return isinstance(value, int | float) and abs(value) < 1e38


def _change(
    where: str, module: Module, arrays: dict[str, np.ndarray], scale: float, configs: dict[str, Any], how: tuple
) -> Change:
    """Check a pair against the matrix that it changes, and bring in α and scale."""
    if "down" not in arrays or "up" not in arrays:
        raise CheckpointError(f"{where}: expected a pair, found {' and '.join(sorted(arrays))} alone")
    if min(arrays["down"].size, arrays["up"].size) == 0:
        raise CheckpointError(f"{where}: expected a rank of at least 1, found 0")
    if min(arrays["down"].ndim, arrays["up"].ndim) < 2 or arrays.get("alpha", np.ones(1)).size != 1:
        raise CheckpointError(f"{where}: expected two matrices and at most one number α, found other shapes")
    down, up = (arrays[role].reshape(len(arrays[role]), -1) for role in ("down", "up"))  # some are 1×1 kernels
    rank, (rows, columns) = len(down), shape_of(module, configs[module.kind])
    has_bias = f"{module.stem}.bias" in KINDS[module.kind].shapes(configs[module.kind])
    if "bias" in arrays and not (has_bias and arrays["bias"].shape == (rows,)):
        raise CheckpointError(
            f"{where}: expected {f'a bias ({rows},)' if has_bias else 'no bias'}, found {arrays['bias'].shape}"
        )
    if (up.shape[0], down.shape[1]) != (rows, columns) or up.shape[1] != rank:
        raise CheckpointError(
            f"{where}: expected ({rows}, r) and (r, {columns}), found {up.shape} and {down.shape}: "
            "made for another model, or for a control picture"
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise CheckpointError(f"{where}: expected finite numbers, found NaN or infinity")
    alpha, by_root = how
    alpha = arrays["alpha"].item() if "alpha" in arrays else rank if alpha is None else alpha
    with np.errstate(over="ignore", invalid="ignore"):  # found when it is added
        strength = np.float32(scale * alpha / (math.sqrt(rank) if by_root else rank))
        up, bias = up * strength, strength * arrays["bias"] if "bias" in arrays else None
    if module.swapped:
        up, bias = names.exchanged(up), None if bias is None else names.exchanged(bias)
    return Change(where, module, down, up, bias)


def shape_of(module: Module, cfg: Any) -> tuple[int, int]:
    """Give the shape of the matrix that a module names: of a part of a joint matrix, that part's."""
    rows, columns = KINDS[module.kind].shapes(cfg)[f"{module.stem}.weight"]
    return (rows, columns) if module.joint is None else (len(range(rows)[rows_of(module, columns)]), columns)


def rows_of(module: Module, columns: int) -> slice:
    """Tell which rows of a matrix a module's part takes."""
    return slice(None) if module.joint is None else names.joint_rows(module.stem, module.joint, columns)


# -- adding --------------------------------------------------------------------------------------------------


def added(flat: dict[str, Array], changes: Sequence[Change]) -> dict[str, Array]:
    """Add changes to the weights that they name, W + B A in float32, each kept in its own dtype.

    A quantised matrix stays as it is, and A and B are put beside it (see `beside`). `flat` holds weights of one part,
    or some of them, under our names; changes to others are passed over.
    """
    flat = dict(flat)
    for change in changes:
        stem, rows = change.module.stem, rows_of(change.module, change.down.shape[1])
        weight, bias = f"{stem}.weight", f"{stem}.bias"
        if weight in flat and not holds_packed(flat[weight]):
            with np.errstate(all="ignore"):  # too large a number is found in the sum
                flat[weight] = _added(flat[weight], change.up @ change.down, rows)
            check_sum(flat[weight], [change])
        if bias in flat and change.bias is not None:
            flat[bias] = _added(flat[bias], change.bias, rows)
            check_sum(flat[bias], [change])
    return flat | beside({name: array for name, array in flat.items() if name.endswith(SCALES)}, changes)


def beside(scales: dict[str, Array], changes: Sequence[Change]) -> dict[str, Array]:
    """Make side branches of quantised matrices, given by their scales: x Wᵀ + (x Aᵀ) Bᵀ, all LoRAs in one A and B."""
    branches: dict[str, Array] = {}
    for name, array in scales.items():
        stem, nx = stem_of(name), backend_of(array)
        own = [change for change in changes if change.module.stem == stem]
        if own:
            ups = [_placed(change.up, array.shape[0], rows_of(change.module, change.down.shape[1])) for change in own]
            down = np.concatenate([change.down for change in own])
            for role, branch in (("down", down), ("up", np.concatenate(ups, axis=1))):
                branches[f"{stem}.lora.{role}"] = nx.array(branch).astype(array.dtype)
                check_sum(branches[f"{stem}.lora.{role}"], own)
            with np.errstate(over="ignore"):
                most = np.array([np.abs(change.up).max() * np.abs(change.down).max() for change in own])
            check_sum(nx.array(most).astype(array.dtype), own)
    return branches


def check_sum(array: Array, changes: Sequence[Change]) -> None:
    """Raise `CheckpointError` when a weight is NaN or infinity after these changes, for it was finite before."""
    if not bool(backend_of(array).xp.isfinite(array).all()):
        sources = " and ".join(change.source for change in changes)
        raise CheckpointError(f"{sources}: too large for {array.dtype} when added; use a smaller scale")


def _placed(part: np.ndarray, rows: int, at: slice) -> np.ndarray:
    """Put the rows of a part of a joint matrix into their place among zeros."""
    whole = np.zeros((rows, *part.shape[1:]), np.float32)
    whole[at] = part
    return whole


def _added(weight: Array, delta: np.ndarray, at: slice) -> Array:
    nx = backend_of(weight)
    return (nx.as_float32(weight) + nx.array(_placed(delta, weight.shape[0], at))).astype(weight.dtype)
