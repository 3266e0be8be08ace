"""Open a model by any name: find out what is there, and what is wrong, from headers and configs alone.

`load` raises at the first problem, `inspect` prints all of them, `convert` takes the components it is asked for; what
there is to a name, they all learn here.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minflux import zoo
from minflux.checkpoints import hub
from minflux.checkpoints.components import COMPONENTS, FAMILIES, Component, Family, network
from minflux.checkpoints.controlnet import describe_controlnet, is_controlnet, is_controlnet_config
from minflux.checkpoints.detect import as_component, find_components
from minflux.checkpoints.family import PIPELINES, likely_variant
from minflux.checkpoints.folder import CONFIG, MFLUX_INDEX, OWN_FILE, folder_contents, read_config, shards_of
from minflux.checkpoints.foreign import join_quantised
from minflux.checkpoints.formats.atomic import is_there
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.formats.safetensors import contents
from minflux.checkpoints.redux import adapter_in, describe_adapters, is_redux
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError

INDEX = "model_index.json"
READ_SUFFIXES = (".safetensors", ".sft", ".gguf")
WEIGHT_SUFFIXES = (*READ_SUFFIXES, ".bin", ".pt", ".pth", ".ckpt")
SHOWN = 5  # names listed in a message


@dataclass(frozen=True)
class Checkpoint:
    """All that was found under a name.

    `folder` is where a model's other parts lie: tokenizers, scheduler, and the components that `path` itself lacks.
    """

    path: Path
    folder: Path
    found: list[StoredComponent]
    broken: dict[str, CheckpointError] = field(default_factory=dict)  # components that can't be read, and why
    unexpected_keys: dict[Path, list[str]] = field(default_factory=dict)  # names that belong to no component
    notes: list[str] = field(default_factory=list)  # what is known of it beside its weights
    index: dict = field(default_factory=dict)  # model_index.json
    loose: dict[str, Path] = field(default_factory=dict)  # files that were named for single components
    tokenizers: dict[str, Path] = field(default_factory=dict)  # folders of tokenizers that were named
    beside: str = ""  # what it is, where it is no model but goes beside one

    @cached_property
    def components(self) -> dict[str, StoredComponent]:
        """Map names to components; of two of a kind, the first."""
        return {stored.name: stored for stored in reversed(self.found)}

    @property
    def missing(self) -> list[str]:
        """List the components that a whole model has, and this one lacks."""
        return [name for name in self.family if name not in self.components and name not in self.broken]

    @property
    def family(self) -> Family:
        """Return the components of a whole model of this kind, told by its index, or else by its network."""
        held = [stored.component for stored in self.found]
        pipeline = str(self.index.get("_class_name"))
        by_index = [family for prefix, family in FAMILIES.items() if pipeline.startswith(prefix)]
        by_network = [family for family in FAMILIES.values() if network(family) in held]
        if len(by_network) > 1:
            by_network.sort(key=lambda family: -sum(self._is_there(component) for component in family.values()))
        return [*by_index, *by_network, COMPONENTS][0]

    def _is_there(self, component: Component) -> bool:
        """Return whether a component was found, or else lies in the folder."""
        found = self.components.get(component.name)
        return (found.component if found else component_in(self.folder / component.name)) is component

    def take(self, name: str) -> StoredComponent:
        """Return a component, found here or in the folder; raises `CheckpointError` at its first wrong weight."""
        if name in self.broken:
            raise self.broken[name]
        stored = self.components.get(name) or open_component(self.folder, name)
        stored.check()
        return stored


# -- by name -------------------------------------------------------------------------------------------------


def open_model(model: str | Path, fetch: bool = False, without: Sequence[str] = ()) -> Checkpoint:
    """Open a file, an index of shards, a component's folder or a model's, by its path or by its name.

    A name is that of a model that ships here, or of a repository on the Hugging Face Hub, which is looked up in the
    cache, and fetched with `fetch`, but for the weights of the components in `without`. Raises `ArgumentError` when
    there is nothing under that name, `CheckpointError` when it is no model or nothing of it can be read.
    """
    path = locate(model, fetch, without)
    if path.is_file():
        return open_file(path)
    return open_component_folder(path) if is_component_folder(path) else open_folder(path)


def locate(model: str | Path, fetch: bool = False, without: Sequence[str] = ()) -> Path:
    """Return the file or folder that a model's name stands for; for the arguments see `open_model`."""
    local = locate_here(model)
    if local is not None:
        return local
    repository = hub.repository(str(model))
    if repository is not None:
        return hub.fetch(repository, hub.files_without(without)) if fetch else hub.cached(repository)
    known = ", ".join(sorted(path.parent.name for path in zoo.FOLDER.glob(f"*/{INDEX}")))
    raise ArgumentError(
        f"model {str(model)!r} is neither a folder nor a file nor one that ships here ({known}), nor a name on the "
        f"Hugging Face Hub ({', '.join(hub.NAMES)}, or OWNER/NAME)"
    )


