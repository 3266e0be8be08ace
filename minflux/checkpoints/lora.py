"""LoRA: a small change to some of a model's matrices, W + scale · (α / r) · B A, with A (r, in) and B (out, r).

Four families of names are in use:

    transformer.transformer_blocks.0.attn.to_q.lora_A.weight    PEFT's and diffusers'
    lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight     kohya's, with an α beside each pair
    double_blocks.0.img_attn.qkv.lora_A.weight                  BFL's
    double_blocks.0.processor.qkv_lora1.down.weight             XLabs'

`lora_names` takes keys apart, `lora_kinds` has what may stand in B A's place: full differences, LoHa, LoKr, and DoRA.
`read_lora` says which keys it can't place, and what of a file can't be honoured.

Source: Hu et al. 2021 (arXiv 2106.09685).
"""

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minflux.arrays import Array
from minflux.backend import backend_of, get_backend
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components.renaming import exchanged
from minflux.checkpoints.formats.safetensors import contents, read_array
from minflux.checkpoints.lora_families import check_kind, widened_by
from minflux.checkpoints.lora_files import locate_lora
from minflux.checkpoints.lora_kinds import DIFFERENCE, LORA, NORM, Arrays, Kind, kinds_of, with_magnitude
from minflux.checkpoints.lora_names import Module, check_once, modules, place_keys
from minflux.checkpoints.lora_settings import Settings, read_settings
from minflux.checkpoints.open import some_of
from minflux.checkpoints.quantise import SCALES, dequantise, holds_packed, stem_of
from minflux.errors import CheckpointError
from minflux.model.flux import DEV, FluxConfig


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to one matrix, or to one part of a joint one, and to the bias where it has any.

    `source` is its file and name, for messages. Without a kind only the bias is changed.
    """

    source: str
    module: Module
    rows: slice  # of our matrix, or of our bias
    kind: Kind | None = None
    arrays: Arrays = field(default_factory=dict)  # by role, float32
    strength: float = 1.0  # scale · α / r
    bias: np.ndarray | None = None  # times its strength

    @property
    def names(self) -> set[str]:
        """Return our names of what is changed: the weight, the bias, or both."""
        has = {self.module.weight: self.kind, self.module.bias: self.bias}
        return {name for name, change in has.items() if change is not None}

    @property
    def is_pair(self) -> bool:
        """Return whether all of it is a pair: it can be multiplied by beside the matrix, whose numbers it needn't."""
        return self.kind is LORA and "magnitude" not in self.arrays

    @property
    def down(self) -> np.ndarray:
        """Return a pair's A, (r, in)."""
        return self.arrays["lora.down"]

    @property
    def up(self) -> np.ndarray:
        """Return a pair's B, (out, r), times the strength."""
        return self.in_our_order(self.arrays["lora.up"] * self.strength)

    @property
    def difference(self) -> np.ndarray:
        """Return scale · (α / r) · D, without DoRA's magnitudes."""
        if self.is_pair or self.kind is None:
            return self.up @ self.down
        return self.in_our_order(self.strength * self.kind.matrix(self.arrays))

    def added_to(self, rows: Array) -> np.ndarray:
        """Return what is added to the module's rows of our weight: D; or DoRA's product or a new norm, less them."""
        if self.kind is NORM:
            return self.arrays["norm"] - backend_of(rows).to_numpy(rows)
        if "magnitude" not in self.arrays:
            return self.difference
        weight = as_wide(backend_of(rows).to_numpy(rows), self.difference.shape)
        return with_magnitude(weight + self.difference, self.in_our_order(self.arrays["magnitude"])) - weight

    def in_our_order(self, array: np.ndarray) -> np.ndarray:
        """Return an array of the file with its rows as they are in our matrix."""
        return exchanged(array) if self.module.exchanged and len(array) > 1 else array


# -- reading -------------------------------------------------------------------------------------------------


