"""ComfyUI's folder of models: which of its files are parts of FLUX.1, and which go together.

    models/unet or models/diffusion_models    transformers
    models/clip or models/text_encoders       CLIP and T5
    models/vae                                VAEs
    models/checkpoints                        several parts in one file
    models/loras                              LoRAs
    models/style_models                       Redux
    models/clip_vision                        the vision encoder in front of it
    models/controlnet                         ControlNets

Headers are read, no weights. Files of other models lie beside FLUX.1's there, and are passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minflux.checkpoints import hub
from minflux.checkpoints.adapters import file_contents
from minflux.checkpoints.components import CLIP, COMPONENTS, REDUX, SIGLIP, T5, TRANSFORMER, VAE, Component
from minflux.checkpoints.controlnet import on_hub
from minflux.checkpoints.fit import misfit
from minflux.checkpoints.loose import TOKENIZER, Files, named_files, option
from minflux.checkpoints.lora_files import parse, repository_of, split
from minflux.checkpoints.open import READ_SUFFIXES, Checkpoint, open_file
from minflux.checkpoints.redux import adapter_in
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError

FOLDERS = {  # which parts are looked for in which folder
    "unet": (TRANSFORMER.name,),
    "diffusion_models": (TRANSFORMER.name,),
    "clip": (CLIP.name, T5.name),
    "text_encoders": (CLIP.name, T5.name),
    "vae": (VAE.name,),
    "checkpoints": tuple(COMPONENTS),
}
LORAS, CONTROLNETS = "loras", "controlnet"
ADAPTERS = {"redux": ("style_models", REDUX), "image_encoder": ("clip_vision", SIGLIP)}  # by their options


@dataclass(frozen=True)
class ComfyFolder:
    """What ComfyUI's folder has: its parts of FLUX.1, why its other files are none, and its LoRAs."""

    path: Path
    found: list[StoredComponent]
    others: dict[Path, CheckpointError] = field(default_factory=dict)
    loras: list[Path] = field(default_factory=list)

    def candidates(self, name: str) -> list[StoredComponent]:
        """List the files for a component: those in folders of their own, or else those inside of whole checkpoints."""
        fitting = [stored for stored in self.found if stored.name == name]
        alone = [stored for stored in fitting if stored.path.relative_to(self.path).parts[0] != "checkpoints"]
        return alone or fitting


# -- looking -------------------------------------------------------------------------------------------------


def models_in(folder: str | Path) -> Path:
    """Return ComfyUI's folder `models`, from it or the one that it lies in; raises `ArgumentError` for any other."""
    path = Path(folder)
    path = path / "models" if (path / "models").is_dir() else path
    if not any((path / place).is_dir() for place in FOLDERS):
        raise ArgumentError(
            f"--comfy: {str(folder)!r} has none of ComfyUI's folders {', '.join(FOLDERS)}: name its folder `models`"
        )
    return path


def open_comfy(folder: str | Path) -> ComfyFolder:
    """Open ComfyUI's folder `models`, or the one that it lies in; raises `ArgumentError` for any other folder."""
    path = models_in(folder)
    found: list[StoredComponent] = []
    others: dict[Path, CheckpointError] = {}
    for place, names in FOLDERS.items():
        for file in weights_in(path / place):
            try:
                found += [stored for stored in open_file(file).found if stored.name in names]
            except CheckpointError as error:
                others[file] = error
    return ComfyFolder(path, found, others, weights_in(path / LORAS))


def weights_in(folder: Path) -> list[Path]:
    """List a folder's files of weights, at any depth."""
    return sorted(path for path in folder.rglob("*") if path.suffix in READ_SUFFIXES and path.is_file())


# -- choosing ------------------------------------------------------------------------------------------------


