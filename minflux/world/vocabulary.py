"""What the world has words for: a listing to show, and every single word."""

import re
from functools import cache

from minflux.world import captions
from minflux.world.scenes import PLAIN, THINGS, TWO_COLOURED

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