def locate_here(model: str | Path) -> Path | None:
    """Return the path of a model that ships here or lies on this machine; None for one that may be on the Hub."""
    shipped = zoo.FOLDER / str(model)
    if is_there(shipped / INDEX):
        return shipped
    return Path(model) if is_there(Path(model)) else None


# -- files ---------------------------------------------------------------------------------------------------


def open_file(path: Path, configs: Mapping[str, Any] | None = None) -> Checkpoint:
    """Open one file, or an index of shards, that holds one component or several.

    configs: those of the components that it takes the place of, for sizes that no shape shows.
    """
    tensors = join_quantised(path, contents(path))
    if adapter_in(tensors):
        return no_model(path, *describe_adapters(path))
    if is_controlnet(tensors):
        return no_model(path, *describe_controlnet(path))
    found, unexpected = find_components(path, tensors)
    if shards_of(path) not in (None, 1):
        raise CheckpointError(
            f"{path}: is one of {shards_of(path)} shards: name the index of them all, or their folder, with {CONFIG}"
        )
    if not found:
        raise CheckpointError(f"{path}: holds no part of FLUX.1; its first names are {', '.join(sorted(tensors)[:3])}")
    found = [with_sizes(stored, (configs or {}).get(stored.name)) for stored in found]
    return Checkpoint(path, path.parent, found, {}, {path: unexpected}, likely_variant(path, found))


def no_model(path: Path, notes: list[str], broken: dict[str, CheckpointError], index: dict | None = None) -> Checkpoint:
    """Return what was found of a network that goes beside a model; the first of the notes says what it is."""
    folder = path if path.is_dir() else path.parent
    index = index or {}
    return Checkpoint(path, folder, [], broken, notes=index_notes(index) + notes, index=index, beside=notes[0])


def with_sizes(stored: StoredComponent, replaced: Any = None) -> StoredComponent:
    """Read a component's config off its shapes, with the config of a model folder beside it where there is one.

    replaced: without that, the config of the component whose place it takes.
    """
    path, component = stored.path, stored.component
    is_at_home = path.parent.name == component.name
    config = path.with_name(CONFIG) if is_at_home else path.parent / component.name / CONFIG
    try:
        if config.exists():
            return stored.with_config(stored.read_sizes(read_config(config, component)))
        return stored.with_config(sizes_like(stored, replaced))
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(config) in str(error) else f"{path}: {error}") from error


def sizes_like(stored: StoredComponent, known: Any) -> Any:
    """Return a known config where a component has its sizes; else read them, with FLUX.1's for what no shape shows."""
    with suppress(CheckpointError):
        if known is not None and stored.read_sizes(known) == known:
            return known
    return stored.read_sizes()


# -- folders -------------------------------------------------------------------------------------------------


def open_component_folder(path: Path) -> Checkpoint:
    """Open a component's folder as it is downloaded alone: its config, and its weights in one piece or in shards."""
    if is_controlnet_config(path / CONFIG):
        return no_model(path, *describe_controlnet(path))
    component = component_in(path) or recognise(path)
    stored, unexpected = read_component(path, component)
    return Checkpoint(path, path.parent, [stored], {}, {stored.path: unexpected}, likely_variant(path, [stored]))


def is_component_folder(path: Path) -> bool:
    """Return whether a folder holds one component, and not a model, nor a config beside files of any names."""
    has_config = any((path / name).exists() for name in (CONFIG, MFLUX_INDEX)) and not (path / INDEX).exists()
    return has_config and (component_in(path) is not None or bool(stems_in(path)))


def component_in(path: Path) -> Component | None:
    """Return the component that a folder of its name holds: of several of the name, that of the class in its config."""
    named = [family[path.name] for family in (COMPONENTS, *FAMILIES.values()) if path.name in family]
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() and len(named) > 1 else {}
    classes = [config.get("_class_name"), *as_list(config.get("architectures"))]
    exact = [component for component in named if component.library[1] in classes]
    return next(iter(exact + named), None)


