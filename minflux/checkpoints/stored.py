"""One component as files hold it: which network it is, whose names it has, where each weight lies, and what is wrong.

Only headers were read to know it. Our name of each weight is worked out here, once.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from minflux.checkpoints.components import Component, Naming
from minflux.checkpoints.components.shapes import Shapes, Sizes
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.formats.entry import Coded
from minflux.checkpoints.formats.safetensors import Stored, same_bytes
from minflux.checkpoints.quantise import is_packed, matrix_shape, packed_bits_of, packed_shapes
from minflux.errors import CheckpointError

LEAST = 1 << 28  # numbers of a weight that is not too large for any file: T5's largest has half as many


@dataclass(frozen=True)
class Copy:
    """A weight that a file holds under two names."""

    name: str
    other: str
    stored: Stored
    again: Stored

    def check(self) -> None:
        """Raise `CheckpointError` unless the numbers under both names are the same, to the bit."""
        same_kind = (self.stored.dtype, self.stored.shape) == (self.again.dtype, self.again.shape)
        if not same_kind or not same_bytes(self.stored, self.again):
            raise CheckpointError(
                f"{self.again.path}: {self.name} and {self.other} are two names of one weight but hold different "
                "values; remove one of them"
            )


@dataclass(frozen=True)
class Mismatch:
    """A weight that is not as the config asks.

    It is missing (`found` is None), unexpected (`expected` is None), of another shape, or stored as `dtype` where
    floats, or the packed numbers of a quantised matrix, belong.
    """

    name: str
    expected: tuple[int, ...] | None
    found: tuple[int, ...] | None
    dtype: str | None = None
    packed: bool = False

    def __str__(self) -> str:
        if self.expected is None:
            return f"{self.name}: expected no such weight, found {self.found}"
        if self.found != self.expected:
            found = "no such weight" if self.found is None else self.found
            return f"{self.name}: expected shape {self.expected}, found {found}"
        return f"{self.name}: expected {'packed numbers' if self.packed else 'floats'}, found {self.dtype}"


class WrongScale(Mismatch):
    """A float8 weight's scale that holds no floats, or not one for the whole weight or for each of its rows."""

    def __str__(self) -> str:
        return (
            f"{self.name}: expected a scale of floats, one or {self.expected} of them; found {self.dtype} {self.found}"
        )


