"""A model in several processes: each reads its share, and together they compute what one does."""

from dataclasses import replace

import numpy as np
import pytest

from minflux.backend import get_backend
from minflux.backend.processes import Group
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.lazy import loaded
from minflux.checkpoints.open import open_component
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.shares import shared
from minflux.checkpoints.tree import flatten
from minflux.inference.load import read_in_mode
from tests import tiny_model
from tests.many import played


@pytest.fixture(scope="module")
def four_heads(tmp_path_factory):
    """A model of four heads, which up to four processes can share, in T5 too."""
    return tiny_model.make(tmp_path_factory.mktemp("shared") / "model", hidden_size=64, num_heads=4)


def test_forward(monkeypatch, four_heads):
    team = played(monkeypatch, 2)
    stored = open_component(four_heads, "transformer")
    nx = get_backend("numpy")
    trees = [flatten(read_tree(shared(stored, Group(r, 2)), nx)) for r in range(2)]
    whole = flatten(read_tree(stored, nx))
    for name, x in whole.items():
        print(name, x.shape, [getattr(t.get(name), "shape", None) for t in trees])
