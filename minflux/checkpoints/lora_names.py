"""The names of LoRA files: which of the model's weights an array is for, and the role that it plays there.

A key is a prefix, the name of a module under BFL's or diffusers' names (kohya's with underscores for dots), and a role.

Sources: PEFT; diffusers' `loaders/lora_conversion_utils.py`; kohya's sd-scripts; LyCORIS; ComfyUI's `comfy/lora.py`.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minflux.checkpoints.components import COMPONENTS, Component
from minflux.checkpoints.components.renaming import joint_rows, parts_of, rename
from minflux.checkpoints.formats.dtypes import FLOATS
from minflux.checkpoints.formats.safetensors import Stored
from minflux.checkpoints.quantise import stem_of
from minflux.errors import CheckpointError

# role -> how the name of an array that plays it may end; PEFT may have the name of its adapter, "default", in it
ROLES = {
    "lora.down": (
        r"\.lora_A(\.\w+)?\.weight", r"\.lora_A", r"[._]lora[._]down\.weight", r"\.lora_linear_layer\.down\.weight",
        r"\.down\.weight",
    ),
    "lora.up": (
        r"\.lora_B(\.\w+)?\.weight", r"\.lora_B", r"[._]lora[._]up\.weight", r"\.lora_linear_layer\.up\.weight",
        r"\.up\.weight",
    ),
    "bias": (r"\.lora_B(\.\w+)?\.bias",),
    "alpha": (r"\.alpha",),
    "diff": (r"(\.weight|\.scale)?\.diff", r"\.w_norm"),
    "norm": (r"(?<=_norm)\.scale", r"(?<=norm_[qk])\.weight", r"(?<=norm_added_[qk])\.weight"),
    "diff_b": (r"\.diff_b", r"\.bias\.diff", r"\.b_norm"),
    "magnitude": (r"\.dora_scale", r"\.lora_magnitude_vector(\.\w+){0,2}"),
    **{f"hada_w{i}.up": (rf"\.hada_w{i}_a(\.\w+)?",) for i in (1, 2)},
    **{f"hada_w{i}.down": (rf"\.hada_w{i}_b(\.\w+)?",) for i in (1, 2)},
    **{f"lokr_w{i}": (rf"\.lokr_w{i}(\.\w+)?",) for i in (1, 2)},
    **{f"lokr_w{i}.up": (rf"\.lokr_w{i}_a(\.\w+)?",) for i in (1, 2)},
    **{f"lokr_w{i}.down": (rf"\.lokr_w{i}_b(\.\w+)?",) for i in (1, 2)},
}  # fmt: skip
ENDINGS = [(re.compile(rf"(.*?)({ending})"), role) for role, endings in ROLES.items() for ending in endings]
SCALABLE = ("weight", "scale")  # what a module's weight is called; a bias goes with it


@dataclass(frozen=True)
class Module:
    """A module that a LoRA may change: its component, our name of it, and which parts of a joint matrix it has.

    `parts` is None for a whole matrix. `exchanged` marks the module whose halves lie the other way round in the file:
    diffusers' final modulation. `leaf` is what its weight is called: "scale" in the norms of queries and keys.
    """

    component: str
    stem: str
    parts: range | None = None
    exchanged: bool = False
    leaf: str = "weight"

    @property
    def weight(self) -> str:
        """Return our name of the module's weight."""
        return f"{self.stem}.{self.leaf}"

    @property
    def bias(self) -> str:
        """Return our name of the module's bias, whether the model has one or not."""
        return f"{self.stem}.bias"

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


# -- keys ----------------------------------------------------------------------------------------------------

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
    for ending, role in ENDINGS:
        match = ending.fullmatch(key)
        module = find_module(match[1], known) if match else None
        if match and module is not None:
            return module, match[1], role
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
    """Map every name that files have for a component's modules, with dots or underscores, to the module."""
    table = {}
    for naming in component.namings if component.lora_prefixes else ():
        for name, shape in component.file_shapes(naming, config).items():
            ours = naming.our_part(name, config)
            leaf = ours.rpartition(".")[2]
            if leaf in SCALABLE and len(shape) in (1, 2):
                spelled = name.removesuffix(f".{leaf}").removesuffix(".weight")
                module = as_module(component, stem_of(ours), naming.exchanged, leaf)
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
            module = as_module(component, f"{stem}@{parts}" if parts else stem)
            found[spelled] = found[spelled.replace(".", "_")] = module
    return found


def as_module(component: Component, text: str, exchanged: Sequence[str] = (), leaf: str = "weight") -> Module:
    """Make a module of our name for it, which may end in the parts of a joint matrix: "qkv@1", "linear1@0-2"."""
    stem, _, parts = text.partition("@")
    first, _, last = parts.partition("-")
    span = range(int(first), int(last or first) + 1) if parts else None
    return Module(component.name, stem, span, stem in exchanged, leaf)
