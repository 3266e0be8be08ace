"""What the VAE alone can reach: held-out scenes encoded, decoded, compared and read.

No flow can draw better than its VAE, so this is the ceiling of every figure of the whole model.

    python -m minflux.train.ceiling runs/second/model
"""

from pathlib import Path

import click
import numpy as np

from minflux.arrays import Tree
from minflux.backend import Backend, get_backend
from minflux.checkpoints.read import load_component
from minflux.model.vae import VAEConfig
from minflux.train.autoencoder import reconstruct
from minflux.world import reader, scenes
from minflux.world.fidelity import psnr, sharpness, ssim
from minflux.world.render import render_batch
from minflux.world.scenes import Scene, Sign

SIZES = ((128, 128), (96, 160), (160, 96), (64, 64), (160, 160))
AT_ONCE = 8


def measure(vae: tuple[VAEConfig, Tree], nx: Backend, size: tuple[int, int], count: int, seed: int = 0) -> dict:
    """Redraw `count` held-out scenes of one size: PSNR and SSIM (means), sharpness, and the share read all right.

    "letters" is the share of signs whose word is read right.
    """
    rng = np.random.default_rng(seed)
    wanted = [scenes.sample(rng, *size, held_out=True) for _ in range(count)]
    truth = render_batch(wanted)
    redrawn = np.concatenate([reconstruct(*vae, nx, truth[i : i + AT_ONCE]) for i in range(0, count, AT_ONCE)])
    marks = [reader.score(scene, image) for scene, image in zip(wanted, redrawn, strict=True)]
    signs = [mark["letters"] for scene, mark in zip(wanted, marks, strict=True) if has_sign(scene)]
    return {
        "psnr": float(psnr(truth, redrawn).mean()),
        "ssim": float(ssim(truth, redrawn).mean()),
        "sharpness": sharpness(truth, redrawn),
        "all": float(np.mean([mark["all"] for mark in marks])),
        "letters": float(np.mean(signs)) if signs else float("nan"),
    }


def has_sign(scene: Scene) -> bool:
    """Tell whether there is a sign in a scene."""
    return any(isinstance(item, Sign) for item in scene.items)


def row(size: tuple[int, int], found: dict) -> str:
    """Lay one size's figures out as a row of Markdown."""
    shares = " | ".join(f"{100 * found[key]:.1f}%" for key in ("all", "letters"))
    return f"| {size[0]}×{size[1]} | {found['psnr']:.2f} | {found['ssim']:.4f} | {found['sharpness']:.3f} | {shares} |"


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--count", default=200, show_default=True, help="Scenes of each size.")
def main(model: Path, count: int) -> None:
    """Measure the VAE in the folder MODEL on held-out scenes of several sizes."""
    nx = get_backend("numpy")
    vae = load_component(model, "vae", nx)
    print("| size | PSNR, dB | SSIM | sharpness | all right | letters |\n| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        print(row(size, measure(vae, nx, size, count)), flush=True)


if __name__ == "__main__":
    main()
