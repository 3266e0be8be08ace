"""The model that ships in minflux/zoo, for the tests that need real weights."""

import pytest

from minflux import zoo

SHIPPED = (zoo.FOLDER / "tiny" / "model_index.json").exists()


def needs_weights(test):
    """Mark a test that draws with the shipped model."""
    skip = pytest.mark.skipif(not SHIPPED, reason="minflux/zoo/tiny has no weights yet")
    return pytest.mark.weights(skip(test))
