"""Find the components in a file, told from its names alone.

One file may be a transformer under BFL's names or diffusers', a VAE, a text encoder, or, as ComfyUI packs them, several
of these under prefixes. Nothing needs to be known of the file in advance, and only its header is read.
"""

import re
from collections.abc import Collection
from pathlib import Path

from minflux.checkpoints.components import COMPONENTS, FAMILIES, Component, Family, Naming, network
from minflux.checkpoints.formats.safetensors import Stored
from minflux.checkpoints.quantise import stem_of, widen_others
from minflux.checkpoints.stored import Copy, StoredComponent
from minflux.errors import CheckpointError

# What files hold beside the weights: marks and scales of quantisation, and tables that follow from the sizes.
SCALES = ("scale_weight", "weight_scale")  # a float8 weight's factor, beside it
UNUSED = re.compile(r"(^|\.)(scaled_fp8|comfy_quant|scale_input|input_scale|output_scale|logit_scale|position_ids)$")
PROJECTION = re.compile(r"(^|\.)text_projection\.weight$")  # of CLIP's pooled output, which FLUX.1 doesn't use


def is_strange(name: str) -> bool:
    """Return whether a name outside of all components is none of those that are known to be of no use."""
    return not (UNUSED.search(name) or PROJECTION.search(name))


def find_components(path: Path, tensors: dict[str, Stored]) -> tuple[list[StoredComponent], list[str]]:
    """Take a file's contents apart: every component that minflux knows, and the names that belong to none."""
    found, rest, family = [], dict(tensors), family_in(tensors)
    for component in family.values():
        for naming in reversed(component.namings):
            prefix = find_prefix(naming, rest)
            if prefix is not None:
                inside = {name: stored for name, stored in rest.items() if is_inside(name, prefix, component, family)}
                rest = {name: stored for name, stored in rest.items() if name not in inside}
                found.append(take_out(path, component, naming, prefix, inside))
    return found, sorted(filter(is_strange, rest))


def as_component(
    path: Path, tensors: dict[str, Stored], component: Component, usual: Naming
) -> tuple[StoredComponent, list[str]]:
    """Take a file's contents for one component's, and return it and the names outside its prefix.

    Its naming is the one whose mark is there, of several the last, or without any mark the `usual` one.
    """
    found = {naming.name: find_prefix(naming, tensors) for naming in component.namings}
    marked = [naming for naming in component.namings if found[naming.name] is not None]
    naming = marked[-1] if marked else usual
    prefix = found[naming.name] or ""
    inside = {name: stored for name, stored in tensors.items() if name.startswith(prefix)}
    return take_out(path, component, naming, prefix, inside), sorted(filter(is_strange, tensors.keys() - inside.keys()))


def family_in(names: Collection[str]) -> Family:
    """Return the family whose network a file's names are of; FLUX.1's where there is none."""
    for family in FAMILIES.values():
        if any(find_prefix(naming, names) is not None for naming in network(family).namings):
            return family
    return COMPONENTS


def find_prefix(naming: Naming, names: Collection[str]) -> str | None:
    """Return the prefix under which a naming's mark is there, None if it is nowhere."""
    return next((p for p in naming.prefixes for mark in naming.marks if p + mark in names), None)


def is_inside(name: str, prefix: str, component: Component, family: Family) -> bool:
    """Return whether a name belongs to a component: all under its prefix; without one, what no other prefix claims."""
    if prefix:
        return name.startswith(prefix)
    others = [naming for other in family.values() if other is not component for naming in other.namings]
    return not any(name.startswith(claimed) for naming in others for claimed in naming.prefixes if claimed)


def take_out(
    path: Path, component: Component, naming: Naming, prefix: str, inside: dict[str, Stored]
) -> StoredComponent:
    """Make a `StoredComponent` of the arrays under a prefix: weights, scales, and what is there twice.

    Raises `CheckpointError` for a weight under two names whose scale is there under one.
    """
    bare = {name.removeprefix(prefix): stored for name, stored in inside.items() if not UNUSED.search(name)}
    bare, copies = standard_names(component, prefix, bare)
    bare = widen_others(component, naming, bare)
    scales = {f"{stem_of(name)}.weight": name for name in bare if name.rpartition(".")[2] in SCALES}
    scales = {weight: name for weight, name in scales.items() if weight in bare}  # a scale of nothing is unexpected
    for weight, name in scales.items():
        check_both_twice(bare[name].path, copies.get(weight), copies.get(name))
    twice = {name: [copy] for name, copy in copies.items() if name not in scales.values()}
    for weight, name in scales.items():
        if name in copies:
            twice.setdefault(weight, []).append(copies[name])
    weights = {name: stored for name, stored in bare.items() if name not in scales.values()}
    factors = {weight: bare[name] for weight, name in scales.items()}
    return StoredComponent(component, naming, path, weights, None, prefix, factors, twice)


def standard_names(
    component: Component, prefix: str, found: dict[str, Stored]
) -> tuple[dict[str, Stored], dict[str, Copy]]:
    """Return the stored weights under their standard names, without those that are not used, and those found twice."""
    named: dict[str, str] = {}
    copies = {}
    for name in sorted(found, key=lambda name: component.alias(name) != name):  # of two names, the standard one first
        alias = component.alias(name)
        if alias in named:
            copies[alias] = Copy(prefix + named[alias], prefix + name, found[named[alias]], found[name])
        elif alias is not None:
            named[alias] = name
    return {alias: found[name] for alias, name in named.items()}, copies


def check_both_twice(path: Path, weight: Copy | None, scale: Copy | None) -> None:
    """Raise `CheckpointError` when of a weight and its scale one is there under two names, the other under one."""
    either = weight or scale
    if either is not None and (weight is None or scale is None):
        raise CheckpointError(
            f"{path}: {either.name}, {either.other}: expected the weight and its scale under both names"
        )
