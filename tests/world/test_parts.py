"""What each token stands for: held to the image itself, to the caption's words, and to a scene written out by hand."""

import numpy as np
import pytest

from minflux.inference.text import Tokenizer
from minflux.world.captions import NAMES, caption, plural
from minflux.world.parts import LABELS, image_labels, image_parts, parts, spans, text_parts
from minflux.world.render import background, render
from minflux.world.scenes import GRID, SIDES, Scene, Sign, Thing, sample
from minflux.world.tokenizers import train_tokenizers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizers(folder)
    return Tokenizer.from_folder(folder / "tokenizer_2")


def drawn(count: int) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample(rng, *(int(side) for side in rng.choice(SIDES, 2))) for _ in range(count)]


def test_a_scene_by_hand():
    scene = Scene("white", (Sign("HI"), Thing("cat", "small")), "vertical", 64, 96)
    labels = image_labels(scene).reshape(6, 4)
    rows = ["".join(LABELS[number][0] for number in row if number) for row in labels]
    assert [row for row in rows if row] == ["HI", "HI", "c"]  # a small thing is one token in a narrow image


def test_tokens_without_a_label_show_background():
    for scene in drawn(40):
        labels = image_labels(scene)
        differs = (render(scene) != background(scene.background, scene.width, scene.height)).any(-1)
        tokens = differs.reshape(scene.height // GRID, GRID, -1, GRID).any((1, 3)).reshape(-1)
        assert labels.dtype == np.int32
        assert labels.shape == tokens.shape
        assert not tokens[labels == 0].any()
        assert tokens[labels > 0].mean() >= 0.5  # a sprite's corners may be empty


def test_every_label_is_used():
    rng = np.random.default_rng(0)
    assert {int(number) for _ in range(600) for number in image_labels(sample(rng))} == set(range(len(LABELS)))


def test_parts_are_numbered_as_they_are_listed():
    for scene in drawn(40):
        listed, shown, labels = parts(scene), image_parts(scene), image_labels(scene)
        assert set(shown) - {0} == set(range(1, len(listed) + 1))
        for number, part in enumerate(listed, start=1):
            assert {LABELS[label] for label in labels[shown == number]} == {part.label}
            left, top = np.array(part.boxes)[:, :2].min(0) // GRID
            rows, columns = np.nonzero(shown.reshape(-1, scene.width // GRID) == number)
            assert (columns.min(), rows.min()) == (left, top)


def test_every_part_is_found_in_every_caption(tokenizer):
    rng = np.random.default_rng(1)
    for scene in drawn(400):
        text = caption(scene, rng)
        for part, (start, end) in zip(parts(scene), spans(scene, text), strict=True):
            names = NAMES.get(part.label, (part.label,))
            assert text[start:end].lower() in {word.lower() for name in names for word in (name, plural(name))}
        named = text_parts(scene, text, tokenizer, 32)
        assert set(named) == {0, *range(1, len(parts(scene)) + 1)}
        pieces = tokenizer.backend.encode(text).tokens
        for number, part in enumerate(parts(scene), start=1):
            word = "".join(pieces[i] for i in np.flatnonzero(named == number)).strip("▁").lower()
            assert part.label.lower()[0] in word or part.label in NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A sign that says A above a cat", (17, 18)),
        ('a cat below a sign reading "a"', (28, 29)),
        ("A sign saying 'A'.", (15, 16)),
    ],
)
def test_a_word_that_is_an_article_too(text, expected):
    sign, cat = Sign("A"), Thing("cat", "small")
    scene = Scene("white", (sign, cat) if "cat" in text else (sign,), "vertical" if "cat" in text else None)
    assert spans(scene, text)[0] == expected
