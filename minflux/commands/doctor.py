"""`minflux doctor`: what this machine has, how fast it multiplies, and what to install to be faster."""

import ctypes
import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_info

from minflux.backend import Backend, blas, get_backend
from minflux.backend.machine import field, free_memory, sysctl, total_memory
from minflux.errors import BackendError
from minflux.version import __version__

Row = tuple[str, str]

BLAS = f"{blas.INSTALL}, to train with MLX on this CPU"
COMPILER = "apt-get install g++   (MLX on this CPU then fuses elementwise ops: mx.compile writes C++)"
CUDA = "pip install 'mlx[cuda12]'   (driver 580 or newer: 'mlx[cuda13]'), for the NVIDIA GPU that is here"


def report() -> str:
    """Return a text of two columns: the machine, each backend and its speed, and what to install to be faster."""
    return as_text(rows())


def rows() -> list[Row]:
    """List the report's rows as (label, value). Takes about half a second, most of it to multiply matrices."""
    mlx, why_not = find_mlx()
    mlx_rows = rows_of_mlx(mlx) if mlx else [("mlx backend", "not available")]
    advised = [("to be faster", line) for line in advice(mlx, why_not)]
    return [*rows_of_machine(), *rows_of_numpy(), *mlx_rows, *advised]


def as_text(lines: list[Row]) -> str:
    """Lay rows out in two columns; a label that repeats is written once.

    >>> print(as_text([("Python", "3.11"), ("NumPy", "2.4"), ("NumPy", "fast")]))
    Python  3.11
    NumPy   2.4
            fast
    """
    width = max(len(label) for label, _ in lines)
    before = ["", *(label for label, _ in lines)]
    return "\n".join(
        f"{'' if label == previous else label:{width}}  {value}"
        for (label, value), previous in zip(lines, before, strict=False)
    )


# -- the machine ---------------------------------------------------------------------------------------------


def rows_of_machine() -> list[Row]:
    """List versions, processor, memory and compiler."""
    return [
        ("minflux", f"{__version__}, in {Path(__file__).parents[1]}"),
        ("Python", f"{platform.python_version()}, {platform.platform(terse=True)}, {platform.machine()}"),
        ("processor", f"{processor()}, {os.cpu_count()} cores"),
        ("memory", memory()),
        ("C++ compiler", shutil.which("g++") or "no g++ found"),
    ]


def processor() -> str:
    """Return the processor's name, from /proc/cpuinfo on Linux, from sysctl on macOS, elsewhere from Python."""
    name = field("/proc/cpuinfo", "model name") or sysctl("machdep.cpu.brand_string")
    return name or platform.processor() or "unknown processor"


def memory() -> str:
    """Return how much memory there is, and how much of it is free to use, in words."""
    there = total_memory()
    return f"{gigabytes(there)}, {gigabytes(min(there, free_memory()))} free" if there else "unknown"


def gigabytes(count: int) -> str:
    """Write a number of bytes in units of 2^30.

    >>> gigabytes(3 << 29)
    '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB"


# -- the backends --------------------------------------------------------------------------------------------


def find_mlx() -> tuple[Backend | None, str]:
    """Return (the mlx backend, ""), or (None, how to install MLX)."""
    try:
        return get_backend("mlx"), ""
    except BackendError as error:
        return None, str(error)


def rows_of_numpy() -> list[Row]:
    """List NumPy's version, its BLAS and its speed."""
    return rows_of(get_backend("numpy"), f"NumPy {np.__version__}", numpy_blas())


def rows_of_mlx(nx: Backend) -> list[Row]:
    """List MLX's version and device, its BLAS on a CPU, and its speed."""
    return rows_of(nx, f"MLX {installed('mlx')}, on {device(nx)}", *([] if nx.on_gpu else [mlx_blas()]))


def rows_of(nx: Backend, *facts: str) -> list[Row]:
    """List a backend's facts and its measured speed, each beside the backend's name."""
    return [(f"{nx.name} backend", fact) for fact in (*facts, f"{gflops(nx):.3g} GFLOP/s in float32")]


