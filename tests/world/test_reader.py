"""The second world's reader, measured: on fresh images of every size, on damaged ones, and on wrong ones."""

import numpy as np
import pytest

from minflux.errors import ArgumentError
from minflux.world import reader, render, scenes
from minflux.world.scenes import BACKGROUNDS, THINGS, Scene, Sign, Thing

SIZES = [(128, 128), (96, 160), (160, 96), (64, 64), (160, 160), (64, 160), (112, 80)]
PAIR = Scene("blue", (Thing("cat"), Thing("apple", "small")), "horizontal")
TRIO = Scene("pink", tuple(Thing(name, "small") for name in ("cat", "apple", "owl")), "horizontal")
STARS = Scene("sky over grass", (Thing("star", "small"),) * 3, "horizontal")
SIGNED = Scene("white", (Sign("HELLO"), Thing("dog")), "vertical")


def blurred(image):
    """Blur (H, W, 3) uint8 by (1 2 1)/4 each way."""
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return np.rint((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4).astype(np.uint8)


def noisy(image):
    """Add Gaussian noise of 8/255 to (H, W, 3) uint8, the same noise every time."""
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)


def whole(image):
    return image


# ----------------------------------------------------------------------------------------------- how exact

# Measured with 100 scenes for each size and damage: every one exact, at 128×128, 64×64, 160×96, 96×160, 64×160 and
# 160×160. The least share of its rectangle that any item explained was 0.99, 0.97 and 0.88.


