"""`--from`: an image again from its PNG, which may be a stranger's, and whose inputs may have changed since."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from minflux.checkpoints import hub
from minflux.checkpoints.components import COMPONENTS, CONTROLNET
from minflux.checkpoints.controlnet import files_of, on_hub
from minflux.checkpoints.formats.atomic import is_there
from minflux.checkpoints.hashes import hash_components, hash_file, hash_model
from minflux.checkpoints.loose import TOKENIZER
from minflux.checkpoints.lora_files import locate_lora, repository_of
from minflux.checkpoints.open import Checkpoint, locate_here
from minflux.checkpoints.redux import ReduxFiles
from minflux.checkpoints.stored import StoredComponent
from minflux.commands.options import print_note
from minflux.commands.png import ImageSettings
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import take_components

PICTURES = ("image", "mask")  # that an image may be made with, one of each
CONTROL = "control"  # and any number of each, of which one alone has no number
SEVERAL = (CONTROL, "reference", "image_prompt")
# what may be given with --from
BESIDE_FROM = ("source", "out", "preview", "control_out", "memory", "cache", "anyway", "yes", "split")


def check_nothing_beside(source: Path) -> None:
    """Raise `ArgumentError` when --from comes with an option that the image has an answer to already."""
    ctx = click.get_current_context()
    for param in ctx.command.params:
        given = ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if given and param.name not in BESIDE_FROM:
            name = param.opts[0] if param.opts[0].startswith("-") else "PROMPT"
            raise ArgumentError(f"{name} can't be given with --from, which takes all settings from {source}")


def ask_before_fetching(source: Path, png: ImageSettings, yes: bool) -> None:
    """Ask before fetching what a PNG, perhaps a stranger's, names; raises `ArgumentError` at a no."""
    if yes:
        return
    model = hub.repository(png.model) if locate_here(png.model) is None else None
    if model is not None:
        ask_unless_cached(source, "model", model)
    for repository in filter(None, map(repository_of, png.lora)):
        ask_unless_cached(source, "LoRA", repository)
    redux = None if png.redux is None or is_there(Path(png.redux)) else hub.repository(png.redux)
    if redux is not None:
        ask_unless_cached(source, "Redux", redux, hub.REDUX_FILES)
    ask_for_controlnets(source, png)


def ask_for_controlnets(source: Path, png: ImageSettings) -> None:
    """Ask before fetching the ControlNets that a PNG names; raises `ArgumentError` at a no."""
    for name in png.controlnet:
        repository, _ = (None, None) if is_there(Path(name)) else on_hub(name)
        if repository is not None:
            ask_unless_cached(source, "ControlNet", repository, files_of(name))


def ask_unless_cached(source: Path, what: str, repository: str, files: Sequence[str] = hub.FILES) -> None:
    """Ask before fetching a model or a LoRA that is not in the cache; raises `ArgumentError` at a no."""
    try:
        hub.cached(repository, files)
    except CheckpointError:
        question = f"{source} names the {what} {repository!a}, which is not here. Fetch it from the Hugging Face Hub?"
        if not (sys.stdin.isatty() and click.confirm(question, err=True)):
            raise ArgumentError(
                f"--from: {source} names the {what} {repository!a}, which is not here; with --yes it is fetched"
            ) from None


def hash_inputs(
    checkpoint: Checkpoint,
    lora: Sequence[str],
    pictures: Mapping[str, Path],
    redux: ReduxFiles | None = None,
    controlnets: Sequence[StoredComponent] = (),
) -> dict[str, str]:
    """Hash the model, each LoRA, Redux, ControlNets, and the pictures by their roles, as an image's settings hold them.

    A LoRA that only the Hub has is fetched.
    """
    with warnings.catch_warnings(action="ignore"):  # loading warns
        components = take_components(checkpoint)
    hashes = {key_of(text): hash_file(locate_lora(text)[0]) for text in lora}
    of_pictures = {role: hash_file(path) for role, path in pictures.items()}
    of_redux = {} if redux is None else {"redux": hash_components(redux.components, str(redux.preprocessing))}
    of_model = {"model": hash_model(checkpoint.folder, components, checkpoint.tokenizers)}
    of_nets = {
        f"{CONTROLNET.name} {number}": hash_components({CONTROLNET.name: net}, str(net.config))
        for number, net in enumerate(controlnets, start=1)
    }
    return of_model | hashes | of_redux | of_nets | of_pictures


