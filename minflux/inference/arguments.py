"""Checks of what a caller asks for, before anything is read or computed.

Each check returns its argument in the type that is computed with, or raises an `ArgumentError` that names the argument,
what it must be and what it is. None of them needs a model.
"""

import math
import os
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minflux.backend import get_backend
from minflux.backend.machine import free_memory, readable
from minflux.checkpoints.formats.dtypes import checked_cast
from minflux.errors import ArgumentError, check_choice, quoted
from minflux.inference.memory import check_mode
from minflux.sampling.guidance import Guidance
from minflux.sampling.noise import check_seed
from minflux.sampling.solvers import SOLVERS

TOKEN_SIDE = 16  # pixels along a side of a FLUX token: 8 a latent, 2 × 2 latents a token
LARGEST_SIDE = 1 << 16  # pixels; no machine has the memory for such an image
MOST_PROMPTS = 10_000  # of a call
LARGE = 1 << 24  # numbers; for fewer, the free memory isn't asked for
MOST_STEPS = 1000  # the timesteps that FLUX.1's training is counted in (diffusers' num_train_timesteps)


def is_integer(x: Any) -> bool:
    """Return whether `x` is an integer, NumPy's included; True and False are none."""
    return isinstance(x, Integral) and not isinstance(x, bool)


def is_finite(x: Any) -> bool:
    """Return whether `x` is a finite real number that a float can hold; True and False are none."""
    if not isinstance(x, Real) or isinstance(x, bool):
        return False
    try:
        return math.isfinite(x)
    except OverflowError:  # a larger integer than any float
        return False


# -- text ------------------------------------------------------------------------------------------------------


def check_prompts(prompt: Any) -> list[str]:
    """Return the prompts as a list of strings, at least one."""
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ArgumentError(f"prompt must be a string or a non-empty list of strings, got {quoted(prompt)}")
    if len(prompts) > MOST_PROMPTS:
        raise ArgumentError(f"prompt must be at most {MOST_PROMPTS} strings, got {len(prompts)}")
    return prompts


def check_negative_prompt(negative_prompt: Any) -> str | None:
    """Return the negative prompt, one string for all prompts, or None."""
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise ArgumentError(f"negative_prompt must be a string, got {type(negative_prompt).__name__}")
    return negative_prompt


# -- sampling --------------------------------------------------------------------------------------------------


def check_steps(steps: Any) -> int:
    """Return the number of steps, 1 to `MOST_STEPS`."""
    if not is_integer(steps) or steps < 1:
        raise ArgumentError(f"steps must be a whole number of at least 1, got {quoted(steps)}")
    if steps > MOST_STEPS:
        raise ArgumentError(f"steps must be at most {MOST_STEPS}, got {quoted(steps)}")
    return int(steps)


def check_seeds(seed: Any, count: int) -> list[int]:
    """Return a seed for each of `count` images; a single number n stands for n, n + 1, …"""
    if not isinstance(seed, list | tuple):
        return [check_seed(seed) + i for i in range(count)]
    seeds = [check_seed(s) for s in seed]
    if len(seeds) != count:
        raise ArgumentError(f"seed: got {len(seeds)} seeds for {count} prompts; give one for each, or a single number")
    return seeds


def check_strength(name: str, value: Any) -> float:
    """Return the strength of guidance called `name`, a finite number of at least 0."""
    if not is_finite(value) or value < 0:
        raise ArgumentError(f"{name} must be a number of at least 0, got {quoted(value)}")
    return float(value)


def one_for_each(name: str, given: Any, count: int, default: Any, check: Callable[[str, Any], Any]) -> tuple:
    """Return a checked value for each of `count` images: a single one is for all of them, and None is the default."""
    if not isinstance(given, list | tuple):
        given = [default if given is None else given] * count
    if len(given) != count:
        raise ArgumentError(f"{name}: got {len(given)} for {count} images; give one for each, or one for all")
    return tuple(check(name, one) for one in given)


