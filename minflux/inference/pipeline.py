"""From a prompt to a picture, the whole story on one page.

prompt -> ids -> txt (T5), y (CLIP) -> noise -> velocity, step by step -> latents -> picture
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from minflux.arrays import Array, Tree
from minflux.backend import Backend, get_backend
from minflux.checkpoints.lazy import for_steps
from minflux.checkpoints.tree import tree_map
from minflux.errors import ArgumentError
from minflux.images import to_uint8
from minflux.inference.cache import Cache
from minflux.inference.text import PromptTruncated, Tokenizer
from minflux.model.clip import CLIPConfig, clip_encoder
from minflux.model.flux import FluxConfig, condition, velocity
from minflux.model.latents import image_ids, pack, text_ids, unpack
from minflux.model.modulation import modulations
from minflux.model.rope import rope
from minflux.model.t5 import T5Config, t5_encoder
from minflux.model.vae import VAEConfig
from minflux.model.vae_bands import decode_any
from minflux.sampling.guidance import guided
from minflux.sampling.noise import check_seed, noise
from minflux.sampling.solvers import Step, euler
from minflux.sampling.timesteps import Schedule


@dataclass(frozen=True)
class Defaults:
    """What a model is drawn with unless told otherwise: pixels, steps, guidance and T5 tokens."""

    width: int = 1024
    height: int = 1024
    steps: int = 28
    guidance: float = 3.5
    text_length: int = 512


@dataclass(frozen=True)
class Conditioning:
    """What the text says, ready for the transformer: `txt` (B, T, E) from T5, `y` (B, P) from CLIP."""

    txt: Array
    y: Array


@dataclass(frozen=True)
class Pipeline:
    """A model ready to draw: configs and weight trees on one backend, tokenizers, and how it is sampled."""

    nx: Backend
    flux: tuple[FluxConfig, Tree]
    vae: tuple[VAEConfig, Tree]
    clip: tuple[CLIPConfig, Tree]
    t5: tuple[T5Config, Tree]
    clip_tokenizer: Tokenizer
    t5_tokenizer: Tokenizer
    schedule: Schedule
    defaults: Defaults
    name: str = ""
    lora: tuple[str, ...] = ()  # what was added to its weights
    cache: Cache | None = None  # of what its text encoders said

    # -- the whole way -----------------------------------------------------------------------------------------

    @overload
    def __call__(self, prompt: str, **settings: Any) -> Image.Image: ...

    @overload
    def __call__(self, prompt: list[str], **settings: Any) -> list[Image.Image]: ...

    def __call__(
        self, prompt: str | list[str], *, on_step: Callable[[Step], None] | None = None, **settings: Any
    ) -> Image.Image | list[Image.Image]:
        """Draw a picture of each prompt: a PIL image for a string, a list of them for a list.

        The settings are those of `generate`; on_step is called after each step.
        """
        x = None
        for item in self.generate(prompt, **settings):
            if isinstance(item, Step):
                x = item.x
                if on_step is not None:
                    on_step(item)
        images = [Image.fromarray(picture) for picture in self.decode(x)]
        return images[0] if isinstance(prompt, str) else images

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance: float | None = None,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        latents: np.ndarray | None = None,
        text: Conditioning | None = None,
    ) -> Iterator[Conditioning | Step]:
        """Return an iterator over the conditioning, then one `Step` after each denoising step.

        seed: one number, or one for each prompt; a single number n stands for n, n + 1, … Each picture depends on its
        own seed alone, not on the batch. guidance: the strength that dev-like models take as an input; for others the
        scale of classifier-free guidance away from `negative_prompt` ("" unless given), 1 for none. width, height: of
        the picture, in pixels. latents: the initial noise (B, C, height/8, width/8), as diffusers takes it, in place of
        the seed's. text: the conditioning that an iterator over the same prompts has given before, so as not to encode
        them again. What is not given is the model's default.

        A step's `x` and `predicted` are latents (B, h, w, C) of the pipeline's backend: `decode` shows either. Raises
        `ArgumentError` at once, before anything is computed, when an argument can't be drawn with.
        """
        prompts = check_prompts(prompt)
        width, height = self.check_size(width, height)
        steps = check_steps(self.defaults.steps if steps is None else steps)
        guidance = check_guidance(self.defaults.guidance if guidance is None else guidance)
        start = self.initial_latents(len(prompts), seed, height, width, latents)
        negative = self.negative_prompt(negative_prompt, guidance)
        rows, columns = start.shape[1:3]  # of latents
        times = self.schedule.times(steps, tokens=rows * columns // 4)
        wanted = prompts if negative is None else prompts + [negative] * len(prompts)
        if text is not None and len(text.txt) != len(wanted):
            raise ArgumentError(f"text must be of {len(wanted)} prompts, negative ones too, got {len(text.txt)}")

        def draw() -> Iterator[Conditioning | Step]:
            conditioning = self.encode(wanted) if text is None else text
            yield conditioning
            # the weights that are held for the steps are v's, and gone with it when the last step is done
            yield from euler(
                self.velocity(conditioning, guidance, negative is not None, rows, columns, times[:-1]), start, times
            )

        return draw()

    # -- text --------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts with both text encoders, each prompt once; or, with a `cache`, give what they said before."""
        distinct = list(dict.fromkeys(prompts))
        ids = self.tokens(distinct)
        txt, y = self.cache.recall(*ids, self.encoded) if self.cache else self.encoded(*ids)
        if len(distinct) < len(prompts):
            rows = self.nx.array(np.array([distinct.index(prompt) for prompt in prompts], np.int32))
            txt, y = txt[rows], y[rows]
        return Conditioning(txt, y)

    def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cut prompts into token ids, CLIP's and T5's."""
        with warnings.catch_warnings():  # of a long prompt CLIP reads the start alone, by design; T5 reads on
            warnings.simplefilter("ignore", PromptTruncated)
            clip_ids = self.clip_tokenizer(prompts, self.clip[0].max_position_embeddings)
        return clip_ids, self.t5_tokenizer(prompts, self.defaults.text_length)

    def encoded(self, clip_ids: np.ndarray, t5_ids: np.ndarray) -> tuple[Array, Array]:
        """Run both text encoders: txt (B, T, E) from T5, y (B, P) from CLIP."""
        clip_cfg, clip = self.clip
        t5_cfg, t5 = self.t5
        _, y = clip_encoder(clip, clip_cfg, self.nx.array(clip_ids), self.nx.eval)
        txt = t5_encoder(t5, t5_cfg, self.nx.array(t5_ids), self.nx.eval)
        self.nx.eval(txt, y)
        return txt, y

    def negative_prompt(self, given: str | None, guidance: float) -> str | None:
        """Return what guidance leads away from, or None where a single pass is enough."""
        if self.flux[0].guidance_embed:
            if given is not None:
                raise ArgumentError(
                    "negative_prompt: this model has its guidance built in and takes no negative prompt; leave it out"
                )
            return None
        if given is not None and not isinstance(given, str):
            raise ArgumentError(f"negative_prompt must be a string, got {type(given).__name__}")
        if guidance == 1.0:
            if given:
                raise ArgumentError("negative_prompt has no effect at guidance 1; raise guidance, or leave it out")
            return None
        return given or ""

    # -- latents -----------------------------------------------------------------------------------------------

    def initial_latents(self, count: int, seed: Any, height: int, width: int, given: np.ndarray | None) -> Array:
        """Draw each picture's noise from its own seed, or take what is given; (B, h, w, C) float32."""
        cfg, _ = self.vae
        shape = (cfg.z_channels, height // cfg.downscale, width // cfg.downscale)
        if given is None:
            nchw = np.stack([noise(s, (1, *shape))[0] for s in check_seeds(seed, count)])
        else:
            nchw = check_latents(given, (count, *shape))
        return self.nx.array(np.ascontiguousarray(nchw.transpose(0, 2, 3, 1)))

    def velocity(
        self, text: Conditioning, guidance: float, negative: bool, height: int, width: int, times: np.ndarray
    ) -> Callable[[Array, float], Array]:
        """Make v(x, t) on latents x (B, height, width, C), for every t in [0, 1], with text and guidance fixed.

        `negative` says that the second half of `text` is what guidance leads away from. What depends on t alone is
        computed here for all `times` at once; at another t it is computed when v is asked for it.
        """
        cfg, nx = self.flux[0], self.nx
        ids = nx.concatenate([text_ids(text.txt), image_ids(text.txt, height, width)], axis=1)
        pe = rope(ids, cfg.axes_dim, cfg.theta)  # the same in every step
        announced = self.modulations(text.y, guidance, times)
        p = for_steps(self.flux[1])

        def v(x: Array, t: float) -> Array:
            mod = announced.get(float(t)) or self.modulations(text.y, guidance, [t])[float(t)]
            tokens = pack(nx.concatenate([x, x], axis=0) if negative else x)
            out = unpack(velocity(p, tokens, text.txt, mod, pe, nx.eval), height, width)
            return guided(nx.as_float32(out), guidance) if negative else out

        return v

    def modulations(self, y: Array, guidance: float, times: Sequence[float] | np.ndarray) -> dict[float, Tree]:
        """Compute all modulations for every timestep in one pass; returns {t: modulations}."""
        cfg, p = self.flux
        nx, steps, rows = self.nx, len(times), len(y)
        strength = nx.array(np.full(steps * rows, guidance, np.float32)) if cfg.guidance_embed else None
        t = nx.array(np.repeat(np.asarray(times, np.float32), rows))
        vec = condition(p, t, nx.concatenate([y] * steps, axis=0), strength)  # (steps · B, D)
        every = modulations(p, vec, nx.eval)

        def at(step: int) -> Tree:
            return tree_map(lambda x: x[step * rows : (step + 1) * rows], every)

        return {float(t): at(step) for step, t in enumerate(times)}

    def decode(self, latents: Array) -> np.ndarray:
        """Decode latents (B, h, w, C) to pictures, uint8 (B, H, W, 3); large ones in bands, to save memory.

        Raises `ArgumentError` at NaN or infinity.
        """
        cfg, p = self.vae
        picture = self.nx.to_numpy(decode_any(p, cfg, latents.astype(p["decoder"]["conv_in"]["weight"].dtype)))
        if not np.isfinite(picture).all():
            raise ArgumentError(
                "latents: the picture came out as NaN or infinity; use finite latents, or float32 weights"
            )
        return to_uint8(picture)

    # -- sizes -------------------------------------------------------------------------------------------------

    def check_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Return the picture's size in pixels: both sides multiples of two latents (16 pixels for FLUX.1)."""
        width = self.defaults.width if width is None else width
        height = self.defaults.height if height is None else height
        unit = 2 * self.vae[0].downscale
        for name, side in (("width", width), ("height", height)):
            if not is_whole(side) or side < unit or side % unit:
                a_number = isinstance(side, Real) and math.isfinite(side)
                nearest = f"; the nearest is {max(unit, round(side / unit) * unit)}" if a_number else ""
                raise ArgumentError(f"{name} must be a multiple of {unit} pixels, got {side!r}{nearest}")
        return int(width), int(height)


def is_whole(x: Any) -> bool:
    """Tell whether `x` is a whole number, NumPy's included; True and False are none."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def check_prompts(prompt: Any) -> list[str]:
    """Return the prompts as a list of strings, at least one."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ArgumentError(f"prompt must be a string or a non-empty list of strings, got {prompt!r}")
    return prompts


def check_steps(steps: Any) -> int:
    """Return the number of steps, at least 1."""
    if not is_whole(steps) or steps < 1:
        raise ArgumentError(f"steps must be a whole number of at least 1, got {steps!r}")
    return int(steps)


def check_guidance(guidance: Any) -> float:
    """Return the guidance strength, a finite number of at least 0."""
    if isinstance(guidance, bool) or not isinstance(guidance, Real) or not 0 <= float(guidance) < math.inf:
        raise ArgumentError(f"guidance must be a number of at least 0, got {guidance!r}")
    return float(guidance)


def check_seeds(seed: Any, count: int) -> list[int]:
    """Return a seed for each of `count` pictures; a single number n stands for n, n + 1, …"""
    if not isinstance(seed, list | tuple):
        return [check_seed(seed) + i for i in range(count)]
    seeds = [check_seed(s) for s in seed]
    if len(seeds) != count:
        raise ArgumentError(f"seed: got {len(seeds)} seeds for {count} prompts; give one for each, or a single number")
    return seeds


def check_latents(latents: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the given initial noise as float32 NCHW, finite and of the picture's shape."""
    try:
        array = get_backend("numpy").array(latents).astype(np.float32)
    except (TypeError, ValueError):
        raise ArgumentError(f"latents must be an array of numbers, got {type(latents).__name__}") from None
    if array.shape != shape:
        raise ArgumentError(f"latents must have shape {shape} (batch, channels, height, width), got {array.shape}")
    if not np.isfinite(array).all():
        raise ArgumentError("latents must be finite numbers, got NaN or infinity")
    return array


# -- loading ---------------------------------------------------------------------------------------------------


def load(
    model: str | Path = "tiny",
    backend: str = "numpy",
    dtype: str | None = None,
    lora: str | Sequence[str] = (),
    memory: str = "auto",
    report: Callable[[str], None] | None = None,
    cache: str | Path | None = None,
) -> Pipeline:
    """Load a model by name ("tiny") or from a folder in diffusers' layout, onto "numpy", "mlx" or "auto".

    "auto" is MLX where it has a GPU and NumPy elsewhere. dtype: of the weights; unless given, "float32" on a CPU and
    the file's own on a GPU. lora: files of LoRAs to add, each "FILE" or "FILE:SCALE". memory: "resident", "staged",
    "streamed", or "auto" for the first of them that fits into what is free (see `inference/memory.py`); `report` is
    told which one that is and why, and without it a slow one is warned of. cache: a folder in which what the text
    encoders say is kept, so that for the same prompts they need not run again (see `inference/cache.py`). Raises
    `ArgumentError` for an unknown name, `CheckpointError` for a folder that is no model or a LoRA of another,
    `BackendError` for a backend that isn't installed.
    """
    from minflux.inference.load import load_model

    nx = get_backend(backend if backend != "auto" else best_backend())
    return load_model(model, nx, dtype, [lora] if isinstance(lora, str) else lora, memory, report, cache)


def best_backend() -> str:
    """Choose the faster backend here: MLX on a GPU, NumPy on a CPU (docs/log.md)."""
    import importlib.util

    if importlib.util.find_spec("mlx") is None:
        return "numpy"
    return "mlx" if get_backend("mlx").on_gpu else "numpy"
