"""LoRA: a small change to some of a model's matrices, W + scale · (α / r) · B A, with A (r, in) and B (out, r).

Four families of names are in use:

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight    PEFT's and diffusers'
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight     kohya's, with an α beside each pair
    double_blocks.0.img_attn.qkv.lora_A.weight                  BFL's
    double_blocks.0.processor.qkv_lora1.down.weight             XLabs'

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
from minflux.checkpoints.components import COMPONENTS, Component
from minflux.checkpoints.components.flux import exchanged
from minflux.checkpoints.components.renaming import joint_rows, parts_of, rename
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.formats.safetensors import Stored, contents, read_array
from minflux.checkpoints.lora_files import locate_lora
from minflux.checkpoints.lora_settings import read_settings
from minflux.checkpoints.open import some_of
from minflux.checkpoints.quantise import SCALES, holds_packed, stem_of
from minflux.errors import CheckpointError

ROLES = {
    "down": ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight", "down.weight"),
    "up": ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight", "up.weight"),
    "bias": ("lora_B.bias",),
    "alpha": ("alpha",),
}
OTHERS = ("dora_scale", "lora_magnitude_vector", "hada_w1", "lokr_w1", "oft_blocks", "diff_b", "lora_mid")


@dataclass(frozen=True)
class Module:
    """A matrix that a LoRA may change: its component, our name of it, and which parts of a joint matrix it has.

    `parts` is None for a whole matrix. `exchanged` marks the module whose halves lie the other way round in the file:
    diffusers' final modulation.
    """

    component: str
    stem: str
    parts: range | None = None
    exchanged: bool = False

    def rows(self, columns: int) -> slice:
        """Return the rows of our matrix, of so many columns, that are the module's."""
        if self.parts is None:
            return slice(None)
        count = parts_of(self.stem, COMPONENTS[self.component].joints)
        first, last = (joint_rows(part, count, columns) for part in (self.parts[0], self.parts[-1]))
        return slice(first.start, last.stop)

    def overlaps(self, other: "Module") -> bool:
        """Return whether two modules share rows of a matrix."""
        if (self.component, self.stem) != (other.component, other.stem):
            return False
        return self.parts is None or other.parts is None or bool(set(self.parts) & set(other.parts))


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

    @property
    def rows(self) -> slice:
        """Return the rows of our matrix that the change is for."""
        return self.module.rows(columns=self.down.shape[1])


# -- reading -------------------------------------------------------------------------------------------------


def read_loras(texts: Sequence[str], configs: dict[str, Any]) -> list[Change]:
    """Read several LoRAs, each given as `locate_lora` takes it, for the components of a model (see `read_lora`)."""
    return [change for path, scale in map(locate_lora, texts) for change in read_lora(path, configs, scale)]


def read_lora(path: Path, configs: dict[str, Any], scale: float = 1.0) -> list[Change]:
    """Read a LoRA file for the components of a model, name -> config.

    Warns of keys that fit nothing. Raises `CheckpointError` when no key fits, when half of a pair is missing, when a
    shape is not the matrix's, when a number is not finite, and for kinds of adapter that are no LoRA.
    """
    found = contents(path)
    check_kind(path, found)
    known = {name: modules(COMPONENTS[name], config) for name, config in configs.items()}
    placed, unmatched = place_keys(path, found, known)
    check_once(path, placed)
    if not placed:
        raise CheckpointError(f"{path}: none of its {len(found)} keys fits this model; it has {some_of(unmatched)}")
    if unmatched:
        warnings.warn(f"{path}: left out {len(unmatched)} keys that fit nothing: {some_of(unmatched)}", stacklevel=2)
    settings = read_settings(path)
    changes = []
    for (module, spelled), roles in placed.items():
        arrays = {role: read_array(stored, get_backend("numpy")) for role, stored in roles.items()}
        matrix = Matrix(f"{path}: {spelled}", module, configs[module.component])
        matrix.check(arrays, settings.rank(spelled))
        changes.append(matrix.change(arrays, scale, (settings.alpha(spelled), settings.by_root(spelled))))
    return changes


