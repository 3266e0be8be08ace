"""Where the small model looks: the best heads first, those that were taught told, and the figure's maps."""

import numpy as np

from tools import looks

SHARES = {(block, head): 0.5 for block in ("double_blocks.1", "single_blocks.1") for head in range(4)}


def test_heads_that_were_taught_are_told():
    assert looks.taught() == {("double_blocks.1", 0), ("single_blocks.1", 0)}
    _, first, second, *rest, best, own = looks.rows(SHARES | {("double_blocks.1", 0): 0.9, ("single_blocks.1", 2): 0.7})
    assert first == ["double_blocks.1, head 0", "0.90", "yes"]
    assert second == ["single_blocks.1, head 2", "0.70", ""]
    assert best[1] == f"{(0.9 + 0.7 + 0.5 + 0.5) / 4:.2f}"
    assert own[1] == f"{(0.7 + 3 * 0.5) / 4:.2f}"
    assert [row[2] for row in rest].count("yes") == 1


def test_each_block_has_its_best_head():
    assert looks.best_heads(SHARES | {("single_blocks.1", 3): 0.6}) == [("double_blocks.1", 0), ("single_blocks.1", 3)]


def test_a_map_is_white_where_it_is_largest():
    pixels = looks.drawn(np.array([[0.1, 0.2], [0.4, 0.0]]), (4, 4))
    assert pixels.shape == (4, 4, 3)
    assert (pixels[2:, :2] == 255).all()
    assert (pixels[:2, :2] == 63).all()
