"""What the world has words for: a listing to show, and the words of a prompt that mean nothing here."""

import re
from functools import cache

from minflux.world import captions
from minflux.world.scenes import LONGEST_WORD, PLAIN, THINGS, TWO_COLOURED

SPELLED = re.compile(r"\"([^\"]+)\"|'([A-Za-z]+)'|\b([A-Z]{2,}|[B-Z])\b")  # in quotes, or in capitals
WORD = re.compile(r"[A-Za-z]+|\d+")


def vocabulary() -> dict[str, tuple[str, ...]]:
    """List what prompts can speak of, plainest words first: things, sizes, numbers, backgrounds, places, signs."""
    return {
        "things": tuple(" / ".join(captions.NAMES.get(name, (name,))) for name in THINGS),
        "sizes": tuple(" / ".join(words) for words in captions.SIZE_WORDS.values() if words[0]),
        "numbers": tuple(" / ".join(words) for words in captions.COUNT_WORDS.values()),
        "backgrounds": tuple(" / ".join(captions.COLOUR_WORDS.get(name, (name,))) for name in PLAIN)
        + tuple(" / ".join(captions.PLACES[name]) for name in TWO_COLOURED),
        "where": tuple(" / ".join(words) for words in captions.WORDINGS.values())
        + tuple(" / ".join(words) for words in captions.LINES.values()),
        "signs": tuple(phrase.format(word="HELLO") for phrase in captions.SIGN_PHRASES),
    }


@cache
def known_words() -> frozenset[str]:
    """Collect every word of the grammar, in lower case."""
    said = [text for texts in vocabulary().values() for text in texts]
    nouns = [name for thing in THINGS for name in captions.NAMES.get(thing, (thing,))]
    said += [captions.plural(name) for name in nouns]
    for phrases in (captions.THE_PICTURE, captions.COLOUR_PHRASES, captions.PLACE_PHRASES, captions.TITLES):
        said += [re.sub(r"{\w+}", " ", phrase) for phrase in phrases]
    return frozenset(WORD.findall(" ".join(said).lower())) - {"hello"} | {"a", "an", "the", "and"}


def unknown_words(prompt: str) -> list[str]:
    """List the words of a prompt that this world has no meaning for, in their order, each once.

    A word in capitals or in quotes is one to write on a sign, and fits if it has one to six letters of A to Z.

    >>> unknown_words("a cat riding a unicorn, with a sign that says HELLO")
    ['riding', 'unicorn']
    """
    spelled = ["".join(groups) for groups in SPELLED.findall(prompt)]
    too_long = [word for word in spelled if not re.fullmatch(f"[A-Za-z]{{1,{LONGEST_WORD}}}", word)]
    rest = WORD.findall(SPELLED.sub(" ", prompt))
    strange = [word for word in rest if word.lower() not in known_words()]
    return list(dict.fromkeys(strange + too_long))