def read_loras(texts: Sequence[str], configs: dict[str, Any]) -> list[Change]:
    """Read several LoRAs, each given as `locate_lora` takes it, for the components of a model (see `read_lora`)."""
    changes = [change for path, scale in map(locate_lora, texts) for change in read_lora(path, configs, scale)]
    check_norms(changes)
    return changes


def check_norms(changes: Sequence[Change]) -> None:
    """Raise `CheckpointError` where two LoRAs have something to put in place of the same norm."""
    placed: dict[str, str] = {}
    for change in changes:
        if change.kind is NORM and change.module.weight in placed:
            raise CheckpointError(
                f"{change.source}: another LoRA puts its own in this place too ({placed[change.module.weight]}); "
                "add one control LoRA at a time"
            )
        if change.kind is NORM:
            placed[change.module.weight] = change.source


def with_loras(texts: Sequence[str], config: FluxConfig) -> FluxConfig:
    """Return a transformer's config with LoRAs added, a control LoRA's wider input; only their headers are read."""
    for path, _ in map(locate_lora, texts):
        config = widened_by(contents(path), config)
    return config


def read_lora(path: Path, configs: dict[str, Any], scale: float = 1.0) -> list[Change]:
    """Read a LoRA file for the components of a model, name -> config.

    Warns of keys that fit nothing. Raises `CheckpointError` when no key fits, when half of a pair is missing, when a
    shape is not the matrix's, when a number is not finite, for LoRAs of other models and for other kinds of adapter.
    """
    found = contents(path)
    flux = configs.get("transformer", DEV)
    check_kind(path, found, flux)
    if "transformer" in configs:
        configs = configs | {"transformer": widened_by(found, flux)}
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
        target = Target(f"{path}: {spelled}", spelled, module, configs[module.component])
        changes.append(target.change(arrays, scale, settings))
    return changes


# -- one module ----------------------------------------------------------------------------------------------

BIAS_ROLES = {"bias", "diff_b"}  # PEFT's, which α / r scales, and LyCORIS's, which it doesn't


