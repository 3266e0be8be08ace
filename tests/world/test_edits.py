"""Edits of the small world: each does what its sentence says, and the marks know it from all else."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from minflux.world.edited import CHECKS, difference_outside, score_edit
from minflux.world.edits import EDITS, Edit, add, is_edit_held_out, move, recolour, remove, sample_edit, swap
from minflux.world.layouts import Placed, beside, fits, layout_of, overlap, render_layout
from minflux.world.render import render
from minflux.world.scenes import RELATIONS, Scene, Sign, Thing, sample

PAIR = layout_of(Scene("blue", (Thing("cat", "small"), Thing("apple", "small")), "horizontal"))


def edits(kind: str, count: int, **how) -> list[Edit]:
    rng = np.random.default_rng(5)
    return [sample_edit(rng, kind=kind, **how) for _ in range(count)]


# -- layouts -------------------------------------------------------------------------------------------------


def test_a_scene_s_layout_is_drawn_as_the_scene():
    rng = np.random.default_rng(0)
    for size in ((128, 128), (64, 64), (96, 160)):
        scene = sample(rng, *size)
        np.testing.assert_array_equal(render_layout(layout_of(scene)), render(scene))


@pytest.mark.parametrize("relation", RELATIONS)
def test_places_beside_an_item_are_beside_it(relation):
    (cat, _) = PAIR.placed
    places = beside(PAIR, cat, (32, 32), relation)
    axis, second = RELATIONS[relation]
    i = 0 if axis == "horizontal" else 1
    for place in places:
        assert not overlap(place, cat.box)
        assert (place[i] >= cat.box[i] + 32) if second else (place[i] + 32 <= cat.box[i])
        assert place[1 - i] == cat.box[1 - i]
    assert places or relation == "left of"


def test_what_leaves_the_image_or_covers_something_does_not_fit():
    cat, apple = PAIR.placed
    assert fits(PAIR)
    assert not fits(replace(PAIR, placed=(cat, Placed(apple.item, cat.box))))
    assert not fits(replace(PAIR, placed=(Placed(cat.item, (112, 0, 32, 32)),)))


# -- edits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_an_edit_as_drawn_is_all_right_and_the_image_before_is_not(kind, size):
    for edit in edits(kind, 6, width=size[0], height=size[1]):
        assert score_edit(edit, render_layout(edit.after)) == dict.fromkeys(CHECKS, True), edit.instruction
        assert not score_edit(edit, render_layout(edit.before))["all"], edit.instruction


@pytest.mark.parametrize("kind", EDITS)
def test_what_is_not_named_stays(kind):
    for edit in edits(kind, 20):
        gone = [placed for placed in edit.before.placed if placed not in edit.kept]
        assert len(gone) <= {"background": 0, "add": 0, "swap": 2}.get(kind, 1)
        assert (edit.before.background == edit.after.background) == (kind != "background")
        assert edit.instruction.split()[0] in {
            "make",
            "change",
            "replace",
            "turn",
            "remove",
            "take",
            "add",
            "move",
            "swap",
        }


def test_held_out_edits_are_one_in_twelve():
    rng = np.random.default_rng(1)
    drawn = [EDITS[kind](layout_of(sample(rng, kind="pair")), rng) for kind in EDITS for _ in range(200)]
    shares = Counter(is_edit_held_out(edit) for edit in drawn if edit is not None)
    assert 0.04 < shares[True] / shares.total() < 0.14
    assert all(is_edit_held_out(edit) for edit in edits("move", 5, held_out=True))


def test_edits_are_the_same_for_the_same_seed():
    assert edits("add", 3) == edits("add", 3)


def test_what_an_edit_needs_it_asks_for():
    rng = np.random.default_rng(0)
    alone = layout_of(Scene("blue", (Thing("cat"),)))
    assert remove(alone, rng) is move(alone, rng) is swap(alone, rng) is None
    sign = layout_of(Scene("blue", (Sign("HI"),)))
    assert EDITS["replace"](sign, rng) is None
    three = layout_of(Scene("white", tuple(Thing(name, "small") for name in ("cat", "owl", "car")), "horizontal"))
    assert add(three, rng) is None
    assert recolour(three, rng) is not None


# -- marks ---------------------------------------------------------------------------------------------------


def test_a_kept_item_that_moved_or_grew_is_noticed():
    (edit,) = edits("background", 1)
    first = edit.after.placed[0]
    moved = replace(
        edit.after, placed=(Placed(first.item, (first.box[0] + 16, *first.box[1:])), *edit.after.placed[1:])
    )
    if fits(moved):
        assert not score_edit(edit, render_layout(moved))["kept"]
    gone = replace(edit.after, placed=edit.after.placed[1:])
    assert not score_edit(edit, render_layout(gone))["items"]


def test_a_thing_on_the_wrong_side_is_noticed():
    cat, apple = PAIR.placed
    above = Placed(apple.item, (cat.box[0], cat.box[1] - 48, 32, 32))
    below = Placed(apple.item, (cat.box[0], cat.box[1] + 48, 32, 32))
    where = ("apple", "above", "cat")
    edit = Edit(PAIR, replace(PAIR, placed=(cat, above)), "move the apple above the cat", ("move", *where), where)
    assert score_edit(edit, render_layout(edit.after))["all"]
    assert not score_edit(edit, render_layout(replace(PAIR, placed=(cat, below))))["changed"]
    assert not score_edit(edit, render_layout(PAIR))["changed"]


def test_the_difference_outside_what_changes_is_measured():
    (edit,) = edits("remove", 1)
    before, after = render_layout(edit.before), render_layout(edit.after)
    assert difference_outside(edit, before, after) == 0
    assert difference_outside(edit, before, np.minimum(after, 254) + 1) == pytest.approx(1, abs=0.5)
    (recoloured,) = edits("background", 1)
    assert np.isnan(difference_outside(recoloured, before, after))