def as_list(value: Any) -> list:
    """Return a JSON list, or none of anything else."""
    return value if isinstance(value, list) else []


def stems_in(path: Path) -> list[str]:
    """List how the files of components' weights are called that lie in a folder."""
    stems = {component.stem for family in FAMILIES.values() for component in family.values()} | {Path(OWN_FILE).stem}
    return [stem for stem in sorted(stems) if list(path.glob(f"{stem}*.safetensors*"))]


def recognise(path: Path) -> Component:
    """Return the component whose weights lie in a folder of any name; raises `CheckpointError` if it is none."""
    for stem in stems_in(path):
        found, _ = find_components(path, folder_contents(path, stem)[1])
        if found:
            return found[0].component
    raise CheckpointError(f"{path}: holds no part of FLUX.1: no weights of a component lie beside its {CONFIG}")


def open_component(folder: Path, name: str) -> StoredComponent:
    """Open a component of a model folder in diffusers' layout.

    Raises `CheckpointError` when the folder lacks a file, or when the file's weights are not those that the config asks
    for.
    """
    stored, _ = read_component(folder / name, component_in(folder / name) or COMPONENTS[name])
    stored.check()
    return stored


def read_component(folder: Path, component: Component) -> tuple[StoredComponent, list[str]]:
    """Open a component's folder; return it, and the names there that belong to other components."""
    may_lack_config = (folder / MFLUX_INDEX).exists() and not (folder / CONFIG).exists()
    config = None if may_lack_config else read_config(folder / CONFIG, component)
    path, tensors = folder_contents(folder, component.stem)
    usual = component.own_naming if path.name == OWN_FILE else component.folder_naming
    stored, others = as_component(path, tensors, component, usual)
    if config is None and not stored.naming.has_config:
        return with_sizes(stored), others
    return stored.with_config(config or read_config(folder / CONFIG, component)), others


def open_folder(folder: Path) -> Checkpoint:
    """Open a model's folder: every component in diffusers' layout, and every single file beside them."""
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    if is_redux(folder):
        return no_model(folder, *describe_adapters(folder), index)
    found: list[StoredComponent] = []
    broken: dict[str, CheckpointError] = {}
    unexpected: dict[Path, list[str]] = {}
    for name in dict.fromkeys(name for family in FAMILIES.values() for name in family):
        if (folder / name).is_dir():
            try:
                stored, others = read_component(folder / name, component_in(folder / name) or COMPONENTS[name])
                found.append(stored)
                unexpected[stored.path] = others
            except CheckpointError as error:
                broken[name] = error
    for path in sorted(path for suffix in READ_SUFFIXES for path in folder.glob(f"*{suffix}")):
        try:
            single = open_file(path)
            found += single.found
            unexpected |= single.unexpected_keys
        except CheckpointError as error:
            broken[path.name] = error
    elsewhere = {stored.name for stored in found if stored.path.parent == folder}  # beside a folder of a config alone
    broken = {name: error for name, error in broken.items() if name not in elsewhere or has_weights(folder / name)}
    if not found:
        raise first_of(broken) or CheckpointError(
            f"{folder}: holds no part of FLUX.1: no component's folder, no .safetensors file"
        )
    notes = index_notes(index) or likely_variant(folder, found)
    return Checkpoint(folder, folder, found, broken, unexpected, notes, index)


def has_weights(folder: Path) -> bool:
    """Return whether a component's folder holds any weights, in whatever format."""
    return any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir())


def index_notes(index: dict) -> list[str]:
    """Describe a model whose index names a pipeline of the FLUX.1 family that takes more than text."""
    pipeline = str(index.get("_class_name"))
    return [f"{INDEX}: a {pipeline}, {PIPELINES[pipeline]}"] if pipeline in PIPELINES else []


def first_of(broken: dict[str, CheckpointError]) -> CheckpointError | None:
    """Return the first of several errors."""
    return next(iter(broken.values()), None)


def warn_of_unexpected(unexpected_keys: dict[Path, list[str]]) -> None:
    """Warn of names in files that belong to no component, and are left out."""
    for path, names in unexpected_keys.items():
        if names:
            warnings.warn(
                f"{path}: left out {len(names)} weights that belong to no part: {some_of(names)}", stacklevel=3
            )


def some_of(names: Sequence[str]) -> str:
    """List the first few names, for a message."""
    return ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")
