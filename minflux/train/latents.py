"""Latents of one's own images, encoded once and kept in a folder of caches.

A file's name is a hash of all that is in it: the image's bytes, the size that it is brought to, and the VAE.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minflux.checkpoints.formats.atomic import saved
from minflux.checkpoints.hashes import hash_file
from minflux.train.captioned import Captioned, Size, read_pixels


@dataclass(frozen=True)
class LatentsCache:
    """A folder of latents, for one VAE; `vae` is a hash of it (see `inference.cache.identity`)."""

    folder: Path
    vae: str

    def path(self, image: Captioned, size: Size) -> Path:
        """Name the file of an image at a size."""
        of = f"{hash_file(image.path)} {size} {self.vae}"
        return self.folder / f"{hashlib.sha256(of.encode()).hexdigest()}.npy"

    def keep(self, image: Captioned, size: Size, encode: Callable[[np.ndarray], np.ndarray]) -> Path:
        """Return the file of an image's latents; encode them and write it, where there is none that can be read.

        encode: from pixels, uint8 (H, W, 3), to latents (h, w, C). Raises `ArgumentError` for a damaged image.
        """
        path = self.path(image, size)
        if not is_readable(path):
            latents = encode(read_pixels(image.path, size))
            with saved(path) as file:
                np.save(file, latents)
        return path


def is_readable(path: Path) -> bool:
    """Return whether a file holds one whole array."""
    try:
        np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return True
