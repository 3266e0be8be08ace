"""Redux's files: the projector that makes text tokens of an image, and the vision encoder in front of it.

FLUX.1-Redux-dev/                    as diffusers has it
FLUX.1-Redux-dev/image_embedder/     Redux's two matrices
FLUX.1-Redux-dev/image_encoder/      SigLIP's vision encoder
FLUX.1-Redux-dev/feature_extractor/  how that one wants its images
flux1-redux-dev.safetensors          Redux alone, as BFL and ComfyUI have it

A model has none of these as its part: they are opened by themselves, and loaded beside it.
"""

from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from PIL import Image

from minflux.checkpoints import hub
from minflux.checkpoints.adapters import described, file_contents, sizes_of
from minflux.checkpoints.components import ADAPTERS, REDUX, SIGLIP, Component
from minflux.checkpoints.detect import as_component
from minflux.checkpoints.family import REDUX_BESIDE
from minflux.checkpoints.folder import CONFIG, folder_contents, read_config
from minflux.checkpoints.formats.atomic import is_there
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.formats.safetensors import Stored, contents
from minflux.checkpoints.stored import StoredComponent
from minflux.errors import ArgumentError, CheckpointError, quoted
from minflux.images import Preprocessing
from minflux.model.siglip import SiglipConfig

EXTRACTOR = "feature_extractor"
SETTINGS = "preprocessor_config.json"
ALWAYS = ("do_resize", "do_rescale", "do_normalize")  # steps of preprocessing that are never left out
NAMED = "name SigLIP by --image-encoder: FLUX.1-Redux-dev's folder image_encoder, or sigclip_vision_patch14_384"


@dataclass(frozen=True)
class ReduxFiles:
    """What was found: Redux's matrices, the vision encoder, and how that one wants its images."""

    embedder: StoredComponent
    encoder: StoredComponent
    preprocessing: Preprocessing

    @property
    def components(self) -> dict[str, StoredComponent]:
        """Map names to the two networks."""
        return {stored.name: stored for stored in (self.embedder, self.encoder)}


# -- opening -------------------------------------------------------------------------------------------------


def locate_redux(redux: str | Path, fetch: bool = False) -> Path:
    """Return the file or folder that was named, or the folder of a repository on the Hub, fetched or in the cache.

    Raises `ArgumentError` when there is nothing under that name.
    """
    if is_there(Path(redux)):
        return Path(redux)
    repository = hub.repository(str(redux))
    if repository is None:
        raise ArgumentError(f"redux: {str(redux)!r}: no such file or folder, nor a name on the Hugging Face Hub")
    return hub.fetch(repository, hub.REDUX_FILES) if fetch else hub.cached(repository, hub.REDUX_FILES)


def open_redux(path: Path, image_encoder: Path | None = None) -> ReduxFiles:
    """Open Redux's folder or file, and the vision encoder there, beside it, or where it was named.

    Raises `CheckpointError` when one of the two is not there, is not what its config says, or does not go with the
    other.
    """
    folder = path if path.is_dir() else path.parent
    embedder = open_adapter(path / REDUX.name if path.is_dir() else path, REDUX)
    place = folder / SIGLIP.name if image_encoder is None else image_encoder
    if not place.exists():
        raise CheckpointError(f"{path}: expected the vision encoder in {place}, found none: {NAMED}")
    encoder = open_adapter(place, SIGLIP)
    found, wanted = encoder.config.hidden_size, embedder.config.redux_dim
    if found != wanted:
        raise CheckpointError(f"{place}: expected a vision encoder of width {wanted}, which Redux takes, found {found}")
    beside = place if place.is_dir() else place.parent
    settings = [home / SETTINGS for home in (folder / EXTRACTOR, beside)]
    return ReduxFiles(embedder, encoder, read_preprocessing(settings, encoder.config))


def open_adapter(path: Path, component: Component) -> StoredComponent:
    """Open one of the two networks, a folder or a file; raises `CheckpointError` at its first wrong weight."""
    stored = read_adapter(path, component)
    stored.check()
    return stored


