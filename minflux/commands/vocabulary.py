"""`minflux vocabulary`: the words that a model was trained on."""

import textwrap

import click

from minflux.checkpoints.loose import SHIPPED
from minflux.commands.named import open_named
from minflux.commands.options import MODEL
from minflux.inference.hints import Trained
from minflux.inference.load import DEFAULTS, told_training
from minflux.world.vocabulary import vocabulary

WIDTH = 100  # columns
ANY = "It doesn't say what words it was trained on. FLUX.1 and its like were trained on captions of all kinds."


@click.command("vocabulary", short_help="List the words that a model was trained on.")
@MODEL
def command(model):
    """List the words that a model was trained on, without reading its weights.

    Of any other word in a prompt `minflux generate` gives a hint.

    \b
    minflux vocabulary
    minflux generate "an owl above a house on a pink background"
    """
    folder = open_named(model or SHIPPED, {}, None).folder
    click.echo(listing(told_training(folder / DEFAULTS) or Trained()))


def listing(trained: Trained) -> str:
    """Lay the words out for reading; those of `minflux.world` by what they are for."""
    if not trained.words:
        return ANY
    if not trained.spelled:
        return "\n".join(wrapped("words", trained.words))
    lines = [line for kind, words in vocabulary().items() for line in wrapped(kind, words)]
    return "\n".join([*lines, f"A sign's word has up to {trained.spelled} letters, in capitals or in quotes."])


def wrapped(kind: str, words: tuple[str, ...]) -> list[str]:
    """Put a kind of words on lines of `WIDTH` columns, below its name."""
    return [f"{kind}:", *textwrap.wrap(", ".join(words), WIDTH, initial_indent="  ", subsequent_indent="  "), ""]
