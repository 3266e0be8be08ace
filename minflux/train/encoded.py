"""Scenes of every size, encoded ahead of the flow's training, a file for every thousand.

Encoding an image costs more than a training step's share of it, and the same latents serve again and again, each time
with another caption and other noise. A file names the VAE and the scenes it was made from, so a run that was
stopped goes on with the files it has, and another VAE makes its own.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minflux.arrays import Tree
from minflux.backend import Backend
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.tree import leaves
from minflux.model.vae import VAEConfig, encode
from minflux.train.autoencoder import signed
from minflux.train.workers import ALONE, Team
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
    vae: tuple[VAEConfig, Tree],
    counts: dict[Size, int],
    seed: int,
    folder: Path,
    nx: Backend,
    kinds: Kinds = (),
    team: Team = ALONE,
) -> dict[Size, Encoded]:
    """Encode `counts[size]` scenes of each size, or read back what an earlier run has left in `folder`.

    Each process of the team encodes its share of the shards, and reads them all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [shard_of(vae, size, drawn, folder) for size, drawn in drawn_in_shards(counts, seed, kinds)]
    for shard in tqdm(team.share(shards), desc="encoding scenes", unit="shard", disable=team.rank > 0):
        if not shard.path.exists():
            write_latents(shard, vae, nx)
    team.wait(nx)
    return {size: read_shards([shard for shard in shards if shard.size == size]) for size in counts}


@dataclass(frozen=True)
class Shard:
    """Up to SHARD scenes of one size, and the file of their latents."""

    size: Size
    scenes: list[Scene]
    path: Path


def drawn_in_shards(counts: dict[Size, int], seed: int, kinds: Kinds) -> Iterator[tuple[Size, list[Scene]]]:
    """Yield the scenes of each size, at most SHARD at once."""
    for size, count in counts.items():
        for number, some in shards_of(count, SHARD):
            yield size, scenes_of(size, number, some, seed, kinds)


def shards_of(count: int, most: int) -> list[tuple[int, int]]:
    """Part `count` of anything into shards of at most so many: the number of each, and how many it holds.

    >>> shards_of(5, 2)
    [(0, 2), (1, 2), (2, 1)]
    """
    return [(number, min(most, count - start)) for number, start in enumerate(range(0, count, most))]


def shard_of(vae: tuple[VAEConfig, Tree], size: Size, drawn: list[Scene], folder: Path) -> Shard:
    """Name the file of these scenes' latents by the VAE and the scenes."""
    return Shard(size, drawn, folder / f"latents-{fingerprint(vae, drawn)}-{size[0]}x{size[1]}.npy")


def write_latents(shard: Shard, vae: tuple[VAEConfig, Tree], nx: Backend) -> None:
    """Encode a shard's scenes, and write their latents."""
    cfg, p = vae
    chunks = [shard.scenes[i : i + CHUNK] for i in range(0, len(shard.scenes), CHUNK)]
    latents = np.concatenate([
        nx.to_numpy(encode(p, cfg, nx.array(signed(render_batch(chunk))))).astype(np.float16) for chunk in chunks
    ])  # fmt: skip
    with written_whole(shard.path) as file:
        np.save(file, latents)


def read_shards(shards: list[Shard]) -> Encoded:
    """Read the latents of one size, and join them."""
    scenes = [scene for shard in shards for scene in shard.scenes]
    return Encoded(scenes, np.concatenate([np.load(shard.path) for shard in shards]))


def fingerprint(vae: tuple[VAEConfig, Tree], drawn: Sequence[object]) -> str:
    """Return a name for encoded scenes by what made them: 12 hexadecimal digits of VAE and scenes."""
    cfg, p = vae
    digest = hashlib.sha256(repr((cfg, drawn)).encode())
    for name, x in sorted(leaves(p)):
        digest.update(name.encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:12]
