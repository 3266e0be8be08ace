"""What is kept: everything where there is room, and otherwise what fits, evenly spread."""

import pytest

from minflux.explain.choice import BYTES, Choice, choose, evenly, grid_of

DEV = [f"double_blocks.{i}" for i in range(19)] + [f"single_blocks.{i}" for i in range(38)]


def taken(choice: Choice, words: int, grid: tuple[int, int]) -> int:
    rows, columns = grid_of(*grid, choice.cells)
    tokens = words + rows * columns
    return len(choice.steps) * len(choice.blocks) * len(choice.heads) * tokens * (tokens + 4)


def test_a_small_drawing_is_kept_whole():
    blocks = DEV[:2] + DEV[19:23]
    assert choose(range(20), blocks, 4, 12, (4, 4)) == Choice(tuple(range(20)), tuple(blocks), (0, 1, 2, 3), 4)


@pytest.mark.parametrize("words", [3, 20, 66])
@pytest.mark.parametrize("grid", [(8, 8), (64, 64), (32, 96), (1, 4)])
@pytest.mark.parametrize("most", [BYTES, 50_000])
def test_what_is_kept_of_a_flux1_fits(words, grid, most):
    choice = choose(evenly(28, 32), DEV, 24, words, grid, most)
    assert taken(choice, words, grid) <= most
    assert choice.steps[0] == 0
    assert choice.blocks[0] == DEV[0]


def test_of_a_flux1_enough_is_kept_to_look_at():
    choice = choose(evenly(28, 32), DEV, 24, 20, (64, 64))
    assert len(choice.steps) >= 4
    assert choice.steps[-1] == 27
    assert len(choice.blocks) >= 10
    assert choice.blocks[-1] == DEV[-1]
    assert len(choice.heads) >= 5
    assert choice.cells >= 8


def test_numbers_are_spread_evenly_without_repeats():
    for count in range(1, 40):
        for most in range(1, 40):
            found = evenly(count, most)
            assert len(set(found)) == len(found) == min(count, most)
