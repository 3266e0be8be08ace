"""Who is measured, and how each loads the weights in a folder to compute a work."""

from dataclasses import replace
from pathlib import Path

from benchmarks.bench.job import Contender, Job
from benchmarks.bench.works import Work
from minflux.backend import blas

TORCH = ("torch", "diffusers", "transformers")
MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
MFLUX = Contender("mflux", "mflux", "float32", ("mlx", "mflux"), 1e-2, kinds=("transformer", "vae"), batched=False)
CONTENDERS = {
    "cpu": (
        Contender("minflux NumPy", "numpy", "float32", ("numpy",), kinds=("product", *MODELS, "generate", "import")),
        Contender("minflux MLX", "mlx", "float32", ("mlx",), kinds=("product", *MODELS, "train", "generate")),
        Contender("torch float32", "torch", "float32", TORCH),
        Contender("torch bfloat16", "torch", "bfloat16", TORCH, 5e-2, kinds=("product", *MODELS)),
        Contender("torch float32 compiled", "torch", "float32", TORCH, compiled=True, kinds=("transformer", "vae")),
        MFLUX,
        Contender("Python alone", "nothing", "", (), kinds=("import",)),
    ),
    "gpu": (
        Contender("minflux MLX", "mlx", "bfloat16", ("mlx",), 5e-2),
        Contender("torch bfloat16", "torch", "bfloat16", TORCH, 5e-2),
        Contender(
            "torch bfloat16 compiled", "torch", "bfloat16", TORCH, 5e-2, compiled=True, kinds=("transformer", "vae")
        ),
        replace(MFLUX, dtype="bfloat16", tolerance=5e-2),
    ),
}
REFERENCE = {"cpu": "torch float32", "gpu": "torch bfloat16"}  # of agreement and of the ratios
PROCESSES = ("generate", "import")  # the works that are whole commands


def prepare(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Load what the work needs from `folder`."""
    if work.kind in PROCESSES:
        from benchmarks.bench.commands import job
    elif contender.library == "torch":
        from benchmarks.bench.with_torch import job
    elif contender.library == "mflux":
        blas.load_fast_blas()  # ahead of MLX: mflux alone would run on the slow one of MLX's wheel for Linux
        from benchmarks.bench.with_mflux import job
    else:
        from benchmarks.bench.with_minflux import job
    return job(contender, work, folder, device)
