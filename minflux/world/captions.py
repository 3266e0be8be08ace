"""What can be said of a scene: a grammar of phrasings, orders and synonyms.

A caption is put together from two halves. The first says what there is ("a cat left of an apple", "three stars", "a
sign that says HELLO above a dog"), the second where ("on a blue background"); they come in either order. Things that
stand in a row can be told from either end: "a cat left of an apple" names them in the picture's order, "an apple right
of a cat" against it. Mixed evenly, neither is learnt (docs/log.md), so training asks for three of four in order.

A scene's caption says all that a scene fixes, apart from the free part of the layout: how far a thing lies from its
cell's middle, and whether a number of things stand in a row or a column.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minflux.world.scenes import DEFAULT_SIDE, PLAIN, RELATIONS, Item, Scene, Sign, Thing, pick, sample

NAMES = {  # each thing's names, plainest first; where there is a second, one time in four
    "cat": ("cat", "kitty"), "dog": ("dog", "puppy"), "pig": ("pig", "piglet"), "bee": ("bee", "bumblebee"),
    "mushroom": ("mushroom", "toadstool"), "donut": ("donut", "doughnut"), "moon": ("moon", "crescent"),
    "globe": ("globe", "planet"), "car": ("car", "automobile"), "rocket": ("rocket", "spaceship"),
    "umbrella": ("umbrella", "parasol"), "hat": ("hat", "top hat"), "gift": ("gift", "present"),
    "ball": ("ball", "football"),
}  # fmt: skip
PLURALS = {
    "octopus": "octopuses", "fish": "fish", "cactus": "cacti", "fox": "foxes", "bus": "buses", "kitty": "kitties",
    "puppy": "puppies",
}  # fmt: skip
SIZE_WORDS = {"small": ("small", "little", "tiny"), "regular": ("",), "large": ("large", "big", "huge")}
COUNT_WORDS = {2: ("two", "2", "a pair of"), 3: ("three", "3")}
COLOUR_WORDS = {"gray": ("gray", "grey"), "purple": ("purple", "violet")}
PLACES = {  # the two-coloured backgrounds, as what is said of them
    "sky over grass": ("blue sky over green grass", "a meadow under a blue sky"),
    "sky over sand": ("blue sky over yellow sand", "a beach under a blue sky"),
    "night over snow": ("a night sky over white snow", "snow at night"),
    "sunset over sea": ("a sunset over the sea", "the sea at sunset"),
}
WORDINGS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
THE_PICTURE = ("a picture of", "a drawing of", "an image of", "there is", "we see")
COLOUR_PHRASES = (
    "on {a} background",
    "on {the} background",
    "in front of {a} wall",
    "against {a} backdrop",
    "on {colour}",
)
PLACE_PHRASES = ("in front of {place}", "against {place}", "with {place} behind")
TITLES = ("{colour} background", "{colour} backdrop")
SIGN_PHRASES = (
    "a sign that says {word}",
    "a sign saying {word}",
    "a sign with the word {word}",
    "a sign reading {word}",
)
SPELLINGS: tuple[Callable[[str], str], ...] = (  # how a sign's word is written
    str, str, str, lambda word: f'"{word}"', lambda word: f"'{word}'", lambda word: f'"{word.lower()}"',
)  # fmt: skip
LINES = {
    ("horizontal", False): ("from left to right", "in a row, left to right"),
    ("horizontal", True): ("from right to left", "in a row, right to left"),
    ("vertical", False): ("from top to bottom", "in a column, top to bottom"),
    ("vertical", True): ("from bottom to top", "in a column, bottom to top"),
}

# ---------------------------------------------------------------------------------------------------- words

Choose = Callable[[tuple], Any]  # picks one of several phrasings


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun, by its first letter."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    """Give a noun's plural.

    >>> plural("star"), plural("fox"), plural("top hat")
    ('stars', 'foxes', 'top hats')
    """
    return PLURALS.get(noun, f"{noun}s")


def noun(thing: Thing, choose: Choose, many: bool = False) -> str:
    """Name a thing with its size: "cat", "tiny kitty"; "regular" is never said."""
    names = NAMES.get(thing.name, (thing.name,))
    name = choose((names[0],) * 3 + names[1:])
    return f"{choose(SIZE_WORDS[thing.size])} {plural(name) if many else name}".strip()


def named(item: Item, choose: Choose) -> str:
    """Name an item with its article: "an owl", "a sign that says HI"."""
    if isinstance(item, Sign):
        return choose(SIGN_PHRASES).format(word=choose(SPELLINGS)(item.word))
    return with_article(noun(item, choose))


# ------------------------------------------------------------------------------------------------ the halves


def subject(scene: Scene, choose: Choose, in_order: bool) -> str:
    """Say what a scene's items are and how they stand."""
    if len(scene.items) == 1:
        return named(scene.items[0], choose)
    if scene.is_count:
        return counted(scene, choose)
    items = scene.items if in_order else scene.items[::-1]
    if len(items) == 3 and scene.axis:
        return lined_up(items, scene.axis, in_order, choose)
    relation = next(r for r, (axis, second) in RELATIONS.items() if (axis, second) == (scene.axis, not in_order))
    first, second = (named(item, choose) for item in items)
    return f"{first} {choose(WORDINGS[relation])} {second}"


