"""The house is as it should be: no arrow runs up, nothing goes in circles, and each counter counts what it says."""

import pytest

from benchmarks import house
from benchmarks.house import Source


@pytest.fixture(scope="module")
def counted():
    return house.count(house.ROOT)


@pytest.mark.parametrize("name", house.TARGETS)
def test_targets(counted, name):
    assert counted.figures[name] <= house.TARGETS[name], "\n".join(counted.places.get(name, []))


# -- the counters --------------------------------------------------------------------------------------------


def package(**texts: str) -> dict[str, Source]:
    """Files of a made-up minflux: `model_flux="import …"` is minflux/model/flux.py."""
    paths = {name: house.Path("minflux", *name.split("_")).with_suffix(".py") for name in texts}
    files = [Source(paths[name], text) for name, text in texts.items()]
    return {file.module: file for file in files}


def test_an_import_inside_a_function_is_an_arrow_up():
    files = package(
        model_flux="def f():\n    from minflux.train import loop\n", train_loop="import minflux.model.flux\n"
    )
    assert house.arrows_up(house.graph(files)) == ["minflux.model.flux -> minflux.train.loop"]
    assert house.circles(house.graph(files)) == ["minflux.model.flux minflux.train.loop"]


def test_what_only_a_type_checker_reads_is_none():
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from minflux.train import loop\n"
    files = package(model_flux=text, train_loop="import minflux.model.flux\n")
    assert house.arrows_up(house.graph(files)) == []
    assert house.circles(house.graph(files)) == []


def test_two_rooms_on_one_floor_know_nothing_of_each_other():
    files = package(
        edit_a="import minflux.world.b\n",
        world_b="import minflux.errors\n",
        errors="",
        images="import minflux.errors\n",
    )
    assert house.arrows_up(house.graph(files)) == ["minflux.edit.a -> minflux.world.b"]


def test_a_file_in_no_room_is_named():
    assert house.roomless(package(attic_box="", errors="")) == ["minflux.attic.box"]


def test_operations_and_lines_of_bodies():
    text = 'X = [f(i) for i in 1]\ndef g(a):\n    """Return."""\n    # no line\n\n    b = a[0] + 1\n    return h(b)\n'
    assert house.density([Source(house.Path("a.py"), text)]) == (3, 2)


def test_lengths_leave_docstrings_out():
    files = package(errors='def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    return a\n')
    assert house.lengths(files) == [(4, "minflux.errors.f")]


def test_docstrings_that_do_not_stand_alone():
    text = 'def f():\n    """The same."""\ndef g():\n    """Tell why."""\ndef h():\n    """Return x."""\n'
    names = [line.split(":")[0] for line in house.leaning_docstrings(package(errors=text))]
    assert names == ["minflux.errors.f", "minflux.errors.g"]


def test_names_that_two_modules_define():
    assert house.shared_names(package(errors="def f(): pass\n", images="class f: pass\n")) == [
        "f: minflux.errors, minflux.images"
    ]
