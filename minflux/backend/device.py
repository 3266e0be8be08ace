"""Choose the MLX backend for the device at hand."""

import sys

from minflux.backend import blas
from minflux.backend.base import Backend
from minflux.backend.mlx import MLXBackend


def mlx_backend() -> Backend:
    """Return MLX's fused kernels for a GPU and for macOS, or the backend for a Linux CPU, with a fast BLAS or without.

    Raises `BackendError` where MLX is not installed.
    """
    if MLXBackend.on_gpu or sys.platform != "linux":
        return MLXBackend()
    from minflux.backend.linux_cpu import LinuxCPUBackend, NumPyProductsBackend

    return LinuxCPUBackend() if blas.loaded else NumPyProductsBackend()