@dataclass(frozen=True)
class StoredComponent:
    """A component in a file or folder: its weights by the file's names, without the `prefix` they lie under.

    `config` is None as long as it isn't known. `scales` holds the factors of float8 weights, by the weight's name;
    `copies` what is there under two names of a weight: itself, its scale. `left_out`: names of weights that a network
    of this config does not use, as the last layers of a language model that FLUX.2 takes its text from. `joins` says,
    under our names, what a tree of it has beside its weights where several processes share them (see `shares.py`).
    """

    component: Component
    naming: Naming
    path: Path
    tensors: dict[str, Stored]
    config: Any = None
    prefix: str = ""
    scales: dict[str, Stored] = field(default_factory=dict)
    copies: dict[str, list[Copy]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    joins: dict[str, int] = field(default_factory=dict)

    def with_config(self, config: Any) -> "StoredComponent":
        """Return the component with its config known, without the weights that it then does not use."""
        is_used, our_name = self.component.is_used, self.naming.our_name
        if is_used is None:
            return replace(self, config=config)
        kept = {name: stored for name, stored in self.tensors.items() if is_used(our_name(name, config), config)}
        return replace(
            self,
            config=config,
            tensors=kept,
            scales={name: scale for name, scale in self.scales.items() if name in kept},
            copies={name: copies for name, copies in self.copies.items() if name in kept},
            left_out=tuple(sorted(self.tensors.keys() - kept.keys())),
        )

    @property
    def name(self) -> str:
        """Return the component's name: "transformer", "vae", …"""
        return self.component.name

    # -- names -------------------------------------------------------------------------------------------------

    @cached_property
    def our_names(self) -> dict[str, str]:
        """Map each of the file's names to ours."""
        return {name: self.naming.our_name(name, self.config) for name in self.tensors}

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """Map each of our names to the file's names that it is made of."""
        found = defaultdict(list)
        for name, ours in self.our_names.items():
            found[ours].append(name)
        return dict(found)

    # -- sizes -------------------------------------------------------------------------------------------------

    def read_sizes(self, beside: Any = None) -> Any:
        """Read the config off the shapes; raises `CheckpointError` naming the weight that is missing.

        What no shape shows is taken from `beside`, another config, or else is FLUX.1's own: how a head's 128 dimensions
        are shared among the axes, θ, the VAE's shift and scale and its 32 groups, CLIP's heads of 64.
        """
        shapes = {name: self.naming.torch_shape(self.shape(name)) for name in self.tensors}
        spelled = {self.naming.our_part(name, None): shape for name, shape in shapes.items()}
        return self.component.sizes(Sizes(self.name, spelled), beside)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape, of a quantised one as before it was packed."""
        return matrix_shape(name, self.tensors) if is_packed(name, self.tensors) else self.tensors[name].shape

    def numbers(self, name: str) -> int:
        """Return how many numbers a weight has, a quantised one as before it was packed."""
        return math.prod(self.shape(name))

    def loaded_dtype(self, name: str, dtype: str | None) -> str | None:
        """Return the dtype in which a float is loaded when `dtype` is asked for, or None, its own.

        It is that dtype, but float32 in place of float16 where the component can't compute in it.
        """
        is_half = dtype == "float16" or (dtype is None and self.tensors[name].dtype == "F16")
        keeps_wide = self.component.never_float16.search(self.naming.our_name(name, self.config))
        return "float32" if is_half and keeps_wide else dtype

    # -- what is wrong -----------------------------------------------------------------------------------------

    def expected(self) -> Shapes:
        """Return the name and shape of every weight that a file of this config has: of quantised ones, three arrays."""
        self.check_sizes()
        shapes = self.component.file_shapes(self.naming, self.config)
        result: Shapes = {}
        for name, shape in shapes.items():
            ours = self.naming.our_name(name, self.config)
            bits = packed_bits_of(self.component, ours, name, shape, self.tensors)
            result |= packed_shapes(name, shape, bits) if bits else {name: shape}
        return result

    def check_sizes(self) -> None:
        """Raise `CheckpointError` when the config asks for a weight of more numbers than all that are there.

        Before anything is made of its size: a config may be damaged, or a stranger's.
        """
        found = max(LEAST, sum(map(self.numbers, self.tensors)))
        for name, shape in self.component.shapes(self.config).items():
            if math.prod(shape) > found:
                raise CheckpointError(
                    f"{self.path}: its config asks for {name} {shape}, more numbers than all weights there have"
                )

    @cached_property
    def mismatches(self) -> list[Mismatch]:
        """List every weight that is not as the config asks: those that it asks for first, then the unexpected ones."""
        expected = self.expected()
        unexpected = sorted(self.tensors.keys() - expected.keys())
        compared = [self.compare(name, expected.get(name)) for name in (*expected, *unexpected)]
        return [mismatch for mismatch in compared if mismatch is not None] + self.wrong_scales()

    def compare(self, name: str, shape: tuple[int, ...] | None) -> Mismatch | None:
        """Compare a weight with the shape that the config asks for; return None where all is right."""
        stored = self.tensors.get(name)
        if stored is None:
            return Mismatch(name, shape, None)
        packed = is_packed(name, self.tensors)
        right_dtype = stored.dtype == "U32" if packed else stored.dtype in FLOATS
        if stored.shape == shape and right_dtype:
            return None
        return Mismatch(name, shape, stored.shape, None if right_dtype else stored.dtype, packed)

    def wrong_scales(self) -> list[Mismatch]:
        """List the scales by which no weight can be multiplied."""
        wrong: list[Mismatch] = []
        for name, scale in self.scales.items():
            rows = self.tensors[name].shape[:1]
            if scale.dtype not in FLOATS or scale.shape not in ((), (1,), rows, (*rows, 1)):
                wrong.append(WrongScale(name, rows, scale.shape, scale.dtype))
        return wrong

    @property
    def missing_keys(self) -> list[str]:
        """List the names of weights that are not there."""
        return [mismatch.name for mismatch in self.mismatches if mismatch.found is None]

    @property
    def unexpected_keys(self) -> list[str]:
        """List the names of weights that the config doesn't ask for."""
        return [mismatch.name for mismatch in self.mismatches if mismatch.expected is None]

    def check(self) -> None:
        """Raise `CheckpointError` at the first weight that is missing, of another shape, no floats, or unexpected."""
        for mismatch in self.mismatches:
            stored = self.tensors.get(mismatch.name)
            raise CheckpointError(f"{stored.path if stored else self.path}: {self.prefix}{mismatch}")

    # -- what it was -------------------------------------------------------------------------------------------

    @property
    def scales_by_name(self) -> dict[str, Stored]:
        """Return all that quantised weights are scaled by, each under a name of its own."""
        coded = {name: stored for name, stored in self.tensors.items() if isinstance(stored, Coded)}
        parts = {f"{name} {role}": part for name, stored in coded.items() for role, part in stored.parts.items()}
        return {f"{name} scale": stored for name, stored in self.scales.items()} | parts

    def fingerprint(self) -> list[str]:
        """List all that tells this component from another without reading its weights.

        Its config; each weight's name, dtype, shape and place; each file's path, size and time of change. So a file
        that was changed in place, and its time and size set back, is taken for the same.
        """
        everything = self.tensors | self.scales_by_name
        lines = [repr(self.config), self.naming.name]
        lines += [f"{name} {s.path.name} {s.dtype} {s.shape} {s.start}" for name, s in sorted(everything.items())]
        for path in sorted({stored.path.resolve() for stored in everything.values()}):
            lines.append(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}")
        return lines
