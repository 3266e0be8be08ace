"""The examples in the tools' docstrings are right."""

import doctest

import pytest

from tools import family, insert, model_card, parity_table, samples

MODULES = [family, insert, model_card, parity_table, samples]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
