"""A component: one record of all that files know of a network.

Whatever reads or writes files asks the record, and names no network itself. A new network is a new record: its config,
the names and shapes of its weights, what tells it from others in a file, and when its weights are needed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from minflux.checkpoints.components.renaming import Flat, Rules, exchange, joint_name
from minflux.checkpoints.components.shapes import Shapes, Sizes
from minflux.errors import CheckpointError, quoted

Json = dict[str, Any]
Stage = Literal["text", "steps", "decode"]

NEVER = re.compile(r"(?!)")  # matches no name
LARGEST = 1 << 30  # of a size; a damaged config could say 10^30
EVERY_LAYER = re.compile(r"(.*?(?:blocks?|layers)\.\d+)\.")


def unchanged(flat: Flat) -> Flat:
    """Return a copy of weights that have our names and layout already."""
    return dict(flat)


def nowhere(config: Any) -> tuple[str, ...]:
    """Return no module: nothing is exchanged."""
    return ()


def same_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a weight that files lay out as PyTorch does."""
    return shape


def same_name(name: str, config: Any) -> str:
    """Return the name of a weight that files and our tree call alike."""
    return name


@dataclass(frozen=True)
class Naming:
    """What one library calls a component's weights, and how they are turned into ours and back.

    `marks` are names of which a file has one if, and only if, it holds the component under this naming, after one of
    the `prefixes`. `our_part` maps a single name to ours, or to a part of one of our joint matrices: "qkv@1.weight".
    The modules in `exchanged`, by our names, have the halves of their rows in the other order. `torch_shape` tells
    how PyTorch would lay out a weight of a file's shape. Without `has_config`, sizes are read off the shapes alone.
    """

    name: str  # "bfl", "diffusers" or "transformers"
    title: str
    marks: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)
    to_ours: Callable[[Flat], Flat] = unchanged
    from_ours: Callable[[Flat], Flat] = unchanged
    our_part: Callable[[str, Any], str] = same_name
    exchanged: tuple[str, ...] = ()
    torch_shape: Callable[[tuple[int, ...]], tuple[int, ...]] = same_shape
    has_config: bool = True
    exchanged_in: Callable[[Any], tuple[str, ...]] = nowhere  # by `load` and `store`, for those that a config tells

    def load(self, flat: Flat, config: Any) -> Flat:
        """Turn a file's weights, or some of them, into ours."""
        return exchange(self.to_ours(flat), self.exchanged_in(config))

    def store(self, flat: Flat, config: Any) -> Flat:
        """Undo `load`."""
        return self.from_ours(exchange(flat, self.exchanged_in(config)))

    def our_name(self, name: str, config: Any) -> str:
        """Return our name of a file's weight; several may map to one, where we keep a joint matrix."""
        return joint_name(self.our_part(name, config))


@dataclass(frozen=True)
class Sharing:
    """How several processes share a matrix: by its rows (`axis` 0) or its columns (1), each with a piece of each part.

    parts: how many rows or columns belong together, as those of the queries, whose pieces are whole heads. joined: how
    `linear` makes a whole of what the processes compute, "summed" or "gathered"; "" where the next matrix does.
    """

    axis: int
    parts: tuple[int, ...]
    joined: Literal["", "summed", "gathered"] = ""


def unshared(config: Any) -> dict[str, Any]:
    """Return no module: every process has the whole component."""
    return {}


