"""The five measures, on stand-ins for a model: one that knows the answers, one that draws nothing, and ones between."""

import numpy as np
import pytest

from minflux.world import captions, evaluate, render, scenes
from minflux.world.evaluate import Diversity, alike, diversity, follow, quality, typography


@pytest.fixture
def answers(monkeypatch):
    """Note the scene of every caption, so that a stand-in can draw it: {caption: scene}."""
    known = {}

    def noted(scene, rng):
        text = captions.caption(scene, rng)
        known[text] = scene
        return text

    def noted_plain(scene):
        known[captions.plain_caption(scene)] = scene
        return captions.plain_caption(scene)

    monkeypatch.setattr(evaluate, "caption", noted)
    monkeypatch.setattr(evaluate, "plain_caption", noted_plain)
    return known


def knowing(answers, change=lambda image: image, calls=None):
    def pipe(prompts, seed, width, height, **how):
        if calls is not None:
            calls.append((len(prompts), seed, width, height, how))
        images = [change(render.render(answers[prompt])) for prompt in prompts]
        assert all(image.shape == (height, width, 3) for image in images)
        return images

    return pipe


def empty(prompts, seed, width, height):
    return [np.full((height, width, 3), 250, np.uint8) for _ in prompts]


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (64, 64)])
def test_one_who_knows_gets_everything_right(answers, size):
    calls = []
    drawn = follow(knowing(answers, calls=calls), size, 30, seed=3, steps=7)
    assert drawn.share("all") == 1
    assert calls == [(25, 3, *size, {"steps": 7}), (5, 28, *size, {"steps": 7})]
    assert all(scenes.is_held_out(scene) for scene in drawn.wanted)
    assert quality(drawn)[0] == pytest.approx(1)
    assert quality(drawn)[1] > 0.98


def test_one_who_draws_nothing_gets_nothing_right(answers):
    drawn = follow(empty, (64, 64), 12)
    assert (drawn.share("all"), drawn.share("count"), drawn.share("things")) == (0, 0, 0)
    assert np.isnan(quality(drawn)).all()


def test_prompts_are_the_same_for_the_same_seed_and_differ_for_another(answers):
    one, two, other = (follow(knowing(answers), (64, 64), 5, seed) for seed in (1, 1, 2))
    assert one.prompts == two.prompts != other.prompts


def test_typography_is_of_signs_alone(answers):
    assert typography(knowing(answers), 9) == 1
    assert any("SIGN" in text.upper() for text in answers)
    assert typography(empty, 9) == 0


def test_blur_costs_quality_before_it_costs_anything_else(answers):
    def blur(image):
        soft = image.astype(int)
        around = [np.roll(soft, shift, axis=(0, 1)) for shift in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return (sum(around) // 4).astype(np.uint8)

    drawn = follow(knowing(answers, blur), (128, 128), 12)
    assert drawn.share("things") == 1
    assert 0.02 < quality(drawn)[0] < 0.5


def test_the_same_image_every_time_has_no_diversity(answers):
    assert diversity(knowing(answers), 2) == Diversity(0, 1)
    assert diversity(empty, 2) == Diversity(0, 1)


def test_the_diversity_of_the_training_scenes(answers):
    def pipe(prompts, seed, width, height):
        rng = np.random.default_rng(seed)
        wanted = answers[prompts[0]]
        again = [
            scenes.Scene(wanted.background, wanted.items, offsets=scenes._draw_offsets(rng, wanted)) for _ in prompts
        ]
        return [render.render(scene) for scene in again]

    found = diversity(pipe, 6)
    assert 0.08 < found.deviation < 0.12  # a step of 16 pixels either way, in sides of 128
    assert found.alike < 0.2  # of nine places, two are the same by chance


def test_places_less_than_a_pixel_apart_are_alike():
    assert alike(np.array([[0, 0], [0.5, 0.5], [0, 1], [9, 9]])) == pytest.approx(2 / 6)
