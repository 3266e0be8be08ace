"""FLUX.2's side of the pipeline: prompts by a language model, the transformer's velocity, images by the VAE.

A prompt is put into the language model's chat template, and what the transformer reads are the states between its
layers. Reference images are tokens after the image's own, as in FLUX.1 Kontext. Sources: diffusers
`pipeline_flux2_klein.py` and `pipeline_flux2.py`; BFL `flux2/sampling.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from minflux.arrays import Array, Tree
from minflux.checkpoints.components import FLUX2, FLUX2_KLEIN
from minflux.checkpoints.components.decoder import decoder_shapes
from minflux.checkpoints.components.flux2 import flux2_shapes, flux2_vae_shapes
from minflux.checkpoints.formats.json_files import read_json
from minflux.checkpoints.lazy import for_steps
from minflux.checkpoints.open import INDEX
from minflux.edit.kontext import Place, Reference, Size
from minflux.errors import ArgumentError, check_choice
from minflux.inference.arguments import check_latents
from minflux.inference.chat import MISTRAL_CHAT, QWEN3_CHAT, ChatTokenizer
from minflux.inference.compiled import block_runner
from minflux.inference.flux1 import both_signs
from minflux.inference.hints import Trained
from minflux.inference.modulated import Modulated
from minflux.inference.neighbour import Neighbour, Traits
from minflux.inference.pipeline import Conditioning, Defaults, SamplingPlan, check_finite
from minflux.inference.settings import read_schedule
from minflux.inference.step_cache import StepCache
from minflux.inference.with_vae import VAEPipeline
from minflux.model.decoder import DecoderConfig, decoder_hidden_states
from minflux.model.flux import velocity
from minflux.model.flux2 import BLOCKS, REFERENCE_STEP, Flux2Config, condition, image_ids, modulations, text_ids
from minflux.model.hooks import OnBlock
from minflux.model.latents import pack, unpack
from minflux.model.rope import rope
from minflux.model.vae import Flux2VAEConfig
from minflux.sampling.guidance import Guidance, guided
from minflux.sampling.solvers import Velocity
from minflux.sampling.timesteps import Schedule, checked_mu

DISTILLED = Defaults(steps=4, guidance=1.0)  # klein
UNDISTILLED = Defaults(steps=50, guidance=4.0)  # klein's base, and dev, whose guidance is an input
LARGEST_REFERENCE = 1024 * 1024  # pixels
FEW, MANY = 10, 200  # steps for which the shift was fitted
LONG = 4300  # tokens above which it is the same for any number of steps

# -- steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flux2Schedule(Schedule):
    """Steps whose shift depends on their number too: the fewer there are, the more of them are near the noise."""

    def mu_of(self, steps: int, tokens: int) -> float:
        """Return the shift's logarithm: from a line over the tokens for 10 steps to one for 200, or beyond.

        Both lines were fitted by BFL. Source: BFL `flux2/sampling.py`; diffusers' `compute_empirical_mu`.
        """
        many = 0.00016927 * tokens + 0.45666666
        if tokens > LONG:
            return checked_mu(many, tokens)
        few = 8.73809524e-05 * tokens + 1.89833333
        return checked_mu(many + (many - few) / (MANY - FEW) * (steps - MANY), tokens)


# -- references ------------------------------------------------------------------------------------------------


def reference_pixels(image: Image.Image, unit: int) -> Image.Image:
    """Return a reference image as FLUX.2 sees it: of at most 1024² pixels, its edges cut to multiples of `unit`.

    Raises `ArgumentError` for one of which nothing is left.
    """
    if image.width * image.height > LARGEST_REFERENCE:
        scale = math.sqrt(LARGEST_REFERENCE / (image.width * image.height))
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    width, height = image.width // unit * unit, image.height // unit * unit
    if not width or not height:
        raise ArgumentError(f"reference: {image.width} × {image.height} pixels are too few: {unit} each way at least")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# -- the pipeline ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Flux2(VAEPipeline):
    """FLUX.2: the config and the weights of its three networks, and its tokenizer.

    Latents are (B, h, w, 32) here, as the VAE has them. diffusers' are patches of 2×2 of them, (B, 128, h/2, w/2), and
    so are the noise of a seed and the `latents` of a call.
    """

    flux: tuple[Flux2Config, Tree]
    vae: tuple[Flux2VAEConfig, Tree]
    decoder: tuple[DecoderConfig, Tree]
    tokenizer: ChatTokenizer

    @property
    def built_in_guidance(self) -> bool:
        """Whether the transformer takes its guidance as an input, as FLUX.2-dev's does and klein's not."""
        return self.flux[0].guidance_embed

    @property
    def takes_references(self) -> bool:
        """Whether it can look at reference images: every FLUX.2 can."""
        return True

    def count_numbers(self) -> int:
        """Count the numbers in the weights of all three networks, without reading any."""
        shapes = flux2_shapes(self.flux[0]), flux2_vae_shapes(self.vae[0]), decoder_shapes(self.decoder[0])
        return sum(math.prod(shape) for part in shapes for shape in part.values())

    # -- memory ------------------------------------------------------------------------------------------------

    def memory_of_images(self, count: int, width: int, height: int, guidance: Guidance) -> int:
        """Return about how many bytes the arrays of images take at a time in sampling, beside the weights.

        A single block holds most: of each token x, what linear1 makes of it (q, k, v, gates and values, 9 D), what the
        gates leave (3 D) and what goes into linear2 (4 D). Images in classifier-free guidance count twice.
        """
        tokens = width * height // (2 * self.downscale) ** 2 + self.defaults.text_length
        rows = count * (2 if guidance.needs_negative else 1)
        itemsize = 2 if self.nx.on_gpu else 4
        in_a_block = 17 * self.flux[0].hidden_size * itemsize * tokens * rows
        return max(in_a_block, self.memory_of_pixels(count, width, height))

    def memory_of_text(self, count: int) -> int:
        """Return about how many bytes the language model's arrays take of so many prompts: what a layer holds.

        Of each token x, q and what it hears, gates and values; and which tokens are seen from which.
        """
        cfg, length = self.decoder[0], self.defaults.text_length
        attended = 2 * cfg.num_attention_heads * cfg.head_dim
        of_token = 5 * cfg.hidden_size + attended + 3 * cfg.intermediate_size
        return 4 * count * length * (of_token + 2 * length)

    # -- text --------------------------------------------------------------------------------------------------

    def _tokens(self, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Turn prompts into the language model's token ids, and a mask: 1 for a token, 0 for padding."""
        return self.tokenizer(prompts, self.defaults.text_length)

    def _run_encoders(self, ids: np.ndarray, mask: np.ndarray) -> tuple[Array, Array]:
        """Run the language model on token ids: its states (B, T, E); of pooled text there is none, (B, 0)."""
        nx, (cfg, p) = self.nx, self.decoder
        states = decoder_hidden_states(p, cfg, nx.array(ids), nx.array(mask), cfg.state_layers, self._compute)
        nx.eval(states)
        check_finite(nx, "the language model", states)
        return states, nx.zeros((len(ids), 0), dtype=nx.float32)

    # -- references --------------------------------------------------------------------------------------------

    def _as_reference(self, image: Image.Image) -> Image.Image:
        """Return a reference image as FLUX.2 sees it (see `reference_pixels`)."""
        return reference_pixels(image, 2 * self.downscale)

    def _places_of(self, sizes: Sequence[Size], layout: str) -> list[Place]:
        """Return where the tokens of references begin: each a step further on the first axis, whatever their sizes."""
        check_choice("reference_layout", layout, ("offset",))
        return [(REFERENCE_STEP * number, 0, 0) for number in range(1, len(sizes) + 1)]

    # -- noise -------------------------------------------------------------------------------------------------

    def _noises(self, plan: SamplingPlan, count: int) -> list[Array]:
        """Draw each image's noises from its own seed, as diffusers does, for its patches: `count` of (B, h, w, C)."""
        _, *patches = self._patches(plan)
        return [self._of_patches(drawn) for drawn in self._drawn(plan.seeds, tuple(patches), count)]

    def _start_from(self, latents: Any, plan: SamplingPlan) -> Array:
        """Return patches that were given in diffusers' order of axes, as latents (B, h, w, C) float32."""
        order = "batch, channels of a patch, height, width"
        return self._of_patches(self._channels_last(check_latents("latents", latents, self._patches(plan), order)))

    def _patches(self, plan: SamplingPlan) -> tuple[int, int, int, int]:
        """Return the shape of latents as patches in diffusers' order of axes, (B, 4 C, h/2, w/2)."""
        count, channels, height, width = self._shape(plan)
        return count, 4 * channels, height // 2, width // 2

    def _of_patches(self, patches: Array) -> Array:
        """Put patches (B, h/2, w/2, 4 C) apart into latents (B, h, w, C)."""
        batch, rows, columns, numbers = patches.shape
        return unpack(patches.reshape(batch, rows * columns, numbers), 2 * rows, 2 * columns)

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

        The modulations of all `timesteps` are computed at once; at another t they are computed when v is called. With a
        `step_cache`, v is to be called once for each of `timesteps`. Raises `ArgumentError` for regions.
        """
        if text.bias is not None:
            raise ArgumentError("regions: FLUX.1 alone takes them, and this is another model")
        nx, cfg, is_guided = self.nx, self.flux[0], guidance.needs_negative
        txt, y = both_signs(text) if is_guided else (text.txt, text.y)
        references = [pack(nx.broadcast_to(r.latents, (len(txt), *r.latents.shape[1:]))) for r in text.references]
        pe = self._rotations(txt, size, text.references)  # the same in every step
        mod = self._modulated(y, guidance).ahead(timesteps)
        p = for_steps(self.flux[1], self.progress)
        listen = self._compute if on_block is None else self._computed_for(on_block)
        run_block = block_runner(nx)
        if step_cache is not None:
            run_block = step_cache.runner(run_block, cfg.depth + cfg.depth_single_blocks, len(timesteps))

        def v(x: Array, t: float) -> Array:
            tokens = pack(nx.concatenate([x, x], axis=0) if is_guided else x)
            count = tokens.shape[1]
            tokens = nx.concatenate([tokens, *references], axis=1)
            tokens = velocity(p, tokens, txt, mod(t), pe, listen, on_block is not None, run_block, blocks=BLOCKS)
            out = unpack(tokens[:, :count], *size)
            return guided(nx.as_float32(out), guidance.scale) if is_guided else out

        return v

    def held(self) -> Self:
        """Return the pipeline with the transformer's weights read that its steps use; freed with that pipeline."""
        cfg, p = self.flux
        return replace(self, flux=(cfg, for_steps(p, self.progress)))

    def _rotations(self, txt: Array, size: tuple[int, int], references: Sequence[Reference]) -> tuple[Array, Array]:
        """Return the rotations of text, image and references, in this order."""
        cfg = self.flux[0]
        ids = [text_ids(txt), image_ids(txt, *size)]
        for reference in references:
            _, height, width, _ = reference.latents.shape
            ids.append(image_ids(txt, height, width, reference.place[0]))
        return rope(self.nx.concatenate(ids, axis=1), cfg.axes_dim, cfg.theta)

    def _modulated(self, y: Array, guidance: Guidance) -> Modulated:
        """Return what modulates the transformer's blocks; of y, the pooled text, only how many prompts there are."""
        strength = guidance.embedded if self.built_in_guidance else None
        return Modulated(
            lambda p, vec: modulations(p, vec, self._compute), self.flux[1], y, strength, self.nx,
            vec_of=lambda p, t, _, strength: condition(p, t, strength),
        )  # fmt: skip