def installed(package: str) -> str:
    """Return an installed package's version, or "" if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def device(nx: Backend) -> str:
    """Return the name of MLX's default device, with its memory if MLX knows it."""
    kind = "the GPU" if nx.on_gpu else "the CPU"
    info = nx.xp.device_info()
    size = info.get("total_memory") or info.get("memory_size")
    return f"{kind} ({info.get('device_name', 'unnamed')}{f', {gigabytes(size)}' if size else ''})"


def numpy_blas() -> str:
    """Return the name of NumPy's BLAS and, for OpenBLAS, of the kernels that it took for this processor."""
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = f"BLAS: {found.get('name', 'unknown')} {found.get('version', '')}".strip()
    kernels = [
        blas["architecture"] for blas in threadpool_info() if "numpy" in blas["filepath"] and "architecture" in blas
    ]
    return f"{name} ({kernels[0]} kernels)" if kernels else name


def mlx_blas() -> str:
    """Return the name of the BLAS that serves MLX on the CPU and, for OpenBLAS, of the kernels that it took."""
    if sys.platform == "darwin":
        return "BLAS: Accelerate"
    if blas.loaded is None:
        return "BLAS: none that is fast, so NumPy's multiplies, but not in training"
    library = ctypes.CDLL(blas.loaded)
    if not hasattr(library, "openblas_get_corename"):
        return f"BLAS: {blas.loaded}"
    name = " ".join(answer(library.openblas_get_config).split()[:2])  # "OpenBLAS 0.3.21", then build options
    return f"BLAS: {blas.loaded} ({name}, {answer(library.openblas_get_corename)} kernels)"


def answer(function: Any) -> str:
    """Return what a C function without arguments says, which is text."""
    function.restype = ctypes.c_char_p
    return function().decode()


# -- speed ---------------------------------------------------------------------------------------------------


def gflops(nx: Backend, seconds: float = 0.2) -> float:
    """Return the speed of the fastest float32 product of n × n matrices, 2 n³ operations, in about `seconds`.

    n is 512, or 2048 where the machine is fast enough for it.
    """
    size = 512 if product_time(nx, 512, seconds / 4) > 0.004 else 2048
    return 2 * size**3 / product_time(nx, size, seconds) / 1e9


def product_time(nx: Backend, size: int, seconds: float) -> float:
    """Multiply size × size matrices for `seconds`, twice at least, and return the shortest time of one product."""
    x = nx.array(np.random.default_rng(0).standard_normal((size, size), np.float32))
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        began = time.perf_counter()
        nx.eval(nx.linear(x, x))
        times.append(time.perf_counter() - began)
    return min(times)


# -- advice --------------------------------------------------------------------------------------------------


def advice(mlx: Backend | None, why_not: str) -> list[str]:
    """List what would make this machine faster, each with the command that installs it."""
    lines = [*slow_kernels(), *([why_not] if mlx is None else slow_cpu(mlx))]
    return lines or ["nothing more to install"]


def slow_kernels() -> list[str]:
    """List the variable that keeps OpenBLAS from using all that the processor can do, if it is set."""
    named, best = os.environ.get("OPENBLAS_CORETYPE", "").upper(), blas.openblas_core()
    held_back = named == "HASWELL" and best == "SKYLAKEX"
    return [f"unset OPENBLAS_CORETYPE   ({named} kernels leave out AVX-512)"] if held_back else []


def slow_cpu(mlx: Backend) -> list[str]:
    """List what MLX lacks on a Linux CPU: a fast BLAS, a compiler, or the GPU that is there."""
    if mlx.on_gpu or sys.platform != "linux":
        return []
    return [
        *([BLAS] if blas.is_missing() else []),
        *([] if shutil.which("g++") else [COMPILER]),
        *([CUDA] if has_nvidia_gpu() else []),
    ]


def has_nvidia_gpu() -> bool:
    """Return whether Linux has an NVIDIA driver loaded."""
    return Path("/proc/driver/nvidia/version").exists()


# -- the command -----------------------------------------------------------------------------------------------


@click.command("doctor", short_help="Show backends and their speed, and what would be faster.")
def command():
    """Show backends, devices and BLAS with their measured speed, and what to install to be faster."""
    click.echo(report())


if __name__ == "__main__":
    print(report())
