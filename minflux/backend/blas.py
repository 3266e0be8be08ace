"""A fast BLAS for MLX on a Linux CPU.

MLX's wheel for Linux CPUs links the reference BLAS, about forty times slower than it need be (5 GFLOP/s against 200 on
the two cores of docs/log.md). The dynamic linker takes `cblas_sgemm` from whichever library was loaded globally first:
loading OpenBLAS or MKL ahead of MLX is all it takes. Only float32 products gain.

Two traps. OpenBLAS 0.3.21 (Debian 12) does not know processors newer than itself and falls back to the kernels of a
2004 Pentium, six times too slow, so we name the kernels by what the processor can do. And NumPy's bundled OpenBLAS
can't serve MLX, for its symbols are renamed.

Where none is found, generating an image still multiplies at NumPy's speed (`NumPyProductsBackend` in `linux_cpu.py`).
Training does not: MLX compiles it and takes the gradients itself.
"""

import ctypes
import os
import site
import sys
import warnings
from pathlib import Path

OPENBLAS = ("libopenblas.so.0", "libopenblas.so")
MKL = ("libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so")
INSTALL = "apt-get install libopenblas0-pthread   (or: pip install mkl)"

loaded: str | None = None  # the library that serves MLX's matrix products, as `minflux doctor` shows it
looked = False  # whether one was looked for, which happens once


def cpu_flags() -> set[str]:
    """Return the processor's abilities from /proc/cpuinfo, an empty set where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return set(text.partition("\nflags")[2].partition("\n")[0].split())


def openblas_core() -> str | None:
    """Return the name of OpenBLAS's kernels for this processor, or None to leave the choice to OpenBLAS."""
    flags = cpu_flags()
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return "SKYLAKEX"
    return "HASWELL" if {"avx2", "fma"} <= flags else None


def candidates() -> list[str]:
    """List the libraries to try, in order: the system's OpenBLAS, then MKL from the system or this environment."""
    folders = [Path(sys.prefix, "lib"), Path(site.USER_BASE or sys.prefix, "lib")]
    return [*OPENBLAS, *MKL, *(str(folder / name) for folder in folders for name in MKL)]


def load_fast_blas() -> str | None:
    """Load the first fast BLAS there is and return its name, or None where there is none.

    Does nothing on macOS, where MLX uses Apple's Accelerate. Warns where `mlx.core` has been imported already: it keeps
    the BLAS that it had then.
    """
    global loaded, looked
    if not sys.platform.startswith("linux") or looked:
        return loaded
    looked = True
    if "mlx.core" in sys.modules:
        if sys.modules["mlx.core"].default_device().type.name == "cpu":
            warnings.warn("mlx was imported before minflux and keeps its slow BLAS: import minflux first", stacklevel=2)
        return None
    core = openblas_core()
    if core is not None:
        os.environ.setdefault("OPENBLAS_CORETYPE", core)
    loaded = next(filter(can_load, candidates()), None)
    return loaded


def can_load(name: str) -> bool:
    """Load a library so that its symbols serve those that are loaded later; return False where it can't be."""
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def is_missing() -> bool:
    """Return whether MLX multiplies with its own slow BLAS whenever it computes on this machine's CPU."""
    return sys.platform.startswith("linux") and loaded is None


def set_threads(count: int) -> None:
    """Let the loaded BLAS use `count` threads a product; for callers that run several products at once."""
    if loaded is None:
        return
    library = ctypes.CDLL(loaded)
    for function in ("openblas_set_num_threads", "MKL_Set_Num_Threads"):
        if hasattr(library, function):
            getattr(library, function)(count)
