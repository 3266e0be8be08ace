"""Limits of Metal's memory, by a stand-in for MLX on an Apple GPU; no such machine is needed."""

from types import SimpleNamespace

import pytest

from minflux.backend import get_backend
from minflux.backend.metal import set_limits


@pytest.fixture
def limits():
    """What was set: the wired limit and the cache's."""
    return {}


def apple(limits, recommended: int, is_available: bool = True) -> SimpleNamespace:
    """A backend on a GPU whose system recommends so many bytes, and refuses more to be wired."""

    def wire(limit: int) -> None:
        if limit > recommended:
            raise ValueError("[set_wired_limit] Setting a wired limit larger than the maximum working set size")
        limits["wired"] = limit

    xp = SimpleNamespace(
        metal=SimpleNamespace(is_available=lambda: is_available),
        device_info=lambda: {"max_recommended_working_set_size": recommended, "memory_size": 2 * recommended},
        set_wired_limit=wire,
        set_cache_limit=lambda limit: limits.update(cache=limit),
    )
    return SimpleNamespace(name="mlx", xp=xp)


def test_metal_wires_what_the_system_recommends_and_keeps_a_quarter_of_freed_memory(limits):
    set_limits(apple(limits, 12 * 2**30))
    assert limits == {"wired": 12 * 2**30, "cache": 3 * 2**30}


def test_nothing_is_set_where_there_is_no_metal(limits):
    set_limits(apple(limits, 2**30, is_available=False))
    assert limits == {}


def test_backends_without_metal_are_left_alone(nx):
    set_limits(nx)
    set_limits(get_backend("numpy"))


def test_names_are_those_of_mlx():
    mx = pytest.importorskip("mlx.core")
    before = mx.set_cache_limit(2**30)
    assert mx.set_cache_limit(before) == 2**30
    assert {"set_wired_limit", "device_info", "metal"} <= set(dir(mx))
