"""The curve of step caching: prompts alone, the share of steps that were skipped, and a table and a plot of them."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import step_caching
from benchmarks.step_caching import Point, held_out, measure, point, rows
from minflux.inference.step_cache import StepCache
from minflux.world import scenes
from minflux.world.render import render_batch


class Painter:
    """A pipeline that paints the scene itself; with a cache it skips half of the steps, and dims the image."""

    def __init__(self, wanted: scenes.Scene):
        self.image = render_batch([wanted])[0]

    def __call__(self, caption, *, seed, steps, step_cache):
        if step_cache is None:
            return Image.fromarray(self.image)
        step_cache.skipped[:] = range(steps // 2)
        return Image.fromarray(self.image // (1 if step_cache.threshold < 0.4 else 8))


def test_every_threshold_has_its_share_and_its_accuracy(monkeypatch):
    prompts = held_out(1)
    monkeypatch.setattr(step_caching, "tqdm", lambda captions, **how: captions)
    points = measure(Painter(prompts.wanted[0]), 1, 10)
    assert len(points) == 12
    assert [p.skipped for p in points if p.threshold == 0] == [0, 0]
    assert {p.skipped for p in points if p.threshold > 0} == {0.5}
    assert {p.right for p in points if p.threshold < 0.4} == {1.0}
    assert {p.right for p in points if p.threshold >= 0.4} == {0.0}


def test_the_difference_is_in_levels():
    prompts = held_out(2)
    images = render_batch(prompts.wanted)
    darker = np.maximum(images.astype(int) - 1, 0).astype(np.uint8)
    found = point(prompts, darker, images, 0.25, StepCache("teacache", 0.4))
    assert found.difference == pytest.approx((images > 0).mean())


def test_the_table_and_the_plot_have_every_point(tmp_path):
    points = [
        Point(rule, t, t / 2, 1 - t / 4, (0.7, 1.0), 3 * t) for rule in step_caching.THRESHOLDS for t in (0.0, 0.4)
    ]
    assert rows(points)[2] == ["first-block", "0.4", "20%", "90.0% (70.0 to 100.0)", "1.20"]
    step_caching.plot(points, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
