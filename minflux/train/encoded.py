"""Scenes of every size, encoded ahead of the flow's training, a file for every thousand.

Encoding an image costs more than a training step's share of it, and the same latents serve again and again, each time
with another caption and other noise. A file names the VAE and the scenes it was made from, so a run that was
stopped goes on with the files it has, and another VAE makes its own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minflux.arrays import Tree
from minflux.backend import Backend
from minflux.checkpoints.formats.atomic import written_whole
from minflux.model.vae import VAEConfig, encode
from minflux.train.autoencoder import signed
from minflux.train.flow import fingerprint
from minflux.world.render import render_batch
from minflux.world.scenes import Scene, sample

SHARD = 1024  # scenes a file
CHUNK = 16  # images encoded at once

Size = tuple[int, int]  # width and height in pixels
Kinds = tuple[tuple[str, float], ...]  # of scenes, with their shares; none for all, as the world has them


@dataclass(frozen=True)
class Encoded:
    """Scenes of one size, and their latents (N, H/8, W/8, C) float16."""

    scenes: list[Scene]
    latents: np.ndarray


def scenes_of(size: Size, shard: int, count: int, seed: int, kinds: Kinds = ()) -> list[Scene]:
    """Draw the scenes of a shard, the same for the same seed; of some kinds at their shares, or as the world has."""
    rng = np.random.default_rng([seed, *size, shard])
    names = [name for name, _ in kinds]
    drawn = rng.choice(names, size=count, p=[share for _, share in kinds]) if kinds else [None] * count
    return [sample(rng, *size, kind=None if kind is None else str(kind)) for kind in drawn]


def encode_all(
    vae: tuple[VAEConfig, Tree], counts: dict[Size, int], seed: int, folder: Path, nx: Backend, kinds: Kinds = ()
) -> dict[Size, Encoded]:
    """Encode `counts[size]` scenes of each size, or read back what an earlier run has left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=sum(counts.values()), desc="encoding scenes", unit="scene")
    found = {}
    for size, count in counts.items():
        parts = []
        for shard, start in enumerate(range(0, count, SHARD)):
            drawn = scenes_of(size, shard, min(SHARD, count - start), seed, kinds)
            path = folder / f"latents-{fingerprint(vae, drawn)}-{size[0]}x{size[1]}-{shard}.npy"
            parts.append(Encoded(drawn, read_or_encode(path, vae, drawn, nx)))
            bar.update(len(drawn))
        found[size] = Encoded([s for p in parts for s in p.scenes], np.concatenate([p.latents for p in parts]))
    bar.close()
    return found


def read_or_encode(path: Path, vae: tuple[VAEConfig, Tree], drawn: list[Scene], nx: Backend) -> np.ndarray:
    """Read a shard's latents, or encode its scenes and write them."""
    if path.exists():
        return np.load(path)
    cfg, p = vae
    chunks = [drawn[i : i + CHUNK] for i in range(0, len(drawn), CHUNK)]
    latents = np.concatenate([
        nx.to_numpy(encode(p, cfg, nx.array(signed(render_batch(chunk))))).astype(np.float16) for chunk in chunks
    ])  # fmt: skip
    with written_whole(path) as file:
        np.save(file, latents)
    return latents