@pytest.mark.parametrize(("damage", "low"), [(whole, 0.95), (noisy, 0.9), (blurred, 0.8)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_reader_is_exact_on_rendered_scenes(size, damage, low):
    rng = np.random.default_rng(12)
    drawn = [scenes.sample(rng, *size, held_out=i % 2 == 1) for i in range(24)]
    readings = reader.read_batch([damage(render.render(scene)) for scene in drawn])
    for scene, reading in zip(drawn, readings, strict=True):
        assert reader.as_scene(reading) == scenes.without_offsets(scene)
        assert all(reader.score_reading(scene, reading).values())
    assert min(item.share for reading in readings for item in reading.found) > low > reader.ENOUGH


def test_places_are_read_to_the_pixel():
    rng = np.random.default_rng(3)
    for kind in scenes.KINDS:
        scene = scenes.sample(rng, 144, 112, kind=kind)
        found = [(item.x, item.y) for item in reader.read(render.render(scene)).found]
        assert sorted(found) == sorted((x + w / 2, y + h / 2) for x, y, w, h in scenes.boxes(scene))


@pytest.mark.parametrize("letters", ["ABCDEF", "GHIJKL", "MNOPQR", "STUVWX", "YZOQIL", "A", "II", "WWW", "MNHU"])
@pytest.mark.parametrize("side", [64, 128])
def test_every_letter_is_read(letters, side):
    scene = Scene("sunset over sea", (Sign(letters[: scenes.longest_word(side)]),), width=side, height=side)
    for damage in (whole, noisy, blurred):
        assert reader.score(scene, damage(render.render(scene)))["letters"]


@pytest.mark.parametrize("background", ["green", "sky over sand"])
def test_a_gain_is_the_squared_error_that_drawing_the_thing_removes(background):
    """The Fourier route against the definition |D|² − |D − Δ|², at one place of every template."""
    top, left = 9, 13
    difference = np.random.default_rng(1).normal(0, 30, (3, 96, 80)).astype(np.float32)
    ground = reader.ground(background, 80, 96)
    for bank, energy in zip(reader.banks(80, 96), reader.energies(background, 80, 96), strict=True):
        gains = reader.gains(difference, background, bank, energy)
        for n, name in enumerate(THINGS):
            canvas = np.zeros((4, 96, 80), np.float32)
            canvas[:, : bank.height, : bank.width] = render.thing_sprite(name, bank.width).transpose(2, 0, 1)
            soft = np.roll(reader.soften(canvas), (top, left), axis=(1, 2))
            delta = soft[:3] - soft[3] * ground
            by_definition = (difference**2).sum() - ((difference - delta) ** 2).sum()
            np.testing.assert_allclose(gains[n, top, left], by_definition, rtol=1e-3, atol=5000)


def test_square_energy_is_the_sum_over_each_rectangle():
    difference = np.random.default_rng(2).normal(size=(3, 64, 80))
    energy = reader.square_energy(difference, 18, 12)
    np.testing.assert_allclose(energy[5, 9], (difference[:, 5:17, 9:27] ** 2).sum(), rtol=1e-9)
    assert np.isfinite(energy[52, 62])
    assert np.isinf(energy[53, 62])
    assert np.isinf(energy[52, 63])


# --------------------------------------------------------------------------------- wrong images are wrong


def marks_missed(wanted, drawn):
    """Name the checks, apart from "all", that an image of `drawn` fails when `wanted` was asked for."""
    marks = reader.score(wanted, render.render(drawn))
    assert marks["all"] == all(marks[check] for check in reader.CHECKS[:-1])
    return {check for check in reader.CHECKS[:-1] if not marks[check]}


CASES = [
    (PAIR, PAIR, set()),
    (PAIR, Scene("blue", PAIR.items[::-1], "horizontal"), {"where"}),
    (PAIR, Scene("blue", PAIR.items, "vertical"), {"where"}),
    (PAIR, Scene("green", PAIR.items, "horizontal"), {"background"}),
    (PAIR, Scene("sky over sand", PAIR.items, "horizontal"), {"background"}),
    (PAIR, Scene("blue", (Thing("cat"), Thing("apple")), "horizontal"), {"size"}),
    (PAIR, Scene("blue", (Thing("cat"), Thing("donut", "small")), "horizontal"), {"things", "where", "size"}),
    (PAIR, Scene("blue", (Thing("cat"),)), {"things", "where", "size", "count"}),
    (TRIO, Scene("pink", TRIO.items[::-1], "horizontal"), {"where"}),
    (TRIO, Scene("pink", (TRIO.items[1], TRIO.items[0], TRIO.items[2]), "horizontal"), {"where"}),
    (STARS, Scene("sky over grass", STARS.items, "vertical"), set()),
    (STARS, Scene("sky over grass", STARS.items[:2], "vertical"), {"things", "where", "size", "count"}),
    (SIGNED, Scene("white", (Sign("HELLO"), Thing("dog")), "vertical", offsets=((16, 0), (0, 0))), set()),
    (SIGNED, Scene("white", (Sign("HALLO"), Thing("dog")), "vertical"), {"letters"}),
    (SIGNED, Scene("white", (Sign("HELL"), Thing("dog")), "vertical"), {"letters"}),
    (SIGNED, Scene("white", (Thing("dog"), Sign("HELLO")), "vertical"), {"where"}),
    (SIGNED, Scene("white", (Thing("dog"),)), {"things", "where", "size", "count", "letters"}),
    (Scene("white", (Thing("dog"),)), SIGNED, {"things", "count"}),
]


@pytest.mark.parametrize(("wanted", "drawn", "missed"), CASES)
def test_a_wrong_image_misses_the_marks_it_should(wanted, drawn, missed):
    assert marks_missed(wanted, drawn) == missed


def test_a_single_thing_may_lie_anywhere():
    image = render.render(Scene("pink", (Thing("owl"),)))
    for shift in (0, 16, 32):
        assert reader.score(Scene("pink", (Thing("owl"),)), np.roll(image, shift, axis=1))["where"]


def test_a_thing_too_many_is_seen():
    image = render.render(PAIR)
    image[96:, 48:80] = render.render(Scene("blue", (Thing("star", "small"),)))[48:80, 48:80]
    marks = reader.score(PAIR, image)
    assert (marks["where"], marks["size"], marks["count"], marks["things"]) == (True, True, False, False)
    assert reader.as_scene(reader.read(image)) is None


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("damage", [whole, noisy, blurred])
def test_an_empty_image_reads_as_no_items(background, damage):
    reading = reader.read(damage(render.background(background, 96, 80)))
    assert reading == reader.Reading(background, (), 96, 80)
    assert reader.as_scene(reading) is None


def test_no_image_of_noise_reads_as_an_item():
    images = np.random.default_rng(3).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    assert all(not reading.found for reading in reader.read_batch(images))


def test_half_a_thing_is_no_thing():
    for name in THINGS:
        scene = Scene("gray", (Thing(name, "large"),), width=64, height=64)
        ((left, _, width, _),) = scenes.boxes(scene)
        image = render.render(scene)
        image[:, left + width // 2 :] = BACKGROUNDS["gray"][0]
        assert (name, "large") not in [(item.name, item.size) for item in reader.read(image).found]


@pytest.mark.parametrize(
    "wrong", [np.zeros((64, 64, 3)), np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)]
)
def test_any_other_array_is_refused_by_name(wrong):
    with pytest.raises(ArgumentError, match="image"):
        reader.read(wrong)