def choose_from_comfy(
    folder: str | Path, given: Mapping[str, str | Path | None], wanted: Sequence[str] = tuple(COMPONENTS)
) -> Files:
    """Return the files that were named by component, and for each other one that is wanted the only one that fits.

    given: paths, or names as they are in the folder. Raises `ArgumentError` where a name is not there, where there is
    no transformer, or where one of several files is to be named.
    """
    comfy = open_comfy(folder)
    files = named_files({name: by_name(comfy, name, value) for name, value in given.items() if value is not None})
    return completed(comfy, files, wanted) if wanted else files


def completed(comfy: ComfyFolder, files: Files, wanted: Sequence[str]) -> Files:
    """Add to the files that were named the others of a model: what the transformer's file has itself is not looked for.

    Returns them with the transformer first.
    """
    path = files.get(TRANSFORMER.name) or the_only(comfy, TRANSFORMER.name, comfy.candidates(TRANSFORMER.name))
    inside = {stored.name: stored for stored in comfy.found if stored.path == path}
    flux = inside[TRANSFORMER.name].config if TRANSFORMER.name in inside else None
    found = {TRANSFORMER.name: path}
    for name in (name for name in wanted if name not in inside and name not in files and name != TRANSFORMER.name):
        candidates = [s for s in comfy.candidates(name) if flux is None or misfit(flux, name, s.config) is None]
        if candidates:
            found[name] = the_only(comfy, name, candidates)
    return found | files


