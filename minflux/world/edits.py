"""Edits told in a sentence: what an image shows, what is asked for, and what it is to show then.

    "make the background pink"             "remove the star"
    "replace the cat with a frog"          "add a small tree left of the owl"
    "move the apple above the cat"         "swap the cat and the apple"

Whatever the sentence doesn't name stays where and as it is. As of scenes, some combinations are never trained on: one
in twelve of each kind of edit with what it names. A model that does those has understood the parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from minflux.world.captions import COLOUR_WORDS, NAMES, PLACES, named, pick, with_article
from minflux.world.layouts import Layout, Placed, at_middle, beside, fits, layout_of, stands
from minflux.world.scenes import BACKGROUNDS, DEFAULT_SIDE, PLAIN, RELATIONS, THINGS, Sign, Thing, one_in_twelve, sample

SIMPLE = (
    "single",
    "pair",
    "trio",
    "sign",
    "sign and thing",
)  # kinds of scene of which every item has a name of its own


@dataclass(frozen=True)
class Edit:
    """An image's layout before and after, and the sentence that tells the one from the other.

    names: what kind of edit it is, and all that it names: those that are never trained on are told by it. where: what
    the sentence says of a place, as (thing, relation, other thing); a place that it doesn't say is that in `after`.
    """

    before: Layout
    after: Layout
    instruction: str
    names: tuple[str, ...]
    where: tuple[str, str, str] | None = None

    @property
    def kept(self) -> tuple[Placed, ...]:
        """The items that stay as they are."""
        return tuple(placed for placed in self.after.placed if placed in self.before.placed)

    @property
    def changed(self) -> tuple[Placed, ...]:
        """The items that are new, in themselves or in their place."""
        return tuple(placed for placed in self.after.placed if placed not in self.before.placed)


def sample_edit(
    rng: np.random.Generator,
    width: int = DEFAULT_SIDE,
    height: int = DEFAULT_SIDE,
    held_out: bool = False,
    kind: str | None = None,
) -> Edit:
    """Draw a random edit of the training split, or of the held-out one; of one of `EDITS`, or any alike.

    What it is made to is a scene that is not held out.
    """
    kind = kind or pick(rng, tuple(EDITS))
    while True:
        before = layout_of(sample(rng, width, height, kind=pick(rng, SIMPLE)))
        edit = EDITS[kind](before, rng)
        if edit is not None and fits(edit.after) and is_edit_held_out(edit) == held_out:
            return edit


def is_edit_held_out(edit: Edit) -> bool:
    """Tell whether an edit is one of those never trained on."""
    return one_in_twelve("edit", *edit.names)


# -- the kinds ---------------------------------------------------------------------------------------------------


def recolour(before: Layout, rng: np.random.Generator) -> Edit:
    """Put the items on another background."""
    to = pick(rng, [name for name in BACKGROUNDS if name != before.background])
    if to in PLAIN:
        colour = pick(rng, COLOUR_WORDS.get(to, (to,)))
        text = pick(rng, ("make the background {}", "change the background to {}")).format(colour)
    else:
        text = f"change the background to {pick(rng, PLACES[to])}"
    return Edit(before, replace(before, background=to), text, ("background", to, *sorted(before.names)))


def exchange(before: Layout, rng: np.random.Generator) -> Edit | None:
    """Put another thing of the same size in the place of one."""
    if (chosen := a_thing(before, rng)) is None:
        return None
    i, thing = chosen
    old = before.placed[i]
    new = Thing(pick(rng, [name for name in THINGS if name not in before.names]), thing.size)
    text = pick(rng, ("replace the {} with {}", "turn the {} into {}"))
    said = text.format(name_of(old, rng), with_article(name_of(Placed(new, old.box), rng)))
    return Edit(before, put(before, i, Placed(new, old.box)), said, ("replace", thing.name, new.name))


def remove(before: Layout, rng: np.random.Generator) -> Edit | None:
    """Take one of several items away."""
    if len(before.placed) < 2:
        return None
    i = int(rng.integers(len(before.placed)))
    left = before.placed[:i] + before.placed[i + 1 :]
    said = f"{pick(rng, ('remove', 'take away'))} the {name_of(before.placed[i], rng)}"
    return Edit(before, replace(before, placed=left), said, ("remove", *sorted(before.names), before.names[i]))


def add(before: Layout, rng: np.random.Generator) -> Edit | None:
    """Put a small thing beside an item, where there is room in line with it."""
    anchor = pick(rng, before.placed)
    relation = a_relation(anchor, rng)
    thing = Thing(pick(rng, [name for name in THINGS if name not in before.names]), "small")
    places = beside(before, anchor, thing.extent(before.short), relation)
    if len(before.placed) > 2 or not places:
        return None
    placed = Placed(thing, pick(rng, places))
    said = f"add {named(thing, lambda words: pick(rng, words))} {relation} the {name_of(anchor, rng)}"
    after = replace(before, placed=(*before.placed, placed))
    where = thing.name, relation, anchor.item.name
    return Edit(before, after, said, ("add", *where), where)


def move(before: Layout, rng: np.random.Generator) -> Edit | None:
    """Bring a thing to another side of the other one of two items."""
    if len(before.placed) != 2 or (chosen := a_thing(before, rng)) is None:
        return None
    i, _ = chosen
    moved, anchor = before.placed[i], before.placed[1 - i]
    relation = a_relation(anchor, rng)
    places = beside(before, anchor, moved.item.extent(before.short), relation)
    if not places or stands(moved.middle, relation, anchor.middle):
        return None
    after = put(before, i, Placed(moved.item, pick(rng, places)))
    said = f"move the {name_of(moved, rng)} {relation} the {name_of(anchor, rng)}"
    where = moved.item.name, relation, anchor.item.name
    return Edit(before, after, said, ("move", *where), where)


def swap(before: Layout, rng: np.random.Generator) -> Edit | None:
    """Let two items change places."""
    if len(before.placed) != 2:
        return None
    first, second = before.placed
    changed = (
        Placed(first.item, at_middle(second.middle, first.item.extent(before.short))),
        Placed(second.item, at_middle(first.middle, second.item.extent(before.short))),
    )
    said = pick(rng, ("swap the two", f"swap the {name_of(first, rng)} and the {name_of(second, rng)}"))
    return Edit(before, replace(before, placed=changed), said, ("swap", *before.names))


EDITS: dict[str, Callable[[Layout, np.random.Generator], Edit | None]] = {
    "background": recolour, "replace": exchange, "remove": remove, "add": add, "move": move, "swap": swap,
}  # fmt: skip


# -- parts ---------------------------------------------------------------------------------------------------------


def a_thing(layout: Layout, rng: np.random.Generator) -> tuple[int, Thing] | None:
    """Choose one of the items that are no signs, and tell which one it is; None where there is none."""
    things = [(i, placed.item) for i, placed in enumerate(layout.placed) if isinstance(placed.item, Thing)]
    return pick(rng, things) if things else None


def a_relation(anchor: Placed, rng: np.random.Generator) -> str:
    """Choose a relation to an item: signs, as in scenes, have things above or below them alone."""
    return pick(rng, ("above", "below") if isinstance(anchor.item, Sign) else tuple(RELATIONS))


def put(layout: Layout, i: int, placed: Placed) -> Layout:
    """Return the layout with another item, or place, in the stead of item i."""
    return replace(layout, placed=(*layout.placed[:i], placed, *layout.placed[i + 1 :]))


def name_of(placed: Placed, rng: np.random.Generator) -> str:
    """Choose one of an item's names, without its size."""
    return pick(rng, NAMES.get(placed.item.name, (placed.item.name,)))
