"""SD3's side of the pipeline: prompts by two CLIPs and T5, the MMDiT's velocity, images by the VAE."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from minflux.arrays import Array, Tree
from minflux.checkpoints.components import SD3 as FAMILY
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.sd3 import sd3_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.lazy import for_steps
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.flux1 import both_signs
from minflux.inference.modulated import Modulated
from minflux.inference.neighbour import Neighbour, Traits, always, check_plain
from minflux.inference.pipeline import Conditioning, Defaults, check_finite
from minflux.inference.settings import read_schedule
from minflux.inference.step_cache import StepCache
from minflux.inference.text import PromptTruncated, Tokenizer
from minflux.inference.with_vae import VAEPipeline
from minflux.model.clip import CLIPConfig, projected_clip
from minflux.model.hooks import OnBlock
from minflux.model.modulation import modulations
from minflux.model.sd3 import SD3Config, velocity
from minflux.model.t5 import T5Config, t5_encoder
from minflux.sampling.guidance import Guidance, guided
from minflux.sampling.solvers import Velocity
from minflux.sampling.timesteps import Schedule, shifted

SD3_DEFAULTS = Defaults(steps=28, guidance=7.0, text_length=256)  # diffusers' own
TRAINING_STEPS = 1000


@dataclass(frozen=True)
class SD3Schedule(Schedule):
    """Steps from noise to the last of 1000 training timesteps, which are shifted already, and shifted once more.

    So diffusers spreads them when a pipeline names no timesteps, and so SD3's images are made. FLUX.1's go down to
    1 / steps before they are shifted.
    """

    shift: float = 3.0

    def timesteps(self, steps: int, tokens: int) -> np.ndarray:
        """Return t₀ = 1 > t₁ > … > 0, float32 (steps + 1,), for an image of any size."""
        if self.use_dynamic_shifting:
            raise CheckpointError("use_dynamic_shifting: minflux supports a fixed shift alone for SD3")
        last = shifted(np.array(1 / TRAINING_STEPS), self.shift)
        t = shifted(np.linspace(1, last, steps), self.shift)
        return np.append(t, 0).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SD3(VAEPipeline):
    """SD3 and SD3.5: the config and the weights of their five networks, and three tokenizers."""

    mmdit: tuple[SD3Config, Tree]
    clips: tuple[tuple[CLIPConfig, Tree], tuple[CLIPConfig, Tree]]  # CLIP-L, CLIP-G
    t5: tuple[T5Config, Tree]
    clip_tokenizers: tuple[Tokenizer, Tokenizer]
    t5_tokenizer: Tokenizer

    def count_numbers(self) -> int:
        """Count the numbers in the weights of all five networks, without reading any."""
        shapes = [sd3_shapes(self.mmdit[0]), vae_shapes(self.vae[0]), t5_shapes(self.t5[0])]
        shapes += [clip_shapes(cfg) for cfg, _ in self.clips]
        return sum(math.prod(shape) for part in shapes for shape in part.values())

    def memory_of_images(self, count: int, width: int, height: int, guidance: Guidance) -> int:
        """Return about how many bytes the arrays of images take at a time in sampling, beside the weights.

        Of each token, x, its q, k and v, what they attend to, and the MLP's hidden layer before and after GELU: 13 D.
        """
        tokens = width * height // (2 * self.downscale) ** 2 + self.defaults.text_length + self.clip_length
        rows = count * (2 if guidance.needs_negative else 1)
        itemsize = 2 if self.nx.on_gpu else 4
        in_a_block = 13 * self.mmdit[0].hidden_size * itemsize * tokens * rows
        return max(in_a_block, self.memory_of_pixels(count, width, height))

    def memory_of_text(self, count: int) -> int:
        """Return about how many bytes T5's arrays take of so many prompts: its hidden layers, and all pairs' biases."""
        cfg, length = self.t5[0], self.defaults.text_length
        return length * (4 * count * (cfg.d_model + 2 * cfg.d_ff) + length * (8 + 4 * cfg.num_heads))

    # -- settings ----------------------------------------------------------------------------------------------

    def _size(self, width: Any, height: Any) -> tuple[int, int]:
        """Return width and height, checked; raises `ArgumentError` for more than the table of positions has."""
        size = super()._size(width, height)
        most = 2 * self.mmdit[0].pos_embed_max_size * self.downscale
        if max(size) > most:
            raise ArgumentError(f"width and height: this model has positions for {most} pixels at most")
        return size

    # -- text --------------------------------------------------------------------------------------------------

    @property
    def clip_length(self) -> int:
        """Tokens that both CLIPs read of a prompt: 77."""
        return min(self.clip_tokenizers[0].max_length, *(cfg.max_position_embeddings for cfg, _ in self.clips))

    def _tokens(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Turn prompts into token ids: those of both CLIPs side by side, and T5's."""
        with warnings.catch_warnings():  # of a long prompt CLIP reads the start alone, by design; T5 reads on
            warnings.simplefilter("ignore", PromptTruncated)
            clip_ids = [tokenizer(prompts, self.clip_length) for tokenizer in self.clip_tokenizers]
        return np.concatenate(clip_ids, axis=1), self.t5_tokenizer(prompts, self.defaults.text_length)

    def _run_encoders(self, clip_ids: np.ndarray, t5_ids: np.ndarray) -> tuple[Array, Array]:
        """Run the text encoders on token ids: txt (B, 77 + T, E), y (B, P).

        Both CLIPs' states stand side by side, zeros up to T5's width, and T5's states come after them. y is both CLIPs'
        pooled outputs. Source: diffusers' `StableDiffusion3Pipeline.encode_prompt`.
        """
        nx, (t5_cfg, t5) = self.nx, self.t5
        states, pooled = [], []
        for (cfg, p), ids in zip(self.clips, np.split(clip_ids, 2, axis=1), strict=True):
            state, y = projected_clip(p, cfg, nx.array(ids), self._compute)
            states.append(state)
            pooled.append(y)
        words = t5_encoder(t5, t5_cfg, nx.array(t5_ids), self._compute)
        both = nx.concatenate(states, axis=-1)
        both = nx.pad(both, ((0, 0), (0, 0), (0, words.shape[-1] - both.shape[-1])))
        txt, y = nx.concatenate([both.astype(words.dtype), words], axis=1), nx.concatenate(pooled, axis=-1)
        nx.eval(txt, y)
        check_finite(nx, "the text encoders", txt, y)
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
        """Return v(x, t) on latents x (B, h, w, C) of `size` (h, w), defined for every t in [0, 1].

        The modulations of all `timesteps` are computed at once; at another t they are computed when v is called.
        """
        check_plain(text, step_cache)
        nx, cfg, is_guided = self.nx, self.mmdit[0], guidance.needs_negative
        txt, y = both_signs(text) if is_guided else (text.txt, text.y)
        made = Modulated(lambda p, vec: modulations(p, vec, self._compute), self.mmdit[1], y, None, nx)
        mod = made.ahead(timesteps)
        p = for_steps(self.mmdit[1], self.progress)
        listen = self._compute if on_block is None else self._computed_for(on_block)

        def v(x: Array, t: float) -> Array:
            latents = nx.concatenate([x, x], axis=0) if is_guided else x
            out = velocity(p, cfg, latents, txt, mod(t), listen, keep_qkv=on_block is not None)
            return guided(nx.as_float32(out), guidance.scale) if is_guided else out

        return v

    def held(self) -> Self:
        """Return the pipeline with the transformer's weights read that its steps use; freed with that pipeline."""
        cfg, p = self.mmdit
        return replace(self, mmdit=(cfg, for_steps(p, self.progress)))


