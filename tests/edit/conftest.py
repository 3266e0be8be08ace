"""Small random models of FLUX.1's variants: Fill, and Canny or Depth."""

import pytest

from tests import tiny_controlnet, tiny_model, tiny_redux
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
def kontext_model(tmp_path_factory):
    """The folder of a small random model that is called Kontext."""
    yield from kept(tiny_model.make(tmp_path_factory.mktemp("small") / "kontext", guidance=True))


@pytest.fixture(scope="session")
def redux_folder(tmp_path_factory):
    """The folder of a small random FLUX.1 Redux."""
    yield from kept(tiny_redux.make(tmp_path_factory.mktemp("redux") / "redux"))


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory):
    """The folder of a small random model as FLUX.1-dev, of more blocks than the ControlNets have."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    yield from kept(tiny_model.make(folder, guidance=True, depth=4, depth_single_blocks=3))


@pytest.fixture(scope="session")
def controlnets(tmp_path_factory):
    """The folders of small random ControlNets, by family (see tests/tiny_controlnet.py)."""
    home = tmp_path_factory.mktemp("controlnets")
    for kind in tiny_controlnet.KINDS:
        tiny_controlnet.make(home / kind, kind)
    for _ in kept(home):
        yield {kind: home / kind for kind in tiny_controlnet.KINDS}
