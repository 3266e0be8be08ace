"""The grammar: what it says of a scene, and that no two scenes are called the same."""

import re
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minflux.inference.hints import Trained
from minflux.world import captions, scenes
from minflux.world.captions import caption, plain_caption, stream
from minflux.world.scenes import LONGEST_WORD, Scene, Sign, Thing
from minflux.world.vocabulary import known_words, vocabulary

TRAINED = Trained(words=tuple(known_words()), spelled=LONGEST_WORD)
CAT, OWL, CAR = Thing("cat", "small"), Thing("owl"), Thing("car", "small")


@pytest.mark.parametrize(
    ("scene", "plain"),
    [
        (Scene("blue", (Thing("cat", "large"),)), "a large cat on a blue background"),
        (Scene("orange", (OWL,)), "an owl on an orange background"),
        (Scene("gray", (CAT, OWL), "horizontal"), "a small cat left of an owl on a gray background"),
        (Scene("pink", (CAT, OWL), "vertical"), "a small cat above an owl on a pink background"),
        (Scene("white", (Thing("fox"),) * 2, "vertical"), "two foxes on a white background"),
        (Scene("white", (CAT,) * 3, "horizontal"), "three cats on a white background"),
        (
            Scene("sky over grass", (CAT, Thing("owl", "small"), CAR), "horizontal"),
            "a cat, an owl and a car, from left to right in front of blue sky over green grass",
        ),
        (Scene("blue", (Sign("HI"),)), "a sign that says HI on a blue background"),
        (
            Scene("night over snow", (Sign("HI"), OWL), "vertical"),
            "a sign that says HI above an owl in front of a night sky over white snow",
        ),
    ],
)
def test_the_plain_caption(scene, plain):
    assert plain_caption(scene) == plain


def said(scene: Scene, in_order: float, count: int = 400) -> list[str]:
    rng = np.random.default_rng(0)
    return [caption(scene, rng, in_order).lower() for _ in range(count)]


@pytest.mark.parametrize("in_order", [0.0, 0.75, 1.0])
@pytest.mark.parametrize(("axis", "relation"), [("horizontal", "left of"), ("vertical", "above")])
def test_captions_in_the_order_of_the_picture(in_order, axis, relation):
    drawn = said(Scene("blue", (Thing("frog"), Thing("apple")), axis), in_order)
    ordered = [text for text in drawn if text.index("frog") < text.index("apple")]
    assert abs(len(ordered) / 400 - in_order) <= 0.065  # three deviations
    words = captions.WORDINGS[relation]
    assert all(any(re.search(rf"\b{word}\b", text) for word in words) == (text in ordered) for text in drawn)


def test_three_things_are_listed_from_either_end():
    drawn = said(Scene("blue", (Thing("frog", "small"), Thing("apple", "small"), CAR), "vertical"), 0.5)
    assert any("from bottom to top" in text for text in drawn)
    for text in drawn:
        downwards = text.index("frog") < text.index("apple")
        assert downwards == ("top to bottom" in text)


def test_a_number_of_things_says_nothing_of_its_layout():
    texts = {axis: set(said(Scene("blue", (CAT,) * 3, axis), 0.75, 2000)) for axis in scenes.AXES}
    assert texts["horizontal"] == texts["vertical"]
    assert any("3 kitties" in text for text in texts["vertical"])


def test_every_scene_can_be_said_in_many_ways():
    for scene, _ in islice(stream(1), 40):
        assert len(set(said(scene, 0.75, 200))) > 30


@given(st.integers(0, 2**32 - 1))
def test_different_scenes_have_different_captions(seed):
    """Change one thing that captions tell of, and all of 100 captions are others than the 100 before."""
    rng = np.random.default_rng(seed)
    scene, other = scenes.sample(rng), scenes.sample(rng)
    one, two = (plain_caption(s) for s in (scene, other))
    if one != two:
        assert not set(said(scene, 0.75, 100)) & set(said(other, 0.75, 100))


def test_a_word_is_written_as_the_sign_has_it_in_capitals_or_quotes():
    rng = np.random.default_rng(0)
    texts = [caption(Scene("blue", (Sign("STAR"),)), rng) for _ in range(300)]
    assert all(re.search(r"\bSTAR\b|\"star\"", text) for text in texts)
    assert any('"star"' in text for text in texts)
    assert any("'STAR'" in text for text in texts)


def test_some_captions_begin_with_a_capital_and_some_end_with_a_full_stop():
    texts = [text for _, text in islice(stream(2), 1000)]
    assert 0.15 < np.mean([text[0].isupper() for text in texts]) < 0.25
    assert 0.15 < np.mean([text.endswith(".") for text in texts]) < 0.25


# ---------------------------------------------------------------------------------------------- vocabulary


def test_every_word_of_every_caption_is_known():
    for _, text in islice(stream(4), 2000):
        assert TRAINED.unknown_words(text) == [], text


def test_every_known_word_is_in_some_caption():
    """What the listing promises was trained on."""
    said = {word.lower() for _, text in islice(stream(6), 20_000) for word in re.findall(r"[A-Za-z]+|\d+", text)}
    assert known_words() <= said


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("A Cat left of an APPLE", []),
        ("a unicorn and a cat riding a unicorn", ["unicorn", "riding"]),
        ("a sign that says STARSHIP", ["STARSHIP"]),
        ("a sign that says 'zebra'", []),
        ('a sign that says "two words"', ["two words"]),
        ("a sign that says hello", ["hello"]),
        ("", []),
    ],
)
def test_words_that_mean_nothing_here_are_told(prompt, unknown):
    assert TRAINED.unknown_words(prompt) == unknown


def test_the_listing_names_everything():
    listing = vocabulary()
    assert len(listing["things"]) == len(scenes.THINGS)
    assert len(listing["backgrounds"]) == len(scenes.BACKGROUNDS)
    assert "cat / kitty" in listing["things"]
    assert "left of / to the left of / on the left of" in listing["where"]
