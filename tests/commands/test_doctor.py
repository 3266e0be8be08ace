"""What `minflux doctor` tells on this machine, and on machines that lack something."""

import shutil
import sys

import pytest

from minflux import backend
from minflux.backend import available, blas, get_backend, machine
from minflux.commands import doctor


@pytest.fixture(autouse=True)
def no_kernels_named(monkeypatch):
    """A variable that holds OpenBLAS back would be one line more of advice."""
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """Speeds are measured in one test only."""
    monkeypatch.setattr(doctor, "gflops", lambda nx: 123.0)


def values(label: str) -> list[str]:
    return [value for found, value in doctor.rows() if found == label]


def test_this_machine():
    labels = list(dict.fromkeys(label for label, _ in doctor.rows()))
    machine = ["minflux", "Python", "processor", "memory", "C++ compiler"]
    assert labels == [*machine, "numpy backend", "mlx backend", "to be faster"]
    assert doctor.report().startswith("minflux ")
    assert values("numpy backend")[0].startswith("NumPy ")
    assert "123 GFLOP/s in float32" in values("numpy backend")


@pytest.mark.parametrize("name", available())
def test_speed_is_measured(name, monkeypatch):
    monkeypatch.undo()
    assert doctor.gflops(get_backend(name), seconds=0.01) > 0


def test_without_mlx_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(backend, "_made", {})
    for module in ("minflux.backend.device", "minflux.backend.mlx"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "mlx.core", None)  # importing it now raises ImportError
    assert values("mlx backend") == ["not available"]
    assert "pip install" in values("to be faster")[0]


class OnCPU:
    """As much of the mlx backend as `slow_cpu` looks at."""

    on_gpu = False


class OnGPU(OnCPU):
    on_gpu = True


@pytest.mark.parametrize(
    ("platform", "mlx", "compiler", "loaded", "expected"),
    [
        ("linux", OnCPU, None, None, [doctor.BLAS, doctor.COMPILER]),
        ("linux", OnCPU, "/usr/bin/g++", None, [doctor.BLAS]),
        ("linux", OnCPU, None, "libopenblas.so.0", [doctor.COMPILER]),
        ("linux", OnCPU, "/usr/bin/g++", "libopenblas.so.0", []),
        ("linux", OnGPU, None, None, []),
        ("darwin", OnCPU, None, None, []),
    ],
)
def test_advice_is_for_what_is_missing(monkeypatch, platform, mlx, compiler, loaded, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(shutil, "which", lambda program: compiler)
    monkeypatch.setattr(blas, "loaded", loaded)
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: False)
    assert doctor.slow_cpu(mlx()) == expected


def test_an_nvidia_gpu_that_mlx_does_not_use(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    assert doctor.slow_cpu(OnCPU())[-1] == doctor.CUDA


def test_advice_when_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "slow_cpu", lambda mlx: [])
    assert doctor.advice(OnCPU(), "") == ["nothing more to install"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has more than one BLAS for MLX")
def test_the_blas_of_mlx(monkeypatch):
    monkeypatch.setattr(blas, "loaded", None)
    assert doctor.mlx_blas() == "BLAS: none that is fast, so NumPy's multiplies, but not in training"
    monkeypatch.setattr(blas, "loaded", "libm.so.6")  # no OpenBLAS: named, and asked nothing
    assert doctor.mlx_blas() == "BLAS: libm.so.6"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert doctor.mlx_blas() == "BLAS: Accelerate"


def test_memory_and_processor_of_other_systems(monkeypatch):
    for module in (doctor, machine):
        monkeypatch.setattr(module, "field", lambda path, name, separator=":": None)
        monkeypatch.setattr(module, "sysctl", {"hw.memsize": str(16 << 30), "machdep.cpu.brand_string": "M4"}.get)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1 << 14, "SC_PHYS_PAGES": 1 << 20}.get)
    assert doctor.memory() == "16.0 GiB, 8.0 GiB free"
    assert doctor.processor() == "M4"
    for module in (doctor, machine):
        monkeypatch.setattr(module, "sysctl", lambda name: None)
    assert doctor.memory() == "unknown"
    assert doctor.processor()


@pytest.mark.parametrize(("named", "best", "held_back"), [("Haswell", "SKYLAKEX", True), ("Haswell", "HASWELL", False)])
def test_kernels_that_leave_out_what_the_processor_can_do(monkeypatch, named, best, held_back):
    monkeypatch.setenv("OPENBLAS_CORETYPE", named)
    monkeypatch.setattr(doctor.blas, "openblas_core", lambda: best)
    assert any("unset OPENBLAS_CORETYPE" in line for line in doctor.advice(None, "why")) == held_back