def by_name(comfy: ComfyFolder, name: str, value: str | Path) -> Path:
    """Return the file that a name stands for: a path, or a name in ComfyUI's folder, with or without its suffix."""
    path = Path(value)
    if path.exists() or name == TOKENIZER:
        return path
    matching = [
        file for file in dict.fromkeys(stored.path for stored in comfy.found) if is_called(comfy.path, file, path)
    ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        several = listing(comfy.path, matching)
        raise ArgumentError(f"{option(name)}: {str(value)!r} may be {several}: name it with its folder")
    known = listing(comfy.path, [stored.path for stored in comfy.candidates(name)]) or "none"
    raise ArgumentError(f"{option(name)}: {str(value)!r} is no file, nor is it in {comfy.path}, which has {known}")


def is_called(folder: Path, file: Path, name: Path) -> bool:
    """Return whether a file's name, with or without suffix and folders before it, is `name`."""
    parts = name.parts
    inside = file.relative_to(folder)
    spellings = inside.parts[-len(parts) :], inside.with_suffix("").parts[-len(parts) :]
    return bool(parts) and parts in spellings


def the_only(comfy: ComfyFolder, name: str, candidates: list[StoredComponent]) -> Path:
    """Return the only candidate's file; raises `ArgumentError` where there is none, or several."""
    paths = list(dict.fromkeys(stored.path for stored in candidates))
    title = COMPONENTS[name].title
    if paths:
        return one_of(comfy.path, name, title, paths)
    others = [f"; of its other files the first: {error}" for error in comfy.others.values()]
    raise ArgumentError(f"{comfy.path}: has no {title} of FLUX.1" + "".join(others[:1]))


def one_of(folder: Path, name: str, title: str, paths: Sequence[Path]) -> Path:
    """Return the one path that there is; raises `ArgumentError` where there are several."""
    if len(paths) > 1:
        several = listing(folder, paths)
        raise ArgumentError(f"{folder}: has several files of {title}, {several}: name one by {option(name)}")
    return paths[0]


def listing(folder: Path, paths: Sequence[Path]) -> str:
    """List files by their paths inside of the folder."""
    return ", ".join(str(path.relative_to(folder)) for path in paths)


def lora_in(folder: str | Path, lora: str) -> str:
    """Return a LoRA with the path of the file that it names in ComfyUI's folder; any other as `locate_lora` takes it.

    Raises `ArgumentError` where it is neither there nor elsewhere.
    """
    place, scale = parse(lora)
    if Path(place).exists() or Path(split(place)[0]).is_dir():
        return lora
    models = models_in(folder)
    loras = weights_in(models / LORAS)
    matching = [file for file in loras if is_called(models, file, Path(place))]
    if not matching and repository_of(lora) is not None:
        return lora
    return f"{alone(models, 'lora', place, matching, loras)}:{scale:g}"


def controlnet_in(folder: str | Path, given: Path) -> Path:
    """Return the path of a ControlNet that is named as it is in ComfyUI's folder, and any other name as it is.

    Raises `ArgumentError` where it is neither there nor elsewhere.
    """
    if given.exists():
        return given
    models = models_in(folder)
    files = weights_in(models / CONTROLNETS)
    matching = [file for file in files if is_called(models, file, given)]
    if not matching and on_hub(given)[0] is not None:
        return given
    return alone(models, "controlnet", str(given), matching, files)


def alone(models: Path, name: str, value: str, matching: Sequence[Path], paths: Sequence[Path]) -> Path:
    """Return the only one of the matching files; raises `ArgumentError` where there is none, or several.

    name, value: what was asked for, by which option. paths: all files that it could have been.
    """
    if len(matching) != 1:
        known = listing(models, matching or paths) or "none"
        raise ArgumentError(f"{option(name)}: {value!r} is no file, and not one alone in {models}, which has {known}")
    return matching[0]


# -- Redux ---------------------------------------------------------------------------------------------------


def redux_in(
    folder: str | Path, redux: str | Path | None, image_encoder: str | Path | None
) -> tuple[str | Path, str | Path | None]:
    """Return Redux and its vision encoder, each where it was named, or the only one that ComfyUI's folder has.

    The encoder is None where it lies beside Redux, in a folder or in a repository on the Hub. Raises `ArgumentError`
    where a name is not there, and where one of several files, or none, could be meant.
    """
    models = models_in(folder)
    found = named_adapter(models, "redux", redux)
    if found is None:
        raise ArgumentError(f"{models}: has no {REDUX.title} of FLUX.1 in style_models: name it by --redux")
    is_alone = Path(found).is_file() and not (Path(found).parent / SIGLIP.name).exists()
    if image_encoder is None and not is_alone:
        return found, None
    return found, named_adapter(models, "image_encoder", image_encoder)


def named_adapter(models: Path, name: str, value: str | Path | None) -> str | Path | None:
    """Return what an option names, a path, or a name in ComfyUI's folder or on the Hub; None: the only one there."""
    paths = adapters_in(models, *ADAPTERS[name])
    if value is None:
        return one_of(models, name, ADAPTERS[name][1].title, paths) if paths else None
    if Path(value).exists():
        return value
    matching = [file for file in paths if is_called(models, file, Path(value))]
    if not matching and name == "redux" and hub.repository(str(value)) is not None:
        return value
    return alone(models, name, str(value), matching, paths)


def adapters_in(models: Path, place: str, component: Component) -> list[Path]:
    """List the files of a folder that hold Redux, or its vision encoder."""
    return [file for file in weights_in(models / place) if holds(file, component)]


def holds(file: Path, component: Component) -> bool:
    """Return whether a file holds one of Redux's two networks; one that can't be read does not."""
    try:
        return adapter_in(file_contents(file)) is component
    except CheckpointError:
        return False


# -- for a look at it ----------------------------------------------------------------------------------------


def checkpoint_of(comfy: ComfyFolder) -> Checkpoint:
    """Return all that ComfyUI's folder has as one checkpoint, for `inspect`."""
    notes = [
        f"{path.relative_to(comfy.path)}: {str(error).removeprefix(f'{path}: ')}"
        for path, error in comfy.others.items()
    ]
    notes += [f"{path.relative_to(comfy.path)}: in the folder of LoRAs" for path in comfy.loras]
    adapters = [(file, kind) for place, kind in ADAPTERS.values() for file in adapters_in(comfy.path, place, kind)]
    notes += [f"{file.relative_to(comfy.path)}: {kind.title}, for image prompts" for file, kind in adapters]
    return Checkpoint(comfy.path, comfy.path, comfy.found, notes=notes)