def counted(scene: Scene, choose: Choose) -> str:
    """Say a number of one thing: "three stars", "a pair of small cats"; three are always small, so that is not said."""
    count, item = len(scene.items), scene.items[0]
    thing = item if count == 2 and isinstance(item, Thing) else Thing(item.name)
    return f"{choose(COUNT_WORDS[count])} {noun(thing, choose, many=True)}"


def lined_up(items: tuple[Item, ...], axis: str, in_order: bool, choose: Choose) -> str:
    """List three things from one end to the other: "a cat, an owl and a car, from left to right"."""
    first, second, third = (named(Thing(item.name), choose) for item in items)
    return f"{first}, {second} and {third}, {choose(LINES[axis, not in_order])}"


def setting(scene: Scene, choose: Choose) -> str:
    """Say a scene's background, to follow its items: "on a blue background"."""
    if scene.background not in PLAIN:
        return choose(PLACE_PHRASES).format(place=choose(PLACES[scene.background]))
    colour = choose(COLOUR_WORDS.get(scene.background, (scene.background,)))
    return choose(COLOUR_PHRASES).format(colour=colour, a=with_article(colour), the=f"the {colour}")


def title(scene: Scene, choose: Choose) -> str:
    """Say a scene's background, to stand before its items: "blue background"."""
    if scene.background not in PLAIN:
        return choose(PLACES[scene.background])
    colour = choose(COLOUR_WORDS.get(scene.background, (scene.background,)))
    return choose(TITLES).format(colour=colour)


# ------------------------------------------------------------------------------------------------- captions


def compose(scene: Scene, choose: Choose, in_order: bool, form: int) -> str:
    """Put a caption together in one of `FORMS` ways."""
    what = subject(scene, choose, in_order)
    if form == 0:
        return f"{what} {setting(scene, choose)}"
    if form == 1:
        return f"{choose(THE_PICTURE)} {what} {setting(scene, choose)}"
    if form == 2:
        return f"{setting(scene, choose)}, {what}"
    return f"{title(scene, choose)}: {what}" if form == 3 else f"{what}, {title(scene, choose)}"


FORMS = 5


def plain_caption(scene: Scene) -> str:
    """Give a scene's plainest caption: "a cat left of an apple on a blue background"."""
    return compose(scene, lambda phrasings: phrasings[0], True, 0)


def caption(scene: Scene, rng: np.random.Generator, in_order: float = 0.5) -> str:
    """Choose a caption at random, with probability `in_order` one that names things in the picture's order.

    One in five begins with a capital letter, one in five ends with a full stop, as people write.
    """
    text = compose(
        scene, lambda phrasings: pick(rng, phrasings), bool(rng.random() < in_order), int(rng.integers(FORMS))
    )
    text = text[0].upper() + text[1:] if rng.random() < 0.2 else text
    return f"{text}." if rng.random() < 0.2 else text


def stream(
    seed: int, held_out: bool = False, width: int = DEFAULT_SIDE, height: int = DEFAULT_SIDE
) -> Iterator[tuple[Scene, str]]:
    """Yield (scene, caption) for ever, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        scene = sample(rng, width, height, held_out)
        yield scene, caption(scene, rng)
