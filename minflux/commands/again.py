"""`--from`: an image again from its PNG, which may be a stranger's, and whose model or LoRAs may have changed since."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from minflux.checkpoints import hub
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.hashes import hash_file, hash_model
from minflux.checkpoints.loose import TOKENIZER
from minflux.checkpoints.lora_files import locate_lora, repository_of
from minflux.checkpoints.open import Checkpoint, locate_here
from minflux.commands.options import print_note
from minflux.commands.png import ImageSettings
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import take_components

BESIDE_FROM = ("source", "out", "preview", "memory", "cache", "anyway", "yes")  # what may be given with --from


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


def ask_unless_cached(source: Path, what: str, repository: str) -> None:
    """Ask before fetching a model or a LoRA that is not in the cache; raises `ArgumentError` at a no."""
    try:
        hub.cached(repository)
    except CheckpointError:
        question = f"{source} names the {what} {repository!a}, which is not here. Fetch it from the Hugging Face Hub?"
        if not (sys.stdin.isatty() and click.confirm(question, err=True)):
            raise ArgumentError(
                f"--from: {source} names the {what} {repository!a}, which is not here; with --yes it is fetched"
            ) from None


def hash_inputs(checkpoint: Checkpoint, lora: Sequence[str]) -> dict[str, str]:
    """Hash the model and each LoRA, as an image's settings hold them; a LoRA that only the Hub has is fetched."""
    with warnings.catch_warnings(action="ignore"):  # loading warns
        components = take_components(checkpoint)
    hashes = {text: hash_file(locate_lora(text)[0]) for text in lora}
    return {"model": hash_model(checkpoint.folder, components, checkpoint.tokenizers)} | hashes


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
            what = f"the model {png.model!a}" if name == "model" else f"the LoRA {name!a}"
            line = f"{what} is no longer the one that {source} was made with"
            if not anyway:
                raise ArgumentError(f"--from: {line}: put that one back, or get another image with --anyway")
            print_note(f"{line}: this is another image")
