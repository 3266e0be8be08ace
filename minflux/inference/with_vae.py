"""A pipeline whose latents a VAE makes and decodes, and whose prompts are read by text encoders with a cache.

FLUX.1 and SD3 share it; each says what its text encoders and its velocity are.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from minflux.arrays import Array, Tree
from minflux.checkpoints.lazy import Progress, no_progress
from minflux.errors import ArgumentError
from minflux.images import to_uint8
from minflux.inference.arguments import check_latents
from minflux.inference.cache import Cache
from minflux.inference.pipeline import Conditioning, Pipeline
from minflux.model.hooks import OnBlock
from minflux.model.vae import VAEConfig, encode, encode_sample
from minflux.model.vae_bands import WHOLE, decode_any


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VAEPipeline(Pipeline):
    """A pipeline with a VAE and a cache of encoded prompts."""

    vae: tuple[VAEConfig, Tree]
    cache: Cache | None = None
    progress: Progress = no_progress  # of reading weights before the steps

    @property
    def downscale(self) -> int:
        """Pixels a latent, along one side: 8."""
        return self.vae[0].downscale

    @property
    def channels(self) -> int:
        """Channels of the latents: 16."""
        return self.vae[0].z_channels

    def memory_of_pixels(self, count: int, width: int, height: int) -> int:
        """Return about how many bytes the arrays of images take at a time in the VAE, beside the weights.

        Of each pixel 12 times the channels of the finest level, measured in bands (see `vae_bands`), of one image at a
        time where it is large; and of all images the pixels, as floats, once more clipped, and as bytes.
        """
        at_once = count if width * height <= WHOLE else 1
        return width * height * (12 * self.vae[0].ch * at_once + 27 * count)

    @abstractmethod
    def memory_of_text(self, count: int) -> int:
        """Return about how many bytes the text encoders' arrays take of so many prompts."""

    # -- text --------------------------------------------------------------------------------------------------

    def _encode(self, prompts: list[str], negative: str | None) -> Conditioning:
        """Encode each distinct prompt once with the text encoders, or recall it from the cache."""
        wanted = prompts if negative is None else [*prompts, negative]
        distinct = list(dict.fromkeys(wanted))
        places = {prompt: place for place, prompt in enumerate(distinct)}
        self._check_memory(
            f"{len(distinct)} prompts of {self.defaults.text_length} tokens", self.memory_of_text(len(distinct))
        )
        ids = self._tokens(distinct)
        txt, y = self.cache.recall(*ids, self._run_encoders) if self.cache else self._run_encoders(*ids)

        def rows(some: list[str], negative: Conditioning | None = None) -> Conditioning:
            index = self.nx.array(np.array([places[prompt] for prompt in some], np.int32))
            return Conditioning(txt[index], y[index], negative)

        return rows(prompts, None if negative is None else rows([negative] * len(prompts)))

    def is_kept(self, prompt: str) -> bool:
        """Return whether the cache has what the text encoders say of a prompt alone, so that they need not run."""
        ids = self._tokens([prompt])
        return self.cache is not None and self.cache.read(self.cache.path(*ids)) is not None

    @abstractmethod
    def _tokens(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Turn prompts into token ids, CLIP's and T5's."""

    @abstractmethod
    def _run_encoders(self, clip_ids: np.ndarray, t5_ids: np.ndarray) -> tuple[Array, Array]:
        """Run the text encoders on token ids: txt (B, T, E), y (B, P)."""

    # -- images ------------------------------------------------------------------------------------------------

    def decode(self, latents: Array) -> np.ndarray:
        """Decode latents (B, h, w, C) to images, uint8 (B, H, W, 3); large ones in bands, which saves memory.

        Raises `ArgumentError` when the images come out as NaN or infinity.
        """
        cfg, p = self.vae
        latents = self._checked_latents(latents)
        dtype = p["decoder"]["conv_in"]["weight"].dtype
        pixels = self.nx.to_numpy(decode_any(p, cfg, latents.astype(dtype)))
        if not np.isfinite(pixels).all():
            raise ArgumentError(
                "latents: the image came out as NaN or infinity; use finite latents, or float32 weights"
            )
        return to_uint8(pixels)

    def _checked_latents(self, latents: Any) -> Array:
        """Return latents of any size, as float32."""
        sizes: tuple[int, ...] = tuple(getattr(latents, "shape", ()))[:3]
        if len(sizes) == 3:
            count, height, width = sizes
            pixels = width * self.downscale, height * self.downscale
            self._check_memory(
                f"{count} images of {pixels[0]}x{pixels[1]} pixels", self.memory_of_pixels(count, *pixels)
            )
        order = "batch, height, width, channels"
        return self.nx.array(check_latents("latents", latents, (None, None, None, self.channels), order))

    def _encode_pixels(self, pixels: Array, noise: Array | None = None) -> Array:
        """Encode images to the mean of their latents' distribution, or to a sample of it by `noise`, in float32."""
        cfg, p = self.vae
        pixels = pixels.astype(p["encoder"]["conv_in"]["weight"].dtype)
        latents = encode(p, cfg, pixels) if noise is None else encode_sample(p, cfg, pixels, noise)
        return self.nx.as_float32(latents)

    # -- listening ---------------------------------------------------------------------------------------------

    def _compute(self, name: str, seen: dict[str, Any]) -> None:
        """Compute a block's arrays now, after which MLX needs the block's weights no more."""
        self.nx.eval(seen)

    def _computed_for(self, on_block: OnBlock) -> OnBlock:
        """Return a listener that computes a block's arrays and hands them to `on_block`."""

        def listen(name: str, seen: dict[str, Any]) -> None:
            self._compute(name, seen)
            on_block(name, seen)

        return listen