# -- the record ------------------------------------------------------------------------------------------------


def sizes(configs: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """List what of an SD3's components must fit together."""
    mmdit, clips = configs["transformer"], [configs["text_encoder"], configs["text_encoder_2"]]
    side_by_side, pooled = (sum(getattr(cfg, name) for cfg in clips) for name in ("hidden_size", "projection_dim"))
    return [
        ("pooled numbers of both CLIPs", mmdit.vec_in_dim, pooled),
        ("T5 of width", mmdit.context_in_dim, configs["text_encoder_3"].d_model),
        ("a VAE whose latents' channels are", mmdit.in_channels, configs["vae"].z_channels),
        ("channels out of the transformer", mmdit.in_channels, mmdit.out_channels),
        ("CLIPs of a width together of", min(mmdit.context_in_dim, side_by_side), side_by_side),
    ]


def make(parts: Mapping[str, tuple[Any, Tree]], tokenizers: Sequence[Tokenizer], **rest: Any) -> SD3:
    """Put an SD3 together of its networks, (config, weights) each, and its tokenizers; `rest` as for `Pipeline`."""
    clip_l, clip_g, t5 = tokenizers
    return SD3(
        mmdit=parts["transformer"],
        vae=parts["vae"],
        clips=(parts["text_encoder"], parts["text_encoder_2"]),
        t5=parts["text_encoder_3"],
        clip_tokenizers=(clip_l, clip_g),
        t5_tokenizer=t5,
        **rest,
    )


SD3_MODEL = Neighbour(
    title="an SD3",
    family=FAMILY,
    tokenizers={"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"},
    traits=always(Traits(SD3_DEFAULTS)),
    read_schedule=partial(read_schedule, kind=SD3Schedule),
    sizes=sizes,
    make=make,
)