def check_guidance(guidance: Any, true_cfg_scale: Any, default: float, built_in: bool) -> Guidance:
    """Return what `guidance` and `true_cfg_scale` mean for a model; None stands for `default`, and for no scale.

    built_in: whether the model takes its guidance as an input. Without that, both names mean the scale of
    classifier-free guidance. A scale of 0 is none, as 1 is: FLUX.1-schnell's own examples give guidance 0.
    """
    guidance = guidance if guidance is None else check_strength("guidance", guidance)
    scale = true_cfg_scale if true_cfg_scale is None else check_strength("true_cfg_scale", true_cfg_scale)
    if built_in:
        return Guidance(default if guidance is None else guidance, scale or 1.0)
    if guidance is not None and scale is not None:
        raise ArgumentError(
            "true_cfg_scale: this model has no built-in guidance, and guidance is its true_cfg_scale; give one of them"
        )
    scale = guidance if scale is None else scale
    return Guidance(None, (default if scale is None else scale) or 1.0)


def effective(negative_prompt: Any, guidance: Guidance) -> str | None:
    """Return the negative prompt that a call needs; raises `ArgumentError` for one that would have no effect."""
    negative = check_negative_prompt(negative_prompt)
    if guidance.needs_negative:
        return negative or ""
    if negative:
        raise ArgumentError(f"negative_prompt has no effect {without_effect(guidance)}, or leave it out")
    return None


def without_effect(guidance: Guidance) -> str:
    """Say why a negative prompt has no effect, and what would give it one."""
    if guidance.embedded is None:
        return "at guidance 1: raise guidance"
    return "at true_cfg_scale 1, for this model has its guidance built in: raise true_cfg_scale"


def check_part(name: str, value: Any) -> float:
    """Return a share of something, a number from 0 to 1."""
    if not is_finite(value) or not 0 <= value <= 1:
        raise ArgumentError(f"{name} must be a number from 0 to 1, got {quoted(value)}")
    return float(value)


def check_solver(solver: Any) -> str:
    """Return the name of a solver."""
    check_choice("solver", solver, SOLVERS)
    return solver


def check_timesteps(timesteps: Any) -> np.ndarray:
    """Return the timesteps as float32 (steps + 1,), which fall from at most 1 to at least 0."""
    array = _numbers("timesteps", timesteps)
    if array.size > MOST_STEPS + 1:
        raise ArgumentError(f"timesteps must be at most {MOST_STEPS + 1} numbers, got {array.size}")
    falling = array.ndim == 1 and len(array) > 1 and bool((np.diff(array) < 0).all())
    if not falling or array[0] > 1 or array[-1] < 0:
        raise ArgumentError(
            f"timesteps must be two or more numbers that fall from at most 1 to at least 0, got {quoted(array)}"
        )
    return array


# -- latents ---------------------------------------------------------------------------------------------------


def check_side(name: str, side: Any, unit: int = TOKEN_SIDE) -> int:
    """Return the width or height of an image in pixels, a multiple of `unit`, at most `LARGEST_SIDE`."""
    if is_integer(side) and side > LARGEST_SIDE:
        raise ArgumentError(f"{name} must be at most {LARGEST_SIDE} pixels, got {quoted(side)}")
    if is_integer(side) and side >= unit and side % unit == 0:
        return int(side)
    nearest = f"; the nearest is {max(unit, round(side / unit) * unit)}" if is_finite(side) else ""
    raise ArgumentError(f"{name} must be a multiple of {unit} pixels, got {quoted(side)}{nearest}")


def check_latents(name: str, latents: Any, shape: tuple[int | None, ...], order: str) -> np.ndarray:
    """Return latents as float32, finite and of the shape (…) whose axes `order` names; None is any size from 1 on."""
    array = _as_array(name, latents)
    pairs = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or not all(n == wanted or (wanted is None and n > 0) for n, wanted in pairs):
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        raise ArgumentError(f"{name} must have shape ({sizes}) ({order}), got {array.shape}")
    return _numbers(name, array)