def key_of(lora: str) -> str:
    """Return what a LoRA's hash is under: its name, but for one that a model's or a picture's hash is under."""
    numbered = tuple(f"{words(role)} " for role in (*SEVERAL, CONTROLNET.name))
    taken = lora in ("model", "redux", CONTROL, *PICTURES) or lora.startswith((*numbered, "LoRA "))
    return f"LoRA {lora}" if taken else lora


def pictures_in(given: Mapping[str, Any]) -> dict[str, Path]:
    """Return the images that settings name, by what they are there: "image", …, "reference 1"."""
    single = {role: given[role] for role in PICTURES if given[role] is not None}
    several = {called: path for role in SEVERAL for called, path in numbered(role, given[role]).items()}
    return single | several


def numbered(role: str, paths: Sequence[Any]) -> dict[str, Any]:
    """Return files of one role by what they are called: "reference 1", …; a control image alone has no number."""
    if role == CONTROL and len(paths) == 1:
        return {role: paths[0]}
    return {f"{words(role)} {number}": path for number, path in enumerate(paths, start=1)}


def moved(given: Mapping[str, Any], move: Callable[[Any], Any]) -> dict[str, Any]:
    """Return settings with the path of each image changed by `move`."""
    single = {role: move(given[role]) for role in PICTURES if given[role] is not None}
    return {**given, **single, **{role: tuple(map(move, given[role])) for role in SEVERAL}}


def words(role: str) -> str:
    """Return how people call a setting that is an image."""
    return role.replace("_", " ")


def find_pictures(given: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return a PNG's settings with its images' paths from its own folder; raises `ArgumentError` if one isn't there."""
    found = moved(given, lambda path: source.parent / str(path))
    for role, path in pictures_in(found).items():
        if not path.is_file():
            raise ArgumentError(f"--from: {source} was made with the {role} {str(path)!a}, which is not there")
    return found


def seen_from(path: Path, png: Path) -> str:
    """Return a picture's path as a PNG holds it: from the PNG's folder, so that both may be moved together."""
    return os.path.relpath(path.resolve(), png.resolve().parent)


def parts_of(source: Path, png: ImageSettings) -> dict[str, str]:
    """Return the files in place of the model's parts; raises `ArgumentError` for a PNG with files of no part."""
    strange = png.files.keys() - {*COMPONENTS, TOKENIZER}
    if strange:
        raise ArgumentError(f"--from: the settings inside {source} are damaged (files: {sorted(strange)!a})")
    return png.files


def check_unchanged(source: Path, png: ImageSettings, hashes: dict[str, str], anyway: bool) -> None:
    """Raise `ArgumentError` when the model or a LoRA is not what an image was made with; warn of it with `anyway`.

    A PNG of an earlier minflux holds no hashes, and nothing can be said.
    """
    for name, value in png.hashes.items():
        if hashes.get(name, value) != value:
            line = f"{called(name, png)} is no longer the one that {source} was made with"
            if not anyway:
                raise ArgumentError(f"--from: {line}: put that one back, or get another image with --anyway")
            print_note(f"{line}: this is another image")


def called(name: str, png: ImageSettings) -> str:
    """Return how an error calls what has a hash: the model, an image by what it is, or a LoRA by its name."""
    known = {"model": png.model, "redux": png.redux} | pictures_in(vars(png))
    known |= numbered(CONTROLNET.name, png.controlnet)
    return f"the {name} {str(known[name])!a}" if name in known else f"the LoRA {name.removeprefix('LoRA ')!a}"
