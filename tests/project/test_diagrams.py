"""The drawings of data flow: nothing runs off the sheet, and the page has all of them, light and dark."""

import sys

import matplotlib
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from chapters import check
from tests.project.test_docs import ROOT

matplotlib.use("agg")
sys.path.append(str(check.FOLDER))
from chapters import diagrams

SIZES = {name: draw().get_size_inches() for name, draw in diagrams.DRAWINGS.items()}
plt.close("all")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", diagrams.DRAWINGS)
def test_all_words_lie_on_the_sheet_and_none_on_another(name, dark):
    figure = diagrams.DRAWINGS[name](dark=dark)
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    width, height = figure.bbox.size
    outside = [
        t.get_text() for t, b in zip(texts, boxes, strict=True) if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height
    ]
    assert outside == []
    meeting = [
        (one.get_text(), other.get_text())
        for i, one in enumerate(texts)
        for j, other in enumerate(texts[:i])
        if boxes[i].overlaps(boxes[j])
    ]
    assert meeting == []
    plt.close(figure)


def test_each_part_of_the_whole_can_be_lit_up():
    plain = len(diagrams.whole().axes[0].patches)
    assert len(diagrams.whole(*diagrams.PLACES).axes[0].patches) == plain + len(diagrams.PLACES)
    plt.close("all")


@pytest.mark.parametrize("name", diagrams.DRAWINGS)
def test_the_page_shows_each_drawing_light_and_dark_as_it_is_drawn(name):
    page = (ROOT / "docs" / "drawings.md").read_text()
    for theme in ("light", "dark"):
        path = f"images/flow-{name}-{theme}.png"
        assert f'src="{path}#gh-{theme}-mode-only"' in page
        with Image.open(ROOT / "docs" / path) as image:
            assert image.size == tuple(round(200 * inches) for inches in SIZES[name])
