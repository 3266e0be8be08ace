"""FLUX.1's side of the pipeline: prompts by T5 and CLIP, the transformer's velocity, images by the VAE."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from minflux.arrays import Array, Tree
from minflux.backend import backend_of
from minflux.backend.processes import ALONE, Group
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes, takes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.lazy import for_steps
from minflux.edit.kontext import Reference
from minflux.errors import ArgumentError
from minflux.inference.compiled import block_runner
from minflux.inference.controlnets import Controlled, held_nets
from minflux.inference.image_prompts import ImagePrompts, Redux, mixed
from minflux.inference.modulated import Modulated
from minflux.inference.pipeline import Conditioning, check_finite
from minflux.inference.step_cache import StepCache
from minflux.inference.text import PromptTruncated, Tokenizer
from minflux.inference.with_vae import VAEPipeline
from minflux.model.clip import CLIPConfig, clip_encoder
from minflux.model.flux import NONE, FluxConfig, Residuals, velocity
from minflux.model.hooks import OnBlock
from minflux.model.latents import image_ids, pack, text_ids, unpack
from minflux.model.modulation import modulations
from minflux.model.rope import rope
from minflux.model.t5 import T5Config, t5_encoder
from minflux.sampling.guidance import Guidance, guided
from minflux.sampling.solvers import Velocity
from minflux.sampling.timesteps import Schedule

Prediction = Callable[[Array, float, Residuals], Array]  # a velocity, with what ControlNets add


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Flux1(VAEPipeline):
    """FLUX.1: the config and the weights of its four networks, its tokenizers, and a cache of encoded prompts."""

    schedule: Schedule
    flux: tuple[FluxConfig, Tree]
    clip: tuple[CLIPConfig, Tree]
    t5: tuple[T5Config, Tree]
    clip_tokenizer: Tokenizer
    t5_tokenizer: Tokenizer
    redux: Redux | None = None  # for image prompts
    group: Group = ALONE  # the processes that share the transformer and T5

    @property
    def built_in_guidance(self) -> bool:
        """Whether the transformer takes its guidance as an input, as FLUX.1-dev's does and FLUX.1-schnell's not."""
        return self.flux[0].guidance_embed

    @property
    def takes(self) -> str:
        """What the transformer takes beside the latents: "mask", "control" or ""."""
        return takes(self.flux[0]) or ""

    @property
    def takes_references(self) -> bool:
        """Whether it can look at reference images: a transformer that takes nothing else beside the latents."""
        return not self.takes

    @property
    def beside(self) -> int:
        """Channels that the transformer takes beside those of the latents, a quarter of a token's."""
        return (self.flux[0].in_channels - self.flux[0].out_channels) // 4

    def count_numbers(self) -> int:
        """Count the numbers in the weights of all four networks, without reading any."""
        flux, vae, clip, t5 = (
            flux_shapes(self.flux[0]),
            vae_shapes(self.vae[0]),
            clip_shapes(self.clip[0]),
            t5_shapes(self.t5[0]),
        )
        shapes = [*flux.values(), *vae.values(), *clip.values(), *t5.values()]
        return sum(map(math.prod, shapes))

    # -- memory ------------------------------------------------------------------------------------------------

    def memory_of_images(self, count: int, width: int, height: int, guidance: Guidance) -> int:
        """Return about how many bytes the arrays of images take at a time in sampling, beside the weights.

        A single block holds most: of each token x, what linear1 makes of it (q, k, v and the MLP's hidden layer, 7 D)
        and what goes into linear2 (5 D). Images in classifier-free guidance count twice.
        """
        tokens = width * height // (2 * self.downscale) ** 2 + self.defaults.text_length
        rows = count * (2 if guidance.needs_negative else 1)
        return max(self.memory_of_tokens(tokens * rows), self.memory_of_pixels(count, width, height))

    def memory_of_tokens(self, tokens: int) -> int:
        """Return about how many bytes a single block's arrays of so many tokens take."""
        itemsize = 2 if self.nx.on_gpu else 4
        return 13 * self.flux[0].hidden_size * itemsize * tokens

    def memory_of_text(self, count: int) -> int:
        """Return about how many bytes T5's arrays take of so many prompts: its hidden layers, and all pairs' biases."""
        cfg, length = self.t5[0], self.defaults.text_length
        return length * (4 * count * (cfg.d_model + 2 * cfg.d_ff) + length * (8 + 4 * cfg.num_heads))

    # -- text --------------------------------------------------------------------------------------------------

    def _tokens(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Turn prompts into token ids, CLIP's and T5's."""
        with warnings.catch_warnings():  # of a long prompt CLIP reads the start alone, by design; T5 reads on
            warnings.simplefilter("ignore", PromptTruncated)
            clip_ids = self.clip_tokenizer(prompts, self.clip[0].max_position_embeddings)
        return clip_ids, self.t5_tokenizer(prompts, self.defaults.text_length)

    def _run_encoders(self, clip_ids: np.ndarray, t5_ids: np.ndarray) -> tuple[Array, Array]:
        """Run both text encoders on token ids: txt (B, T, E) from T5, y (B, P) from CLIP."""
        clip_cfg, clip = self.clip
        t5_cfg, t5 = self.t5
        _, y = clip_encoder(clip, clip_cfg, self.nx.array(clip_ids), self._compute)
        txt = t5_encoder(t5, t5_cfg, self.nx.array(t5_ids), self._compute)
        self.nx.eval(txt, y)
        check_finite(self.nx, "the text encoders", txt, y)
        return txt, y

    # -- image prompts -----------------------------------------------------------------------------------------

    def with_image_prompts(self, text: Conditioning, prompts: ImagePrompts) -> Conditioning:
        """Return what prompts say with what image prompts say; a negative prompt stays without them."""
        if self.redux is None or not prompts.images:
            return text
        tokens = [self.redux.tokens(self.nx, image, self._compute) for image in prompts.images]
        check_finite(self.nx, "the image prompts", *tokens)
        txt, y = mixed(text.txt, text.y, tokens, prompts)
        return replace(text, txt=txt, y=y)

    def _check_image_prompts(self, count: int) -> None:
        """Raise `ArgumentError` for a model that was loaded without Redux, and for more than the memory holds."""
        if self.redux is None:
            raise ArgumentError(
                "image_prompt: the model was loaded without Redux; load it with redux (--redux), as "
                "black-forest-labs/FLUX.1-Redux-dev"
            )
        tokens = count * self.redux.count
        self._check_memory(f"{count} image prompts", self.memory_of_tokens(tokens))

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

        The modulations of all `timesteps` are computed at once, for which a quarter of the weights is read once. At
        another t they are computed when v is called. A negative prompt of another length, for image prompts go with
        the prompt alone, is asked for by itself. With a `step_cache`, v is to be called once for each of `timesteps`.
        """
        predict = self._prediction(text, size, guidance, timesteps, on_block, step_cache)
        if not text.controls:
            return lambda x, t: predict(x, t, NONE)
        residuals = self._residuals(text, size, guidance, timesteps)
        return lambda x, t: predict(x, t, residuals(x, t))

    def _prediction(
        self,
        text: Conditioning,
        size: tuple[int, int],
        guidance: Guidance,
        timesteps: Sequence[float],
        on_block: OnBlock | None,
        step_cache: StepCache | None,
    ) -> Prediction:
        """Return v(x, t, residuals), the velocity with what ControlNets add."""
        if step_cache is not None and self.group.size > 1:
            raise ArgumentError("step_cache goes without split: each process would skip steps by its own rounding")
        negative = negative_apart(text, guidance)
        if negative is not None:
            return self.held()._prediction_apart(text, negative, size, guidance, timesteps, on_block, step_cache)
        cfg, nx, is_guided = self.flux[0], self.nx, guidance.needs_negative
        txt, y = both_signs(text) if is_guided else (text.txt, text.y)
        ids = nx.concatenate([text_ids(txt), image_ids(txt, *size), *reference_ids(txt, text.references)], axis=1)
        references = [pack(nx.broadcast_to(r.latents, (len(txt), *r.latents.shape[1:]))) for r in text.references]
        pe = rope(ids, cfg.axes_dim, cfg.theta)  # the same in every step
        mod = self._modulated(y, guidance).ahead(timesteps)
        p = for_steps(self.flux[1], self.progress)
        listen = self._compute if on_block is None else self._computed_for(on_block)
        run_block = block_runner(nx)
        if step_cache is not None:
            run_block = step_cache.runner(run_block, cfg.depth + cfg.depth_single_blocks, len(timesteps))

        def v(x: Array, t: float, residuals: Residuals) -> Array:
            tokens = pack(nx.concatenate([x, x], axis=0) if is_guided else x)
            count = tokens.shape[1]
            tokens = nx.concatenate([tokens, *references], axis=1)
            tokens = velocity(p, tokens, txt, mod(t), pe, listen, on_block is not None, run_block, residuals, text.bias)
            out = unpack(tokens[:, :count], *size)
            return guided(nx.as_float32(out), guidance.scale) if is_guided else out

        return v

    def _prediction_apart(
        self, text: Conditioning, negative: Conditioning, size: tuple[int, int], guidance: Guidance, *how: Any
    ) -> Prediction:
        """Return the prediction guided away from a negative prompt's, with a pass for each of the two."""
        alone = Guidance(guidance.embedded)
        signs = text, replace(negative, references=text.references)
        positive, away = (self._prediction(replace(sign, negative=None), size, alone, *how) for sign in signs)

        def v(x: Array, t: float, residuals: Residuals) -> Array:
            both = self.nx.concatenate([positive(x, t, residuals), away(x, t, residuals)], axis=0)
            return guided(self.nx.as_float32(both), guidance.scale)

        return v

    def _residuals(
        self, text: Conditioning, size: tuple[int, int], guidance: Guidance, timesteps: Sequence[float]
    ) -> Callable[[Array, float], Residuals]:
        """Return r(x, t), what ControlNets add of the prompt's control images (see `inference/controlnets.py`)."""
        copies = 2 if guidance.needs_negative and negative_apart(text, guidance) is None else 1
        asked = Controlled(
            self.nx, self.flux[0], text.txt, text.y, size, guidance.embedded, timesteps, copies, self._compute
        )
        return asked.residuals(text.controls, held_nets(self.controlnets, self.progress))

    def held(self) -> Self:
        """Return the pipeline with the transformer's weights read that its steps use; freed with that pipeline."""
        cfg, p = self.flux
        return replace(self, flux=(cfg, for_steps(p, self.progress)))

    def _modulated(self, y: Array, guidance: Guidance) -> Modulated:
        """Return what modulates the transformer's blocks for prompts whose pooled text is y."""
        strength = guidance.embedded if self.built_in_guidance else None
        return Modulated(lambda p, vec: modulations(p, vec, self._compute), self.flux[1], y, strength, self.nx)


def is_unlike(text: Conditioning, negative: Conditioning) -> bool:
    """Return whether a negative prompt can't be in a batch with the prompt: of another length, or without its bias."""
    return negative.txt.shape != text.txt.shape or text.bias is not None


def both_signs(text: Conditioning) -> tuple[Array, Array]:
    """Return txt and y of the prompts, then of their negative prompt, in one batch (2 B, …)."""
    if text.negative is None:
        raise ArgumentError('conditioning has no negative prompt; encode(prompts, negative_prompt="") adds one')
    nx = backend_of(text.txt)
    txt = nx.concatenate([text.txt, text.negative.txt], axis=0)
    return txt, nx.concatenate([text.y, text.negative.y], axis=0)


def negative_apart(text: Conditioning, guidance: Guidance) -> Conditioning | None:
    """Return the negative prompt where guidance needs a pass of its own for it, None where both go in one batch."""
    negative = text.negative if guidance.needs_negative else None
    return negative if negative is not None and is_unlike(text, negative) else None


def reference_ids(like: Array, references: Sequence[Reference]) -> list[Array]:
    """Number the tokens of each reference, in its place."""
    sizes = [reference.latents.shape[1:3] for reference in references]
    return [image_ids(like, h, w, r.place) for (h, w), r in zip(sizes, references, strict=True)]
