"""`minflux vocabulary`: what prompts can speak of, for the small model that ships here."""

import click

from minflux.commands.doctor import as_text
from minflux.world.captions import plain_caption
from minflux.world.scenes import LONGEST_WORD, SIDES, Scene, Sign, Thing, longest_word
from minflux.world.vocabulary import vocabulary

EXAMPLES = (
    Scene("blue", (Thing("cat"), Thing("apple", "small")), "horizontal"),
    Scene("sky over grass", (Thing("star", "small"),) * 3, "horizontal"),
    Scene("pink", (Sign("HELLO"), Thing("dog")), "vertical"),
)


def report() -> str:
    """Return a text of two columns: what there are words for, of each sort, and prompts to try."""
    rows = [(sort, text) for sort, texts in vocabulary().items() for text in wrapped(texts)]
    fitting = ", ".join(f"{longest_word(side)} at {side}" for side in SIDES if longest_word(side) < LONGEST_WORD)
    rows += [("signs", f"a word of up to {LONGEST_WORD} letters, A to Z; in narrow images fewer ({fitting} pixels)")]
    rows += [("images", f"any multiple of 16 from {SIDES[0]} to {SIDES[-1]} pixels, each way")]
    return as_text(rows + [("prompts", plain_caption(scene)) for scene in EXAMPLES])


def wrapped(texts: tuple[str, ...], width: int = 100) -> list[str]:
    """Join texts by commas into lines of at most `width` characters."""
    lines = [""]
    for text in texts:
        longer = f"{lines[-1]}, {text}" if lines[-1] else text
        lines[-1:] = [longer] if len(longer) <= width else [f"{lines[-1]},", text]
    return lines


@click.command("vocabulary", short_help="What the small model knows words for.")
def command():
    """Say what the small model that ships here was taught: its words by sort, with their synonyms, and its sizes.

    A prompt with other words is drawn too, with a hint that names them.

    \b
    minflux vocabulary
    """
    click.echo(report())
