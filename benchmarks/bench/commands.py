"""The works that are whole commands: a process is started for each run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bench.job import Contender, Job
from benchmarks.bench.peak import peak_of_children
from benchmarks.bench.works import PROMPT, Work
from minflux import zoo

MINFLUX = "from minflux.commands.main import main; main()"
DIFFUSERS = """
import sys, torch
from diffusers import FluxPipeline
model, prompt, steps, out = sys.argv[1:]
image, = FluxPipeline.from_pretrained(model)(
    prompt, negative_prompt="", true_cfg_scale=2.0, num_inference_steps=int(steps), width=64, height=64,
    max_sequence_length=20, generator=torch.Generator().manual_seed(0),
).images
image.save(out)
"""
IMPORTS = {"numpy": "import minflux", "torch": "from diffusers import FluxPipeline", "nothing": ""}


def job(contender: Contender, work: Work, folder: Path, device: str) -> Job:
    """Write the command down; its result is the picture, of an import nothing."""
    out = folder / f"{contender.name}.png"
    code, *arguments = importing(contender) if work.kind == "import" else generating(contender, work, out)
    command = [sys.executable, "-c", code, *arguments]

    def run() -> None:
        subprocess.run(command, check=True)

    def result() -> np.ndarray:
        run()
        return np.asarray(Image.open(out)) if out.exists() else np.ones(1)

    return Job(run, result, peak_of_children)


def importing(contender: Contender) -> list[str]:
    """Code that imports the library."""
    return [IMPORTS[contender.library]]


def generating(contender: Contender, work: Work, out: Path) -> list[str]:
    """Code that draws, and its arguments: the command itself, or the same in diffusers."""
    steps = str(work.sizes["steps"])
    if contender.library == "torch":
        return [DIFFUSERS, str(zoo.FOLDER / "tiny"), PROMPT, steps, str(out)]
    settings = ["--backend", contender.library, "--steps", steps, "--out", str(out)]
    return [MINFLUX, "generate", PROMPT, *settings]