def check_kind(path: Path, found: dict[str, Stored]) -> None:
    """Raise `CheckpointError` for a file of adapters that are no LoRA."""
    strange = [key for key in found if any(mark in key for mark in OTHERS)]
    if strange:
        raise CheckpointError(f"{path}: {strange[0]}: is an adapter of another kind than LoRA; minflux can't add it")


# -- names ---------------------------------------------------------------------------------------------------

Placed = dict[tuple[Module, str], dict[str, Stored]]  # by module and how the file spells it: role -> array


def place_keys(path: Path, found: dict[str, Stored], known: dict[str, dict[str, Module]]) -> tuple[Placed, list[str]]:
    """Sort a file's arrays by the module they are for; return them, and the keys that fit no module.

    Raises `CheckpointError` for two keys of one role in one module, and for numbers that are no floats.
    """
    spellings: dict[Module, str] = {}
    placed: Placed = defaultdict(dict)
    unmatched = []
    for key, stored in found.items():
        module, spelled, role = place(key, known)
        if module is None:
            unmatched.append(key)
            continue
        roles = placed[module, spellings.setdefault(module, spelled)]
        if role in roles:
            raise CheckpointError(f"{path}: {key}: is there twice, under different names")
        if stored.dtype not in FLOATS:
            raise CheckpointError(f"{path}: {key}: expected floats, found {stored.dtype}")
        roles[role] = stored
    return dict(placed), unmatched


def check_once(path: Path, placed: Placed) -> None:
    """Raise `CheckpointError` when a file changes the same rows of a joint matrix twice: both would be added."""
    matrices: dict[tuple[str, str], list[tuple[Module, str]]] = defaultdict(list)
    for module, spelled in placed:
        for before, other in matrices[module.component, module.stem]:
            if before.overlaps(module):
                raise CheckpointError(
                    f"{path}: {spelled} and {other} change the same matrix under two namings; remove one of them"
                )
        matrices[module.component, module.stem].append((module, spelled))


def place(key: str, known: dict[str, dict[str, Module]]) -> tuple[Module | None, str, str]:
    """Return which module a key belongs to, how the file spells it, and the key's role; None, if it fits none."""
    for role, endings in ROLES.items():
        for ending in endings:
            spelled = key.removesuffix(f".{ending}")
            module = find_module(spelled, known) if spelled != key else None
            if module is not None:
                return module, spelled, role
    return None, key, ""


def find_module(spelled: str, known: dict[str, dict[str, Module]]) -> Module | None:
    """Return the module that a file spells so, None if there is none."""
    for name, table in known.items():
        for prefix in COMPONENTS[name].lora_prefixes:
            bare = spelled.removeprefix(prefix)
            if spelled == prefix + bare and bare in table:
                return table[bare]
    return None


def modules(component: Component, config: Any) -> dict[str, Module]:
    """Map every name that files have for a component's matrices, with dots or underscores, to the module."""
    table = {}
    for naming in component.namings if component.lora_prefixes else ():
        for name, shape in component.file_shapes(naming, config).items():
            if name.endswith(".weight") and len(shape) == 2:
                spelled = stem_of(name)
                module = as_module(component, stem_of(naming.our_part(name, config)), naming.exchanged)
                table[spelled] = table[spelled.replace(".", "_")] = module
    for name in component.shapes(config) if component.lora_rules else ():
        table |= under_lora_rules(component, stem_of(name))
    return table


def under_lora_rules(component: Component, stem: str) -> dict[str, Module]:
    """Map the names that LoRA files alone have for a module of ours, or for parts of it."""
    found = {}
    for theirs, ours in component.lora_rules:
        whole, _, parts = ours.partition("@")
        spelled = rename(stem, [(whole, theirs)])
        if spelled != stem:
            found[spelled] = as_module(component, f"{stem}@{parts}" if parts else stem)
    return found


