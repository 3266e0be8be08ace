"""Which BLAS is loaded for MLX on a Linux CPU."""

import ctypes
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minflux.backend import blas

LIBRARIES = {"libgood.so", "libalso.so"}  # on this imagined machine
AVX2, AVX512 = "avx2 fma", "avx512f avx512bw avx512dq avx512vl"


def load(name: str, mode: int = 0) -> None:
    if name not in LIBRARIES:
        raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    """A Linux machine where no BLAS is loaded yet; what a test loads or sets is undone after it."""
    monkeypatch.setattr(blas, "loaded", None)
    monkeypatch.setattr(blas, "looked", False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")
    monkeypatch.delenv("OPENBLAS_CORETYPE")


@pytest.mark.parametrize(
    ("flags", "core"),
    [
        (f"sse2 {AVX2} {AVX512}", "SKYLAKEX"),
        (f"sse2 {AVX2} avx512f", "HASWELL"),  # an AVX-512 too old for the kernels of SKYLAKEX
        (AVX2, "HASWELL"),
        ("sse2 avx2", None),
        ("asimd", None),
    ],
)
def test_kernels_are_named_by_what_the_processor_can_do(monkeypatch, flags, core):
    cpuinfo = f"processor\t: 0\nmodel name\t: flags\nflags\t\t: {flags}\nbugs\t\t: none\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    assert blas.openblas_core() == core


def test_without_cpuinfo_openblas_chooses(monkeypatch):
    def missing(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert blas.openblas_core() is None


def test_the_first_that_loads_is_taken(monkeypatch):
    monkeypatch.setattr(blas, "candidates", lambda: ["libnowhere.so", "libgood.so", "libalso.so"])
    monkeypatch.setattr(blas, "openblas_core", lambda: "HASWELL")
    assert blas.load_fast_blas() == blas.loaded == "libgood.so"
    assert not blas.is_missing()
    assert os.environ["OPENBLAS_CORETYPE"] == "HASWELL"


def test_a_choice_made_outside_is_kept(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "ZEN")
    monkeypatch.setattr(blas, "candidates", lambda: ["libgood.so"])
    blas.load_fast_blas()
    assert os.environ["OPENBLAS_CORETYPE"] == "ZEN"


def test_where_there_is_none_nothing_is_said_and_it_is_looked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(blas, "candidates", lambda: asked.append(1) or ["libnowhere.so"])
    assert blas.load_fast_blas() is None  # a warning would be an error here
    assert blas.load_fast_blas() is None
    assert asked == [1]
    assert blas.is_missing()


def test_macos_needs_none(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(blas, "candidates", lambda: ["libnowhere.so"])
    assert blas.load_fast_blas() is None
    assert not blas.is_missing()


def test_openblas_comes_before_mkl():
    names = [Path(name).name for name in blas.candidates()]
    assert names.index("libopenblas.so.0") < names.index("libmkl_rt.so.2")


def test_threads_are_set_where_a_blas_is_loaded(monkeypatch):
    calls = []

    class Library:
        openblas_set_num_threads = staticmethod(calls.append)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    blas.set_threads(2)
    assert calls == []
    monkeypatch.setattr(blas, "loaded", "libopenblas.so.0")
    blas.set_threads(1)
    assert calls == [1]


@pytest.mark.parametrize(("device", "warned"), [("cpu", True), ("gpu", False)])
def test_an_mlx_that_was_imported_first_keeps_its_slow_blas(monkeypatch, recwarn, device, warned):
    kind = SimpleNamespace(type=SimpleNamespace(name=device))
    monkeypatch.setitem(sys.modules, "mlx.core", SimpleNamespace(default_device=lambda: kind))
    monkeypatch.setattr(blas, "candidates", lambda: ["libgood.so"])
    assert blas.load_fast_blas() is None
    assert blas.is_missing()
    assert ["import minflux first" in str(warning.message) for warning in recwarn] == [True] * warned