@dataclass(frozen=True)
class Component:
    """All that files know of one network.

    The first of its `namings` is that of a model folder in diffusers' layout, the one called `own` that of our trees
    and of minflux's own files; where a file has the marks of several, the last of them is right.
    """

    name: str  # of its folder, and its key wherever several components are held
    title: str  # for people
    stem: str  # of its file of weights in a folder
    library: tuple[str, str]  # who opens it there: library and class
    config: type
    read_config: Callable[[Json], Any]
    write_config: Callable[[Any], Json]
    describe: Callable[[Any], str]  # its sizes in a line
    shapes: Callable[[Any], Shapes]  # every weight's shape under our names, from a config
    sizes: Callable[[Sizes, Any], Any]  # a config from shapes, and from another config for what no shape shows
    namings: tuple[Naming, ...]
    own: str  # the name of the naming of our trees
    stage: Stage  # when its weights are needed: for the text, in every step, or to decode
    once: re.Pattern = NEVER  # our names of weights that are needed once an image, before its steps
    in_blocks: re.Pattern = NEVER  # our names that lie in a block whose matrices may be quantised
    never_quantised: re.Pattern = NEVER  # names there that are no matrices to multiply by
    never_float16: re.Pattern = NEVER  # our names of weights whose products are too large for it: float32 in its place
    joints: dict[str, int] = field(default_factory=dict)  # our joint matrices, and how many parts each has
    lora_prefixes: tuple[str, ...] = ()  # how a module's name begins in a LoRA file; none: takes no LoRA
    lora_rules: Rules = ()  # names that LoRA files alone have, and ours; "qkv@0-2" are parts 0 to 2 of a joint matrix
    gguf: tuple[str, str] | None = None  # of its GGUF files, whose names and which general.architecture; None: has none
    sharings: Callable[[Any], dict[str, Sharing]] = unshared  # by how a module of a block is called, from a config
    shared_counts: Callable[[Any], dict[str, int]] = unshared  # what processes share evenly, and how many there are
    alias: Callable[[str], str | None] = str  # a file's name in standard form; None for what is not used
    is_used: Callable[[str, Any], bool] | None = None  # whether a weight is needed, by our name and a config; None: all

    @property
    def folder_naming(self) -> Naming:
        """Return the naming of a folder in diffusers' layout."""
        return self.namings[0]

    @property
    def own_naming(self) -> Naming:
        """Return the naming of our trees."""
        return self.naming(self.own)

    def naming(self, name: str) -> Naming:
        """Return the naming called `name`; raises `KeyError` for one that this component has not."""
        return {naming.name: naming for naming in self.namings}[name]

    def file_shapes(self, naming: Naming, config: Any) -> Shapes:
        """Compute the names and shapes of a file's weights, by renaming arrays that take no memory as weights are."""
        ghosts = {name: np.broadcast_to(np.int8(0), shape) for name, shape in self.shapes(config).items()}
        return {name: ghost.shape for name, ghost in naming.store(ghosts, config).items()}

    def is_quantisable(self, name: str, shape: tuple[int, ...], group: int) -> bool:
        """Return whether a weight, by our name, is a matrix that may be quantised in groups of `group` columns."""
        inside = self.in_blocks.match(name) and not self.never_quantised.search(name)
        return bool(inside) and name.endswith(".weight") and len(shape) == 2 and shape[1] % group == 0


def block_of(name: str) -> str:
    """Return the block that a weight lies in, by our name; the name itself for a weight outside of all blocks.

    >>> block_of("double_blocks.3.img_attn.qkv.weight"), block_of("encoder.block.7.layer.0.layer_norm.weight")
    ('double_blocks.3', 'encoder.block.7')
    """
    match = EVERY_LAYER.match(name)
    return match[1] if match else name


# -- configs -------------------------------------------------------------------------------------------------


def require(config: Json, fixed: Json) -> None:
    """Raise `CheckpointError` unless every key of `fixed` that the config has, has that value."""
    for key, value in fixed.items():
        found = config.get(key, value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise CheckpointError(f"{key}: expected {value!r}, found {quoted(found)}: minflux can't run this model")


def take(config: Json, defaults: Any, names: dict[str, str], may_be_zero: tuple[str, ...] = ()) -> Json:
    """Return a dataclass's fields from a config, under the dataclass's names; absent ones are left out.

    `names` maps the config's names to the dataclass's, `defaults` is an instance of it. Raises `CheckpointError` where
    a value is of another type than the default, or a size is below 1.
    """
    found = {}
    for theirs, ours in names.items():
        value = config.get(theirs)
        if value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        if not is_like(value, getattr(defaults, ours), least=0 if ours in may_be_zero else 1):
            example = getattr(defaults, ours)
            raise CheckpointError(f"{theirs}: expected a value like {example!r}, found {quoted(config[theirs])}")
        found[ours] = value
    return found


def is_like(value: Any, default: Any, least: int) -> bool:
    """Return whether a value has its default's type; a whole number is `least` to `LARGEST`, and no bool."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(is_like(inner, default[0], least) for inner in value)
    kind = (int, float) if isinstance(default, float) else type(default)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and (kind is not int or least <= value <= LARGEST)