@dataclass(frozen=True)
class Target:
    """The module that a LoRA's arrays are for; `where` is file and name, for messages, `spelled` the name alone."""

    where: str
    spelled: str
    module: Module
    config: Any

    @property
    def whole(self) -> tuple[int, ...]:
        """Return the shape of our weight, of all parts of a joint matrix."""
        return COMPONENTS[self.module.component].shapes(self.config)[self.module.weight]

    @property
    def rows(self) -> slice:
        """Return the rows of our weight that are the module's."""
        return self.module.rows(columns=self.whole[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weight: of a part of a joint matrix, that part's."""
        rows, *columns = self.whole
        return len(range(rows)[self.rows]), *columns

    @property
    def has_bias(self) -> bool:
        """Return whether the model has a bias beside the weight."""
        return self.module.bias in COMPONENTS[self.module.component].shapes(self.config)

    def change(self, arrays: Arrays, scale: float, settings: Settings) -> Change:
        """Make the change that arrays stand for; raises `CheckpointError` where they don't fit the module."""
        self.check_numbers(arrays)
        arrays = {role: as_matrix(x) if len(self.whole) == 2 and x.ndim > 2 else x for role, x in arrays.items()}
        kind = self.kind(arrays)
        if kind is not None:
            self.check_weight(kind, arrays)
        rank = kind.rank(arrays) if kind else None
        self.check_rank(rank, settings.rank(self.spelled))
        with np.errstate(over="ignore", invalid="ignore"):  # found when it is added
            strength = scale * self.alpha_by_rank(kind, rank, arrays, settings)
            bias = self.bias(arrays, {"bias": strength, "diff_b": scale})
        factors = {role: x for role, x in arrays.items() if role not in BIAS_ROLES | {"alpha"}}
        if "magnitude" in factors:
            factors["magnitude"] = self.magnitude(factors["magnitude"])
        return Change(self.where, self.module, self.rows, kind, factors, strength, bias)

    def alpha_by_rank(self, kind: Kind | None, rank: int | None, arrays: Arrays, settings: Settings) -> float:
        """Return α / r, or α / √r where the settings say so; 1 where there is no rank. Without α, it is the rank.

        LyCORIS's LoKr of two whole matrices has no rank, and isn't scaled; PEFT's has one in its settings.
        """
        r = settings.rank(self.spelled) if rank is None else rank
        alpha = arrays["alpha"].item() if "alpha" in arrays else settings.alpha(self.spelled)
        if kind in (DIFFERENCE, NORM) or not r:
            return 1.0
        return (r if alpha is None else alpha) / (math.sqrt(r) if settings.by_root(self.spelled) else r)

    def bias(self, arrays: Arrays, strengths: dict[str, float]) -> np.ndarray | None:
        """Return what is added to the bias; None for nothing, and for zeros where the model has no bias."""
        roles = [role for role in BIAS_ROLES if role in arrays]
        if len(roles) > 1:
            self.refuse("changes the bias under two namings; remove one of them")
        if not roles or not (self.has_bias or arrays[roles[0]].any()):
            return None
        bias, expected = arrays[roles[0]], self.shape[:1]
        if not self.has_bias or bias.shape != expected:
            self.refuse(f"expected {f'a bias {expected}' if self.has_bias else 'no bias'}, found {bias.shape}")
        change = bias * strengths[roles[0]]
        return exchanged(change) if self.module.exchanged else change

    # -- what is wrong -----------------------------------------------------------------------------------------

    def check_numbers(self, arrays: Arrays) -> None:
        """Raise `CheckpointError` for an array that is empty or not finite, and for an α that is not one number."""
        if min(array.size for array in arrays.values()) == 0:
            self.refuse("expected a rank of at least 1, found 0")
        if arrays.get("alpha", np.ones(1)).size != 1:
            self.refuse(f"expected at most one number α, found {arrays['alpha'].shape}")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            self.refuse("expected finite numbers, found NaN or infinity")

    def kind(self, arrays: Arrays) -> Kind | None:
        """Return the kind of the change to the weight, None where only the bias is changed."""
        kinds = kinds_of(arrays)
        if len(kinds) > 1:
            titles = " and ".join(kind.title for kind in kinds)
            self.refuse(f"expected one change of the matrix, found {titles}; remove one of them")
        if kinds and not kinds[0].is_complete(arrays):
            self.refuse(f"expected {kinds[0].title} whole, found {' and '.join(sorted(arrays))} alone")
        if not kinds and ("magnitude" in arrays or not BIAS_ROLES.intersection(arrays)):
            self.refuse(f"expected a change, found {' and '.join(sorted(arrays))} alone")
        return kinds[0] if kinds else None

    def check_weight(self, kind: Kind, arrays: Arrays) -> None:
        """Raise `CheckpointError` unless the change has the weight's shape."""
        if kind.shape(arrays) != self.shape:
            shapes = [x.shape for role, x in arrays.items() if role not in BIAS_ROLES | {"alpha", "magnitude"}]
            self.refuse(
                f"expected {kind.title} that makes {self.shape}, found {' and '.join(map(str, shapes))}: "
                "made for another model, or for a control image"
            )
        if kind in (DIFFERENCE, NORM) and "magnitude" in arrays:
            self.refuse(f"expected no magnitude (DoRA) beside {kind.title}")

    def check_rank(self, rank: int | None, expected: float | None) -> None:
        """Raise `CheckpointError` for another rank than the settings say."""
        if rank is not None and expected not in (None, rank):
            self.refuse(f"expected rank {expected}, as its settings say, found {rank}")

    def magnitude(self, array: np.ndarray) -> np.ndarray:
        """Return DoRA's magnitude as (rows, 1), or (1, columns); raises `CheckpointError` for other shapes."""
        rows, columns = self.shape
        if array.shape not in ((rows,), (rows, 1), (1, columns)):
            self.refuse(f"expected a magnitude (DoRA) of ({rows}, 1) or (1, {columns}), found {array.shape}")
        return as_matrix(array)

    def refuse(self, why: str) -> None:
        """Raise `CheckpointError`."""
        raise CheckpointError(f"{self.where}: {why}")


def as_matrix(array: np.ndarray) -> np.ndarray:
    """Return an array as a matrix: some are stored as 1×1 kernels."""
    return array.reshape(len(array), -1)


# -- adding --------------------------------------------------------------------------------------------------


def add_loras(flat: dict[str, Array], changes: Sequence[Change]) -> dict[str, Array]:
    """Add changes to the weights that they name, in float32, each weight kept in its own dtype.

    Several changes of a weight are all made from the weight as it was, so that their order is of no account. A
    quantised matrix stays as it is where all its changes are pairs, which become a branch beside it (see
    `lora_branches`); for any other change it is widened to floats. `flat` holds weights of one component, or some of
    them, under our names; changes to others are passed over.
    """
    flat = without_packing(flat, widened(changes))
    for name in flat.keys() & {name for change in changes for name in change.names}:
        if not holds_packed(flat[name]):
            flat[name] = added(flat[name], name, [change for change in changes if name in change.names])
    scales = {name: array for name, array in flat.items() if name.endswith(f".{SCALES}") and array.ndim == 2}
    return flat | lora_branches(scales, changes)


def added(weight: Array, name: str, changes: Sequence[Change]) -> Array:
    """Return a weight, or a bias, with changes added, in its own dtype; a wider change widens it, by zeros.

    Raises `CheckpointError` when a number is too large for the dtype then.
    """
    nx = backend_of(weight)
    base, total = nx.as_float32(weight), np.zeros(weight.shape, np.float32)
    with np.errstate(all="ignore"):  # too large a number is found in the sum
        for change in changes:
            is_bias = name == change.module.bias
            part: Any = change.bias if is_bias else change.added_to(base[change.rows])
            total = as_wide(total, part.shape)
            total[change.rows] += as_wide(part, total.shape)
    base = nx.array(as_wide(nx.to_numpy(base), total.shape)) if base.shape != total.shape else base
    result = (base + nx.array(total)).astype(weight.dtype)
    check_sum(result, changes)
    return result


def as_wide(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a matrix with columns of zeros added where a shape has more; a vector as it is."""
    more = shape[-1] - array.shape[-1]
    return np.pad(array, ((0, 0), (0, more))) if array.ndim == 2 and more > 0 else array


# -- beside quantised matrices -------------------------------------------------------------------------------


def widened(changes: Iterable[Change]) -> set[str]:
    """Return the matrices that can't stay quantised: changed by more than pairs, which are multiplied by beside."""
    return {change.module.stem for change in changes if change.kind is not None and not change.is_pair}


def without_packing(flat: dict[str, Array], stems: Collection[str]) -> dict[str, Array]:
    """Return weights with the quantised ones among `stems` turned into floats."""
    own = {name: array for name, array in flat.items() if stem_of(name) in stems}
    plain = dequantise(own)
    return {name: array for name, array in flat.items() if name not in own} | plain


def lora_branches(scales: dict[str, Array], changes: Sequence[Change]) -> dict[str, Array]:
    """Make side branches of quantised matrices: x Wᵀ + (x Aᵀ) Bᵀ, all LoRAs of a matrix in one A and one B.

    `scales` has each matrix's scales, which have its rows, and the dtype of its products.
    """
    branches: dict[str, Array] = {}
    for name, array in scales.items():
        stem = stem_of(name)
        own = [change for change in changes if change.module.stem == stem and change.kind is not None]
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


def placed_rows(part: np.ndarray, count: int, rows: slice) -> np.ndarray:
    """Put the rows of a part of a joint matrix into their place among `count` rows of zeros."""
    whole = np.zeros((count, *part.shape[1:]), np.float32)
    whole[rows] = part
    return whole
