"""The tokenizers' files, which may be a stranger's: bounded before the library reads them, its panics made errors.

The library (`tokenizers`, in Rust) trusts a tokenizer.json: a few steps in it, each of which makes a text twice as
long, would fill any memory, and a damaged table ends in a panic, which is no `Exception` of Python's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minflux.checkpoints.formats.json_files import read_json
from minflux.errors import CheckpointError, quoted

MOST_PARTS = 32  # steps of normaliser, pre-tokenizer and post-processor; T5's file has nine, CLIP's eleven
MOST_GROWING = 8  # steps that can make a text longer; T5's and CLIP's files have one
LONGEST_INSERT = 4  # characters such a step may put in the place of one: so a text can't grow more than 5^8 times


def check_tokenizer(path: Path) -> None:
    """Raise `CheckpointError` for a tokenizer.json by which a text could grow without bound."""
    content = read_json(path)
    steps = [content.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")]
    parts = list(objects(steps))
    growing = [part for part in parts if part.get("type") in ("Replace", "Prepend")]
    if len(parts) > MOST_PARTS or len(growing) > MOST_GROWING:
        raise CheckpointError(f"{path}: expected at most {MOST_PARTS} steps, {MOST_GROWING} that replace text")
    for part in growing:
        inserted = part.get("content", part.get("prepend"))
        if not isinstance(inserted, str) or len(inserted) > LONGEST_INSERT:
            raise CheckpointError(f"{path}: expected a few characters to insert, found {quoted(inserted)}")


def objects(value: Any) -> Iterator[dict]:
    """Yield every JSON object inside a value, itself first."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from objects(inner)


@contextmanager
def errors_named(what: str) -> Iterator[None]:
    """Raise `CheckpointError` about `what` for all that the library raises, a panic of Rust's too."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{what} ({error})") from error
        raise
