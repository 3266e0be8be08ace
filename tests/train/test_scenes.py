"""The emoji-scenes world: images, captions and the held-out split."""

from itertools import islice, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from minflux.errors import ArgumentError
from minflux.train import make_sprites, scenes
from minflux.train.scenes import BACKGROUNDS, SIZES, THINGS, Scene, Thing

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def any_scene(draw):
    """Any scene of the world, from either split."""
    return scenes.sample(np.random.default_rng(draw(SEEDS)), held_out=draw(st.booleans()))


# ------------------------------------------------------------------------------------------------ the world


def test_the_world_is_as_large_as_promised():
    assert len(THINGS) >= 24
    assert len(BACKGROUNDS) == 8
    assert SIZES == {"small": 18, "regular": 28, "large": 44}
    assert set(scenes.RELATIONS) == set(scenes.WORDINGS) == {"left of", "right of", "above", "below"}


def test_a_scene_without_offsets_has_none():
    assert Scene("blue", (Thing("cat"), Thing("apple")), "horizontal").offsets == ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: Thing("unicorn"), "name"),
        (lambda: Thing("cat", "huge"), "size"),
        (lambda: Scene("teal", (Thing("cat"),)), "background"),
        (lambda: Scene("blue", ()), "things"),
        (lambda: Scene("blue", (Thing("cat"),), "vertical"), "axis"),
        (lambda: Scene("blue", (Thing("cat"), Thing("owl"))), "axis"),
        (lambda: Scene("blue", (Thing("cat"), Thing("cat", "small")), "vertical"), "things"),
        (lambda: Scene("blue", (Thing("cat", "large"), Thing("owl")), "vertical"), "size"),
        (lambda: Scene("blue", (Thing("cat"),), None, ((3, 0),)), "offsets"),
        (lambda: next(scenes.stream(-1)), "seed"),
    ],
)
def test_what_the_world_does_not_have_is_refused_by_name(build, names):
    with pytest.raises(ArgumentError, match=names):
        build()


# ------------------------------------------------------------------------------------------------- images


def test_sprites_load_without_the_font(monkeypatch):
    monkeypatch.setattr(ImageFont, "truetype", None)
    scenes.sprite.cache_clear()
    for name, (size, side) in product(THINGS, SIZES.items()):
        sprite = scenes.sprite(name, size)
        assert sprite.shape == (side, side, 4)
        assert sprite.dtype == np.float32
        assert 0 <= sprite.min() < sprite.max() <= 1
        assert sprite[..., 3].mean() > 0.25  # a silhouette, not a few specks


def test_a_missing_font_is_one_clear_error(tmp_path):
    with pytest.raises(ArgumentError, match="font_file"):
        make_sprites.make_sprites(tmp_path / "no.ttf", tmp_path)


def test_every_sprite_can_be_told_from_its_background_and_from_every_other():
    for size, background in product(SIZES, BACKGROUNDS):
        patches = np.stack([scenes.patch(name, size, background) for name in THINGS]).astype(float)
        bank = np.concatenate([patches, np.broadcast_to(BACKGROUNDS[background], patches[:1].shape)])
        rms = np.sqrt(((bank[:, None] - bank[None]) ** 2).mean(axis=(2, 3, 4)))
        assert rms[~np.eye(len(bank), dtype=bool)].min() > 20  # of 255


@given(any_scene())
def test_a_image_is_its_things_on_flat_colour(scene):
    image = scenes.render(scene)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    inside = np.zeros((64, 64), int)
    for thing, (x, y) in zip(scene.things, scenes.centres(scene), strict=True):
        half = SIZES[thing.size] // 2
        assert half <= x <= 64 - half
        assert half <= y <= 64 - half
        inside[y - half : y + half, x - half : x + half] += 1
    assert inside.max() == 1  # things never overlap
    assert (image[inside == 0] == BACKGROUNDS[scene.background]).all()
    assert (image[inside == 1] != BACKGROUNDS[scene.background]).any()


def test_a_batch_is_its_images():
    batch = [scene for scene, _ in islice(scenes.stream(5), 20)]
    np.testing.assert_array_equal(scenes.render_batch(batch), [scenes.render(scene) for scene in batch])


def test_jitter_moves_the_image_by_whole_pixels():
    still = scenes.render(Scene("pink", (Thing("cat"),)))
    moved = scenes.render(Scene("pink", (Thing("cat"),), None, ((2, -1),)))
    np.testing.assert_array_equal(np.roll(still, (-1, 2), axis=(0, 1)), moved)


# ---------------------------------------------------------------------------------------- sampling and split


