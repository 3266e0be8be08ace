"""Edits that need no training: what is asked for, what counts as the rest, and a table and a plot of all settings."""

import numpy as np
import pytest
from PIL import Image

from minflux.world.render import render
from minflux.world.scenes import boxes
from tests import tiny_model
from tools import edit_curves
from tools.edit_curves import DIALS, Point, changed, measure, rows, wishes


def test_one_thing_becomes_another_of_its_size():
    for asked in wishes(20):
        for i, (old, new) in enumerate(zip(asked.before.items, asked.after.items, strict=True)):
            assert (old == new) == (i != asked.place)
            assert old.size == new.size
        assert boxes(asked.before) == boxes(asked.after)
        assert asked.after.items[asked.place].name not in {item.name for item in asked.before.items}


def test_the_rest_is_what_lies_outside_the_thing():
    (asked,) = wishes(1)
    assert changed(asked, render(asked.before)) == 0
    assert changed(asked, render(asked.after)) == 0
    assert changed(asked, np.zeros_like(render(asked.before))) > 20


def test_perfect_edits_are_right_and_those_that_do_nothing_are_not(monkeypatch):
    perfect, lazy, _ = DIALS
    ways = {
        perfect: lambda pipe, asked, dial, seed: Image.fromarray(render(asked.after)),
        lazy: lambda pipe, asked, dial, seed: asked.image,
    }
    monkeypatch.setattr(edit_curves, "DIALS", dict.fromkeys(ways, (0.5,)))
    monkeypatch.setattr(edit_curves, "WAYS", ways)
    assert [(p.right, p.changed) for p in measure(tiny_model.pipeline(), wishes(3))] == [(3, 0), (0, 0)]


@pytest.mark.parametrize("way", DIALS)
def test_each_way_draws(way, monkeypatch):
    monkeypatch.setattr(edit_curves, "STEPS", 2)
    (asked,) = wishes(1)
    image = edit_curves.WAYS[way](tiny_model.pipeline(), asked, 1.0, 3)
    assert image.size == (128, 128)
    assert changed(asked, np.asarray(image)) > 0


def test_the_table_and_the_plot_have_every_point(tmp_path):
    points = [Point(way, dial, 6, 8, 2.5) for way, dials in DIALS.items() for dial in dials]
    assert rows(points)[1] == ["image-to-image, strength", "0.3", "75% (41 to 93)", "2.5"]
    edit_curves.plot(points, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
