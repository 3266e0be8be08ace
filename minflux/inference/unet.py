"""Stable Diffusion 1's side of the pipeline: prompts by CLIP, noise by a U-Net, images by a VAE of 4 channels.

The steps are DDIM's, with η = 0: `euler` on the velocity that a predicted noise is (see `sampling/ddpm.py`), in the
flow's coordinates z. What a step shows is x as diffusers has it, z / r. The other solvers run on it as well.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from minflux.arrays import Array, Tree
from minflux.checkpoints.components import SD1 as FAMILY
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.unet import unet_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.lazy import for_steps
from minflux.edit.base import Edit
from minflux.errors import ArgumentError, CheckpointError, quoted
from minflux.inference.arguments import check_steps
from minflux.inference.flux1 import both_signs
from minflux.inference.neighbour import Neighbour, Traits, always, check_plain
from minflux.inference.pipeline import Conditioning, Defaults, SamplingPlan, check_finite
from minflux.inference.settings import read_fields
from minflux.inference.step_cache import StepCache
from minflux.inference.text import Tokenizer
from minflux.inference.with_vae import VAEPipeline
from minflux.model.clip import CLIPConfig, clip_encoder
from minflux.model.hooks import OnBlock
from minflux.model.unet import UNetConfig, unet
from minflux.sampling.ddpm import NoiseSchedule, noise_as_velocity, radius
from minflux.sampling.guidance import Guidance, guided
from minflux.sampling.solvers import Step, Velocity

SD1_DEFAULTS = Defaults(width=512, height=512, steps=50, guidance=7.5, text_length=77)  # diffusers' own


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StableDiffusion1(VAEPipeline):
    """Stable Diffusion 1: the config and the weights of its three networks, and a tokenizer."""

    schedule: NoiseSchedule
    unet: tuple[UNetConfig, Tree]
    clip: tuple[CLIPConfig, Tree]
    tokenizer: Tokenizer

    def count_numbers(self) -> int:
        """Count the numbers in the weights of all three networks, without reading any."""
        shapes = unet_shapes(self.unet[0]), vae_shapes(self.vae[0]), clip_shapes(self.clip[0])
        return sum(math.prod(shape) for part in shapes for shape in part.values())

    def memory_of_images(self, count: int, width: int, height: int, guidance: Guidance) -> int:
        """Return about how many bytes the arrays of images take at a time in sampling, beside the weights.

        Of each latent of the finest level what is kept on the way down, twice x, and the gated MLP's hidden layers.
        """
        cfg, rows = self.unet[0], count * (2 if guidance.needs_negative else 1)
        itemsize = 2 if self.nx.on_gpu else 4
        of_latent = (cfg.layers_per_block + 2 + 12) * cfg.block_out_channels[0] * itemsize
        latents = width * height // self.downscale**2
        return max(of_latent * latents * rows, self.memory_of_pixels(count, width, height))

    def memory_of_text(self, count: int) -> int:
        """Return about how many bytes CLIP's arrays take of so many prompts: its states and its hidden layers."""
        cfg = self.clip[0]
        return 4 * count * self.length * (4 * cfg.hidden_size + 2 * cfg.intermediate_size)

    # -- text --------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Tokens that CLIP reads of a prompt: 77."""
        return min(self.tokenizer.max_length, self.clip[0].max_position_embeddings)

    def _tokens(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Turn prompts into CLIP's token ids, and no others."""
        ids = self.tokenizer(prompts, self.length)
        return ids, ids[:, :0]

    def _run_encoders(self, clip_ids: np.ndarray, t5_ids: np.ndarray) -> tuple[Array, Array]:
        """Run CLIP on token ids: its states (B, 77, E), at which the U-Net looks, and its pooled output (B, E)."""
        txt, y = clip_encoder(self.clip[1], self.clip[0], self.nx.array(clip_ids), self._compute)
        self.nx.eval(txt, y)
        check_finite(self.nx, "the text encoder", txt, y)
        return txt, y

    # -- velocity ----------------------------------------------------------------------------------------------

    def velocity(
        self,
        text: Conditioning,
        size: tuple[int, int],
        guidance: Guidance,
        timesteps: Sequence[float] = (),
        on_block: OnBlock | None = None,
        step_cache: StepCache | None = None,
    ) -> Velocity:
        """Return v(z, t) on latents z (B, h, w, C) of `size` (h, w), defined for every t below 1."""
        check_plain(text, step_cache)
        nx, (cfg, stored), is_guided = self.nx, self.unet, guidance.needs_negative
        txt, _ = both_signs(text) if is_guided else (text.txt, text.y)
        p = for_steps(stored, self.progress)
        listen = self._compute if on_block is None else self._computed_for(on_block)

        def noise(x: Array, n: float) -> Array:
            latents = nx.concatenate([x, x], axis=0) if is_guided else x
            steps = nx.array(np.full(len(latents), n, np.float32))
            predicted = nx.as_float32(unet(p, cfg, latents, steps, txt, listen))
            return guided(predicted, guidance.scale) if is_guided else predicted

        return noise_as_velocity(noise, self.schedule)

    def held(self) -> Self:
        """Return the pipeline with the U-Net's weights read that its steps use; freed with that pipeline."""
        cfg, p = self.unet
        return replace(self, unet=(cfg, for_steps(p, self.progress)))

    # -- steps -------------------------------------------------------------------------------------------------

    def _timesteps(self, steps: Any, timesteps: Any, width: int, height: int) -> np.ndarray:
        """Return the given timesteps, or those of the schedule, in float64: near t = 1 they need it."""
        if timesteps is not None:
            return super()._timesteps(steps, timesteps, width, height)
        return self.schedule.timesteps(check_steps(self.defaults.steps if steps is None else steps))

    def _start(self, edit: Edit, noises: list[Array], t: float) -> Array:
        """Return the latents z that an edit begins with; noise alone is x, and so r times as large."""
        z = edit.start(noises, t)
        return z * radius(t) if edit.image is None else z

    def _follow(
        self,
        text: Conditioning,
        plan: SamplingPlan,
        edit: Edit,
        noises: list[Array],
        on_block: OnBlock | None,
        step_cache: StepCache | None,
    ) -> Iterator[Step]:
        """Follow an edit's velocity, and show each step's x, z / r."""
        for step in super()._follow(text, plan, edit, noises, on_block, step_cache):
            yield replace(step, x=step.x / radius(step.t))


# -- the record ------------------------------------------------------------------------------------------------

SHAPES = {"scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}  # diffusers' beta_schedule -> ours
PLAIN = {  # settings of diffusers' schedulers that would change what is predicted, or the steps
    "prediction_type": "epsilon",
    "trained_betas": None,
    "clip_sample": False,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "use_karras_sigmas": False,
}


def read_noise_schedule(path: Path) -> NoiseSchedule:
    """Read how noise was added in training, and where DDIM stops, whichever sampler the file names.

    Raises `CheckpointError` for another schedule, and for a network that predicts something else than the noise.
    """
    values = {"timestep_spacing": "leading", "clip_sample": False} | read_json(path)
    for name, plain in PLAIN.items():
        if values.get(name, plain) != plain:
            raise CheckpointError(f"{path}: {name}: minflux supports {plain!r} alone, found {quoted(values[name])}")
    shape = values.get("beta_schedule")
    if not isinstance(shape, str) or shape not in SHAPES:
        raise CheckpointError(f"{path}: beta_schedule: expected one of {', '.join(SHAPES)}, found {quoted(shape)}")
    try:
        schedule = read_fields(NoiseSchedule, values | {"shape": SHAPES[shape]}, path)
    except ArgumentError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not schedule.times[-1] < 1:
        raise CheckpointError(f"{path}: beta_end: nothing is left of the image at {schedule.beta_end}, take less")
    return schedule


def sizes(configs: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """List what of a Stable Diffusion 1's components must fit together."""
    cfg, channels = configs["unet"], configs["vae"].z_channels
    return [
        ("a CLIP of width", cfg.cross_attention_dim, configs["text_encoder"].hidden_size),
        ("a VAE whose latents' channels are", cfg.in_channels, channels),
        ("channels out of the U-Net", cfg.in_channels, cfg.out_channels),
    ]


def make(parts: Mapping[str, tuple[Any, Tree]], tokenizers: Sequence[Tokenizer], **rest: Any) -> StableDiffusion1:
    """Put a Stable Diffusion 1 together of its networks, (config, weights) each, and its tokenizer."""
    (tokenizer,) = tokenizers
    return StableDiffusion1(
        unet=parts["unet"], vae=parts["vae"], clip=parts["text_encoder"], tokenizer=tokenizer, **rest
    )


SD1_MODEL = Neighbour(
    title="a Stable Diffusion 1",
    family=FAMILY,
    tokenizers={"tokenizer": "text_encoder"},
    traits=always(Traits(SD1_DEFAULTS)),
    read_schedule=read_noise_schedule,
    sizes=sizes,
    make=make,
)
