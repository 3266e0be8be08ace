"""Small random models of FLUX.1's variants: Fill, and Canny or Depth."""

import pytest

from tests import tiny_model, tiny_redux
from tests.conftest import kept


@pytest.fixture(scope="session")
def fill_model(tmp_path_factory):
    """The folder of a small random model that takes a masked image and its mask, as FLUX.1 Fill does."""
    yield from kept(tiny_model.make(tmp_path_factory.mktemp("fill") / "model", guidance=True, beside=16 + 256))


@pytest.fixture(scope="session")
def control_model(tmp_path_factory):
    """The folder of a small random model that takes a control image, as FLUX.1 Canny and Depth do."""
    yield from kept(tiny_model.make(tmp_path_factory.mktemp("control") / "model", guidance=True, beside=16))


@pytest.fixture(scope="session")
def redux_folder(tmp_path_factory):
    """The folder of a small random FLUX.1 Redux."""
    yield from kept(tiny_redux.make(tmp_path_factory.mktemp("redux") / "redux"))
