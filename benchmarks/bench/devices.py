"""The device that each library computes on.

Where there is no GPU, a stand-in may take its place: with MINFLUX_GPU_STAND_IN=cpu in the environment, all that is done
for a GPU is done, on the CPU. So the way is tried in every run of the tests, and its times say nothing.
"""

import os

from minflux.backend.machine import total_memory

STAND_IN = "MINFLUX_GPU_STAND_IN"


def stands_in() -> bool:
    """Return whether the CPU is to stand in for a GPU."""
    return os.environ.get(STAND_IN) == "cpu"


def choose_for_mlx(device: str) -> None:
    """Have MLX compute on "cpu" or "gpu", before a backend is made; minflux takes MLX's choice on import."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu if device == "cpu" or stands_in() else mx.gpu)
    if device == "gpu" and stands_in():
        from minflux.backend.mlx import MLXBackend

        MLXBackend.on_gpu = True


def of_torch(device: str) -> str:
    """Return PyTorch's name for "cpu" or "gpu"."""
    import torch

    if device == "cpu" or stands_in():
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps"


def memory_of_gpu() -> int:
    """Return the bytes that MLX's GPU can hold, 0 where there is none."""
    from minflux.backend import get_backend

    nx = get_backend("mlx")
    if stands_in():
        return total_memory()
    info = nx.xp.device_info()
    return int(info.get("total_memory") or info["memory_size"]) if nx.on_gpu else 0
