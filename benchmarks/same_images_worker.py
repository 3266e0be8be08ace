"""Draw cases of `benchmarks/same_images.py` with the minflux of one checkout: run by path, in its own process.

python -P same_images_worker.py CHECKOUT JOBS.json FOLDER
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np

import minflux


def main(checkout: str, jobs: str, folder: str) -> None:
    """Draw each case to FOLDER/NUMBER.npz: its images, and the latents after each step."""
    if not Path(minflux.__file__).is_relative_to(checkout):
        raise SystemExit(f"expected the minflux of {checkout}, found {minflux.__file__}")
    warnings.simplefilter("ignore")  # that staged and streamed weights are slow is known
    Path(folder).mkdir()
    held: tuple = (None, None)  # the settings that the last model was loaded with, and the model
    for number, case in enumerate(json.loads(Path(jobs).read_text())):
        try:
            if held[0] != (case["model"], case["load"]):
                held = (None, None)  # the last model is let go before the next is loaded
                held = ((case["model"], case["load"]), minflux.load(case["model"], **case["load"]))
            result = draw(held[1], case["prompt"], case["call"])
        except Exception as error:  # one case that fails leaves the others to be compared
            result = {"error": np.array(f"{type(error).__name__}: {error}")}
        np.savez(Path(folder) / f"{number}.npz", **result)


def draw(pipe, prompt, settings: dict) -> dict[str, np.ndarray]:
    """Draw one case: `images` (B, H, W, 3) uint8, and `latents` (steps, B, h, w, C)."""
    latents: list[np.ndarray] = []
    images = pipe(prompt, on_step=lambda step: latents.append(np.array(step.x)), **settings)
    listed = images if isinstance(images, list) else [images]
    return {"images": np.stack([np.asarray(image) for image in listed]), "latents": np.stack(latents)}


if __name__ == "__main__":
    main(*sys.argv[1:])