def test_the_stream_depends_on_the_seed_alone():
    first, again, other = (list(islice(scenes.stream(seed), 50)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


@given(SEEDS)
def test_no_training_scene_is_held_out_and_every_held_out_scene_is(seed):
    rng = np.random.default_rng(seed)
    assert not scenes.is_held_out(scenes.sample(rng))
    assert scenes.is_held_out(scenes.sample(rng, held_out=True))


def test_training_never_shows_a_held_out_combination():
    pairs = {
        (first, second, axis)
        for first, second, axis in _ordered_pairs()
        if scenes.is_pair_held_out(first, second, axis)
    }
    for scene, _ in islice(scenes.stream(3), 3000):
        names = tuple(thing.name for thing in scene.things)
        assert (*names, scene.axis) not in pairs
        assert all(scenes.held_out_backgrounds()[name] != scene.background for name in names)


def test_held_out_backgrounds_are_balanced():
    held_out = list(scenes.held_out_backgrounds().values())
    assert set(scenes.held_out_backgrounds()) == set(THINGS)
    assert all(held_out.count(background) <= len(THINGS) / 4 for background in BACKGROUNDS)


def test_held_out_pairs_are_about_one_in_twelve_and_touch_every_thing():
    held_out = [pair for pair in _ordered_pairs() if scenes.is_pair_held_out(*pair)]
    assert 0.06 < len(held_out) / len(_ordered_pairs()) < 0.10
    assert {name for first, second, _ in held_out for name in (first, second)} == set(THINGS)


def test_the_split_never_changes():
    """A model trained on yesterday's split must not be marked on another one."""
    assert scenes.held_out_backgrounds()["penguin"] == "white"
    assert scenes.held_out_backgrounds()["tree"] == "yellow"
    assert sum(scenes.is_pair_held_out(*pair) for pair in _ordered_pairs()) == 80


def test_a_third_of_scenes_hold_one_thing_in_both_splits():
    for held_out in (False, True):
        single = [scene.axis is None for scene, _ in islice(scenes.stream(0, held_out), 2000)]
        assert abs(np.mean(single) - 0.35) < 0.04


def _ordered_pairs():
    return [(a, b, axis) for a, b in product(THINGS, THINGS) if a != b for axis in ("horizontal", "vertical")]


# ------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("scene", "plain"),
    [
        (Scene("blue", (Thing("cat", "large"),)), "a large cat on a blue background"),
        (Scene("orange", (Thing("owl"),)), "an owl on an orange background"),
        (Scene("blue", (Thing("cat"), Thing("apple")), "horizontal"), "a cat left of an apple on a blue background"),
        (
            Scene("pink", (Thing("cat", "small"), Thing("owl")), "vertical"),
            "a small cat above an owl on a pink background",
        ),
    ],
)
def test_the_plain_caption(scene, plain):
    assert scenes.plain_caption(scene) == plain


def test_a_pair_is_told_from_either_side():
    scene = Scene("blue", (Thing("cat"), Thing("apple")), "horizontal")
    assert "an apple right of a cat on a blue background" in scenes.captions(scene)
    assert "the cat is left of the apple, blue background" in scenes.captions(scene)


@given(any_scene())
def test_every_caption_is_short_lower_case_and_its_own(scene):
    texts = scenes.captions(scene)
    assert len(texts) == len(set(texts)) >= 6
    assert all(text == text.lower() and len(text.split()) <= 20 for text in texts)


@given(any_scene())
def test_parse_undoes_every_caption(scene):
    for text in scenes.captions(scene):
        assert scenes.parse(text) == scenes.without_jitter(scene)


def test_parse_forgives_case_spaces_and_a_full_stop():
    assert scenes.parse("  A large CAT on a blue  background. ") == Scene("blue", (Thing("cat", "large"),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a unicorn on a blue background",
        "a cat left of a cat on a blue background",
        "a cat left of a dog on a blue background",
        "a large cat left of an owl on a blue background",
        "a cat and an owl on a blue background",
        "no cat on a blue background",
        "a owl on a blue background",
    ],
)
def test_parse_of_anything_else_is_none(text):
    assert scenes.parse(text) is None


@given(SEEDS)
def test_the_random_caption_is_one_of_the_captions(seed):
    rng = np.random.default_rng(seed)
    scene = scenes.sample(rng)
    assert scenes.caption(scene, rng) in scenes.captions(scene)


@pytest.mark.parametrize("in_order", [0.0, 0.75, 1.0])
@pytest.mark.parametrize(("axis", "word"), [("horizontal", "left of"), ("vertical", ("above", "over"))])
def test_captions_in_the_order_of_the_image(in_order, axis, word):
    scene = scenes.Scene("blue", (scenes.Thing("cat"), scenes.Thing("apple")), axis)
    rng = np.random.default_rng(0)
    drawn = [scenes.caption(scene, rng, in_order) for _ in range(400)]
    assert set(drawn) <= set(scenes.captions(scene))
    ordered = [text for text in drawn if text.index("cat") < text.index("apple")]
    assert abs(len(ordered) / 400 - in_order) <= 0.06  # about three deviations
    words = (word,) if isinstance(word, str) else word
    assert all(any(w in text for w in words) for text in ordered)


def test_a_single_thing_has_no_order():
    scene = scenes.Scene("blue", (scenes.Thing("cat"),))
    assert scenes.caption(scene, np.random.default_rng(0), 1.0) in scenes.captions(scene)
