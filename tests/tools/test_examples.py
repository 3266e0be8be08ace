"""The examples in the tools' docstrings are right."""

import doctest

import pytest

from tools import insert, model_card, parity_table, samples


@pytest.mark.parametrize("module", [insert, model_card, parity_table, samples], ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