def _numbers(name: str, given: Any) -> np.ndarray:
    """Return anything that an array of real numbers can be made of as finite float32."""
    array = _as_array(name, given)
    if array.size > LARGE:
        check_fits(f"{name} of {array.size:,} numbers", 4 * array.size)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ArgumentError(f"{name} must be finite numbers, got NaN or infinity")
    return array


def _as_array(name: str, given: Any) -> np.ndarray:
    """Return real numbers of any kind as an array of their own dtype."""
    try:
        array = get_backend("numpy").array(given)
    except (TypeError, ValueError, OverflowError, MemoryError):
        raise ArgumentError(f"{name} must be an array of numbers, got {type(given).__name__}") from None
    if array.dtype.kind not in "iuf":
        raise ArgumentError(f"{name} must be an array of real numbers, got {array.dtype}")
    return array


def check_fits(what: str, needed: int, free: int | None = None) -> None:
    """Raise `ArgumentError` when what is asked for needs more memory than is free, by default on this machine."""
    free = free_memory() if free is None else free
    if needed > free:
        raise ArgumentError(f"{what}: needs about {readable(needed)} of memory, and {readable(free)} are free")


def check_image(image: Any, unit: int = TOKEN_SIDE) -> np.ndarray:
    """Return an image, or images in uint8, as (B, H, W, 3), with both sides multiples of `unit` pixels."""
    array = _pixels(image)
    array = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or not len(array):
        raise ArgumentError(
            f"image must be a PIL image or uint8 (H, W, 3) or (B, H, W, 3), got {array.dtype} {array.shape}"
        )
    for name, side in zip(("height", "width"), array.shape[1:3], strict=True):
        check_side(f"image {name}", side, unit)
    return array


def _pixels(image: Any) -> np.ndarray:
    """Return a PIL image, or anything that an array can be made of, as an array."""
    image = _opaque(image) if isinstance(image, Image.Image) else image
    try:
        return np.asarray(image)
    except (TypeError, ValueError, MemoryError):
        raise ArgumentError(f"image must be a PIL image or an array, got {type(image).__name__}") from None


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image in RGB; raises `ArgumentError` for one with transparency, which has no one colour."""
    if "A" in image.getbands() or "transparency" in image.info:
        raise ArgumentError('image has transparent parts; lay it on a background, or give image.convert("RGB")')
    return image.convert("RGB")


# -- listeners, names and files ----------------------------------------------------------------------------------


def check_listener(name: str, function: Any) -> Any:
    """Return a function to call, or None."""
    if function is not None and not callable(function):
        raise ArgumentError(f"{name} must be a function, got {quoted(function)}")
    return function


def check_path(name: str, path: Any) -> Path:
    """Return a file's or a folder's path; raises `ArgumentError` for what can be the name of none."""
    try:
        if b"\0" not in os.fsencode(path) and not isinstance(path, bytes):
            return Path(path)
    except (TypeError, ValueError):  # of another type, or with half a character in it
        pass
    raise ArgumentError(f"{name} must be a path, got {quoted(path)}")


def check_paths(paths: dict[str, Any]) -> None:
    """Raise `ArgumentError` for what can be the name of no file or folder; None is where none is given."""
    for name, path in paths.items():
        if path is not None:
            check_path(name, path)


def check_loading(dtype: Any, lora: Any, memory: Any, report: Any, progress: Any) -> list[str]:
    """Check what `load` is given beside its backend and paths; return the LoRAs as a list of texts."""
    checked_cast(dtype)
    check_mode(memory)
    check_listener("report", report)
    check_listener("progress", progress)
    loras = [lora] if isinstance(lora, str | Path) else lora
    if not isinstance(loras, list | tuple):
        raise ArgumentError(f"lora must be a file's name or a list of names, got {quoted(lora)}")
    return [str(check_path("lora", each)) for each in loras]