def as_module(component: Component, text: str, exchanged: Sequence[str] = ()) -> Module:
    """Make a module of our name for it, which may end in the parts of a joint matrix: "qkv@1", "linear1@0-2"."""
    stem, _, parts = text.partition("@")
    first, _, last = parts.partition("-")
    span = range(int(first), int(last or first) + 1) if parts else None
    return Module(component.name, stem, span, stem in exchanged)


# -- one matrix ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """The matrix that a LoRA's arrays are for; `where` is file and name, for messages."""

    where: str
    module: Module
    config: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the matrix: of a part of a joint matrix, that part's."""
        shapes = COMPONENTS[self.module.component].shapes(self.config)
        rows, columns = shapes[f"{self.module.stem}.weight"]
        return len(range(rows)[self.module.rows(columns)]), columns

    @property
    def has_bias(self) -> bool:
        """Return whether the model has a bias beside the matrix."""
        return f"{self.module.stem}.bias" in COMPONENTS[self.module.component].shapes(self.config)

    def check(self, arrays: dict[str, np.ndarray], rank: float | None = None) -> None:
        """Raise `CheckpointError` unless the arrays are a pair of this matrix, of this rank, all of them finite."""
        if "down" not in arrays or "up" not in arrays:
            self.refuse(f"expected a pair, found {' and '.join(sorted(arrays))} alone")
        down, up = arrays["down"], arrays["up"]
        if min(down.size, up.size) == 0:
            self.refuse("expected a rank of at least 1, found 0")
        if min(down.ndim, up.ndim) < 2 or arrays.get("alpha", np.ones(1)).size != 1:
            self.refuse("expected two matrices and at most one number α, found other shapes")
        self.check_bias(arrays.get("bias"))
        self.check_pair(as_matrix(down), as_matrix(up))
        if rank not in (None, len(down)):
            self.refuse(f"expected rank {rank}, as its settings say, found {len(down)}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            self.refuse("expected finite numbers, found NaN or infinity")

    def check_bias(self, bias: np.ndarray | None) -> None:
        """Raise `CheckpointError` for a bias of another shape than the model's."""
        rows, _ = self.shape
        if bias is not None and not (self.has_bias and bias.shape == (rows,)):
            self.refuse(f"expected {f'a bias ({rows},)' if self.has_bias else 'no bias'}, found {bias.shape}")

    def check_pair(self, down: np.ndarray, up: np.ndarray) -> None:
        """Raise `CheckpointError` unless up @ down has the matrix's shape."""
        rows, columns = self.shape
        if up.shape != (rows, len(down)) or down.shape[1] != columns:
            self.refuse(
                f"expected ({rows}, r) and (r, {columns}), found {up.shape} and {down.shape}: "
                "made for another model, or for a control image"
            )

    def refuse(self, why: str) -> None:
        """Raise `CheckpointError`."""
        raise CheckpointError(f"{self.where}: {why}")

    def change(self, arrays: dict[str, np.ndarray], scale: float, how: tuple[float | None, bool]) -> Change:
        """Make the change that checked arrays stand for: up and bias times scale · α / r, or / √r where `how` says."""
        down, up, bias = as_matrix(arrays["down"]), as_matrix(arrays["up"]), arrays.get("bias")
        alpha, by_root = how
        rank = len(down)
        alpha = arrays["alpha"].item() if "alpha" in arrays else rank if alpha is None else alpha
        with np.errstate(over="ignore", invalid="ignore"):  # found when it is added
            strength = np.float32(scale * alpha / (math.sqrt(rank) if by_root else rank))
            up, bias = up * strength, None if bias is None else strength * bias
        if self.module.exchanged:
            up, bias = exchanged(up), None if bias is None else exchanged(bias)
        return Change(self.where, self.module, down, up, bias)


def as_matrix(array: np.ndarray) -> np.ndarray:
    """Return an array as a matrix: some are stored as 1×1 kernels."""
    return array.reshape(len(array), -1)


# -- adding --------------------------------------------------------------------------------------------------


def add_loras(flat: dict[str, Array], changes: Sequence[Change], merge: bool = True) -> dict[str, Array]:
    """Add changes to the weights that they name, W + B A in float32, each kept in its own dtype.

    A quantised matrix stays as it is, and A and B become a branch beside it (see `lora_branches`); without `merge`
    every matrix does. `flat` holds weights of one component, or some of them, under our names; changes to others are
    passed over.
    """
    flat = dict(flat)
    for change in changes:
        weight, bias = f"{change.module.stem}.weight", f"{change.module.stem}.bias"
        if merge and weight in flat and not holds_packed(flat[weight]):
            with np.errstate(all="ignore"):  # too large a number is found in the sum
                flat[weight] = added(flat[weight], change.up @ change.down, change.rows)
            check_sum(flat[weight], [change])
        if bias in flat and change.bias is not None:
            flat[bias] = added(flat[bias], change.bias, change.rows)
            check_sum(flat[bias], [change])
    ending = f".{SCALES}" if merge else ".weight"
    sized = {name: array for name, array in flat.items() if name.endswith(ending) and array.ndim == 2}
    return flat | lora_branches(sized, changes)


def lora_branches(sized: dict[str, Array], changes: Sequence[Change]) -> dict[str, Array]:
    """Make side branches of matrices: x Wᵀ + (x Aᵀ) Bᵀ, all LoRAs of a matrix in one A and one B.

    `sized` has for each matrix an array with its rows and its dtype: a quantised one's scales, or the matrix itself.
    """
    branches: dict[str, Array] = {}
    for name, array in sized.items():
        stem = stem_of(name)
        own = [change for change in changes if change.module.stem == stem]
        if own:
            check_product(array, own)
            ups = [placed_rows(change.up, array.shape[0], change.rows) for change in own]
            down, up = np.concatenate([change.down for change in own]), np.concatenate(ups, axis=1)
            branches[f"{stem}.lora.down"] = cast_like(down, array, own)
            branches[f"{stem}.lora.up"] = cast_like(up, array, own)
    return branches


def cast_like(branch: np.ndarray, array: Array, changes: Sequence[Change]) -> Array:
    """Return a branch as an array of another's backend and dtype; raises `CheckpointError` where it is too large."""
    result = backend_of(array).array(branch).astype(array.dtype)
    check_sum(result, changes)
    return result


def check_product(array: Array, changes: Sequence[Change]) -> None:
    """Raise `CheckpointError` when up @ down may be too large for the array's dtype."""
    with np.errstate(over="ignore"):
        largest = np.array([np.abs(change.up).max() * np.abs(change.down).max() for change in changes])
    check_sum(backend_of(array).array(largest).astype(array.dtype), changes)


def check_sum(array: Array, changes: Sequence[Change]) -> None:
    """Raise `CheckpointError` when a weight is NaN or infinity after these changes, for it was finite before."""
    if not bool(backend_of(array).xp.isfinite(array).all()):
        sources = " and ".join(change.source for change in changes)
        raise CheckpointError(f"{sources}: too large for {array.dtype} when added; use a smaller scale")


def added(weight: Array, delta: np.ndarray, rows: slice) -> Array:
    """Return a weight with a change added to some of its rows, in its own dtype."""
    nx = backend_of(weight)
    whole = nx.array(placed_rows(delta, weight.shape[0], rows))
    return (nx.as_float32(weight) + whole).astype(weight.dtype)


def placed_rows(part: np.ndarray, count: int, rows: slice) -> np.ndarray:
    """Put the rows of a part of a joint matrix into their place among `count` rows of zeros."""
    whole = np.zeros((count, *part.shape[1:]), np.float32)
    whole[rows] = part
    return whole