# -- the record ------------------------------------------------------------------------------------------------


def traits(folder: Path, cfg: Flux2Config) -> Traits:
    """Return what a FLUX.2 can be asked for: dev's guidance is an input, and klein's index says if it is distilled."""
    index = folder / INDEX
    is_distilled = index.exists() and read_json(index).get("is_distilled") is True
    return Traits(DISTILLED if is_distilled else UNDISTILLED, cfg.guidance_embed, takes_references=True)


def sizes(configs: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """List what of a FLUX.2's components must fit together."""
    cfg = configs["transformer"]
    return [
        ("a language model whose states together are of width", cfg.context_in_dim, configs["text_encoder"].text_width),
        ("a VAE of whose latents a patch has as many numbers as", cfg.in_channels, 4 * configs["vae"].z_channels),
        ("channels out of the transformer", cfg.in_channels, cfg.out_channels),
    ]


def make(parts: Mapping[str, tuple[Any, Tree]], tokenizers: Sequence[ChatTokenizer], **rest: Any) -> Flux2:
    """Put a FLUX.2 together of its networks, (config, weights) each, and its tokenizer; `rest` as for `Pipeline`."""
    (tokenizer,) = tokenizers
    return Flux2(
        flux=parts["transformer"], vae=parts["vae"], decoder=parts["text_encoder"], tokenizer=tokenizer,
        trained=Trained(references=True), **rest,
    )  # fmt: skip


KLEIN_MODEL = Neighbour(
    title="a FLUX.2 klein",
    family=FLUX2_KLEIN,
    tokenizers={"tokenizer": "text_encoder"},
    traits=traits,
    read_schedule=partial(read_schedule, kind=Flux2Schedule),
    sizes=sizes,
    make=make,
    read_tokenizer=partial(ChatTokenizer.from_folder, chat=QWEN3_CHAT),
)
DEV_MODEL = replace(
    KLEIN_MODEL, title="a FLUX.2", family=FLUX2, read_tokenizer=partial(ChatTokenizer.from_folder, chat=MISTRAL_CHAT)
)
