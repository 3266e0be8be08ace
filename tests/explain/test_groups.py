"""Words, padding and cells: what a group is, and that attention between groups is attention."""

import numpy as np
import pytest

from minflux.explain.groups import Groups, between, groups_of, image_groups, text_groups
from minflux.model.attention import attention_weights
from tests import tiny_model

RNG = np.random.default_rng(0)


def heads(length: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    q, k = RNG.standard_normal((2, 1, 1, length, width)).astype(np.float32)
    return 2 * q, 2 * k


def test_words_stand_alone_and_the_padding_is_one():
    labels, members = text_groups(tiny_model.pipeline().t5_tokenizer, "a cat left of an apple", 12)
    assert labels == ("a", "cat", "left", "of", "an", "apple", "</s>", "padding × 5")
    assert members.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7]


def test_a_prompt_that_fills_its_length_has_no_padding():
    labels, members = text_groups(tiny_model.pipeline().t5_tokenizer, "a cat left of an apple", 7)
    assert labels[-1] == "</s>"
    assert members.tolist() == [*range(7)]


def test_of_a_long_prompt_the_end_is_one_group():
    labels, members = text_groups(tiny_model.pipeline().t5_tokenizer, " ".join(["cat"] * 70), 80)
    assert labels[63:] == ("cat", "7 more", "padding × 9")
    assert np.bincount(members).tolist() == [1] * 64 + [7, 9]


def test_a_prompt_that_is_cut_ends_where_it_was_cut():
    labels, members = text_groups(tiny_model.pipeline().t5_tokenizer, "a cat left of an apple", 4)
    assert labels == ("a", "cat", "left", "</s>")
    assert members.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("rows", "columns", "grid"), [(4, 4, (4, 4)), (9, 6, (4, 3)), (5, 7, (2, 3))])
def test_every_cell_of_the_image_has_tokens(rows, columns, grid):
    cells = image_groups(rows, columns, grid).reshape(rows, columns)
    assert np.unique(cells).tolist() == [*range(grid[0] * grid[1])]
    assert (np.diff(cells, axis=1) >= 0).all()
    assert (np.diff(cells, axis=0) >= 0).all()


def test_where_each_token_is_a_group_it_is_attention(nx):
    q, k = heads(7)
    groups = Groups(("a", "b", "c"), np.arange(7), (2, 2))
    found = between(groups, nx.array(q), nx.array(k))
    weights = nx.to_numpy(attention_weights(nx.array(q), nx.array(k)))[0, 0]
    np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-7)


def test_a_group_takes_the_sum_and_shows_the_mean(monkeypatch):
    monkeypatch.setattr("minflux.explain.groups.QUERIES", 5)  # some rows at a time, the last of them fewer
    pipe = tiny_model.pipeline()
    groups = groups_of(pipe.t5_tokenizer, "a cat", 6, (4, 6), (2, 3))
    q, k = heads(6 + 24)
    found, weights = between(groups, q, k), attention_weights(q, k)[0, 0]
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    padding, corner = [3, 4, 5], [6, 7, 12, 13]  # the corner's cell has two tokens by two
    assert groups.labels[3] == "padding × 3"
    np.testing.assert_allclose(found[3, 4], weights[np.ix_(padding, corner)].sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(found[4, 1], weights[corner, 1].mean(), rtol=1e-5)