def read_adapter(path: Path, component: Component) -> StoredComponent:
    """Open one of the two networks with its config, read from its file or else off the shapes."""
    if not path.exists():
        raise CheckpointError(f"{path}: expected {component.title}, found no such file or folder")
    file, tensors = folder_contents(path, component.stem) if path.is_dir() else (path, file_contents(path))
    if adapter_in(tensors) is not component:
        raise CheckpointError(f"{file}: expected {component.title}, found none of its weights")
    stored, _ = as_component(file, tensors, component, component.own_naming)
    config = (path if path.is_dir() else path.parent) / CONFIG
    is_said = config.exists() and (path.is_dir() or component is SIGLIP)  # of a file of Redux, sizes say all
    return replace(stored, config=read_config(config, component) if is_said else sizes_of(stored))


def adapter_in(tensors: dict[str, Stored]) -> Component | None:
    """Return which of the two networks a file holds, if any; CLIP's vision encoder has a token for the class."""
    if any(name.endswith("class_embedding") for name in tensors):
        return None
    marked = (c for c in ADAPTERS.values() for naming in c.namings if any(mark in tensors for mark in naming.marks))
    return next(marked, None)


# -- saying what is there ------------------------------------------------------------------------------------


def is_redux(folder: Path) -> bool:
    """Return whether a folder is Redux's own: it has Redux's matrices, and no model has."""
    return (folder / REDUX.name).is_dir()


def describe_adapters(path: Path) -> tuple[list[str], dict[str, CheckpointError]]:
    """Describe Redux's folder, or a file of either network; return lines, and errors by the network's name."""
    lines, broken = [REDUX_BESIDE], {}
    for place, component in places(path):
        try:
            stored = read_adapter(place, component)
            lines.append(f"  {described(stored)}")
            stored.check()
        except CheckpointError as error:
            broken[component.name] = error
    return lines, broken


def places(path: Path) -> list[tuple[Path, Component]]:
    """List where the two networks lie: in Redux's folder both, in a file the one that it is."""
    if path.is_dir():
        return [(path / name, component) for name, component in ADAPTERS.items()]
    found = adapter_in(contents(path))
    return [] if found is None else [(path, found)]


# -- preprocessing -------------------------------------------------------------------------------------------


def read_preprocessing(paths: list[Path], cfg: SiglipConfig) -> Preprocessing:
    """Read how a vision encoder wants its images, from the first file that is there; without one, SigLIP's own way."""
    usual = Preprocessing(cfg.image_size, cfg.image_size)
    path = next((path for path in paths if path.exists()), None)
    return usual if path is None else parse_preprocessing(path, read_json(path), usual)


def parse_preprocessing(path: Path, config: dict, usual: Preprocessing) -> Preprocessing:
    """Read a preprocessor's settings; raises `CheckpointError` for steps and sizes that are not the encoder's."""
    size = {"height": usual.height, "width": usual.width}
    fixed = dict.fromkeys(ALWAYS, True) | {"size": size}
    for name, expected in fixed.items():
        if config.get(name, expected) != expected:
            raise CheckpointError(f"{path}: {name}: expected {expected}, found {quoted(config[name])}")
    if abs(number(path, config, "rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise CheckpointError(f"{path}: rescale_factor: expected 1 / 255, found {quoted(config['rescale_factor'])}")
    resample = config.get("resample", usual.resample)
    if resample not in list(Image.Resampling):
        raise CheckpointError(f"{path}: resample: expected a number that PIL has, found {quoted(resample)}")
    mean, std = (three(path, config, name) for name in ("image_mean", "image_std"))
    if 0 in std:
        raise CheckpointError(f"{path}: image_std: expected numbers above 0, found {quoted(std)}")
    return replace(usual, mean=mean, std=std, resample=int(resample))


def three(path: Path, config: dict, name: str) -> tuple[float, ...]:
    """Return a setting of three numbers, one for each colour; 0.5 unless given."""
    values = config.get(name, [0.5] * 3)
    if not isinstance(values, list) or len(values) != 3:
        raise CheckpointError(f"{path}: {name}: expected three numbers, found {quoted(values)}")
    return tuple(number(path, {name: value}, name, 0.5) for value in values)


def number(path: Path, config: dict, name: str, usual: float) -> float:
    """Return a setting that is a finite number."""
    value = config.get(name, usual)
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise CheckpointError(f"{path}: {name}: expected a number, found {quoted(value)}")
    return float(value)
