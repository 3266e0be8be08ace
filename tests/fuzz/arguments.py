"""Cases of Python arguments: every public function of `minflux` and of a pipeline, with values nobody should give."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

import minflux
from minflux.inference.flux1 import Flux1
from tests.fuzz.damage import CONTROL
from tests.fuzz.judge import Fault


class Hostile:
    """An object that raises whatever is asked of it, as a broken proxy would."""

    def __repr__(self) -> str:
        return "Hostile\x1b[2J\n"


def silent(*_: Any) -> None:
    """Listen to anything."""


NUMBERS = [
    0, 1, -1, 16, 32, 17, 10**9, -(10**9), 2**63, 2**64, 10**30, 10**400, 0.5, 16.0, 1e308, math.nan, math.inf,
    np.int64(16), np.float32(2), np.array(16), np.array([16]), np.uint8(16), 1 + 2j, 10**5000,
]  # fmt: skip
OTHERS = [None, True, False, b"x", [], {}, (), [[]], [None], set(), object(), Hostile(), silent, range(3), np.zeros(0)]
ARRAYS = [
    np.zeros((1, 4, 2, 2), np.float32), np.zeros((1, 2, 2, 4), np.float32), np.full((1, 4, 2, 2), np.nan),
    np.zeros((2, 2)), np.zeros((1, 4, 2, 2), object), np.zeros((16, 16, 3), np.uint8),
    np.zeros((0, 16, 16, 3), np.uint8),
    np.broadcast_to(np.float32(0), (1, 2**20, 2**20, 4)), np.broadcast_to(np.uint8(0), (2**20, 2**20, 3)),
    np.array("x"), np.array(["a", "b"]), np.zeros((1, 0, 0, 4), np.float32), np.zeros((1, 4, 2, 2), complex),
]  # fmt: skip
TEXTS = [
    "",
    "a cat",
    "euler",
    "heun",
    "numpy",
    "resident",
    "a " * 5000,
    "no/such",
    *CONTROL,
    *(f"a{c}b" for c in CONTROL),
]
ANY = st.sampled_from(NUMBERS) | st.sampled_from(OTHERS) | st.sampled_from(TEXTS) | st.sampled_from(ARRAYS)
LISTED = st.lists(ANY, max_size=3) | ANY
MANY = st.sampled_from([["a cat"] * 2, ["a cat"] * 3, ["a cat", 3], ("a", "b"), ["a cat"] * 100_000])


PICTURES = st.sampled_from(
    [
        *(Image.new(mode, (16, 16)) for mode in ("L", "1", "P", "RGBA", "I;16", "F", "CMYK")),
        Image.new("RGB", (1, 4000)),
        Image.new("RGB", (3, 1)),
    ]
)
PARTS = (
    "transformer", "text_encoder", "text_encoder_2", "vae", "tokenizer", "comfy", "redux", "image_encoder",
    "controlnet",
)  # fmt: skip
INPUTS = (
    "image", "mask", "mask_blur", "mask_crop", "paste", "strength", "control", "canny", "reference", "reference_layout",
    "image_prompt", "image_prompt_strength", "image_prompt_mix", "posterior", "control_scale",
    "control_start", "control_end", "control_mode",
)  # fmt: skip
EDITED = {"image": Image.new("RGB", (16, 16)), "source_prompt": "a cat", "prompt": "a dog"}
FLOWEDIT = ("source_guidance", "n_max", "n_min", "n_avg")


@dataclass(frozen=True)
class Call:
    """A call, and what its result must be."""

    name: str
    function: Callable[..., Any]
    given: dict[str, Any]
    check: Callable[[Any], object] = silent

    def __call__(self) -> None:
        self.check(self.function(**self.given))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={shown(value)}" for name, value in self.given.items())
        return f"{self.name}({given})"


def shown(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 9:
        return f"{value.dtype}{value.shape}"
    try:
        return f"{value!a}"[:60]
    except ValueError:  # more digits than Python writes
        return "a number of many digits"


def some_of(right: dict[str, Any], optional: dict[str, st.SearchStrategy]) -> st.SearchStrategy[dict[str, Any]]:
    """Right arguments with one to three others in their place."""
    names = st.lists(st.sampled_from(sorted(optional)), min_size=1, max_size=3, unique=True)
    return names.flatmap(lambda some: st.fixed_dictionaries({name: optional[name] for name in some})).map(
        lambda wrong: right | wrong
    )


def calls(pipe: Flux1, model: Path, lora: Path) -> st.SearchStrategy[Call]:
    """Calls of every public function."""
    text = pipe.encode("a cat", "")
    settings = dict.fromkeys(("seed", "steps", "guidance", "true_cfg_scale", "width", "height", "solver"), LISTED)
    listeners = {"on_block": ANY}
    image = {"prompt": LISTED | MANY, "negative_prompt": LISTED, "latents": LISTED, "on_step": ANY}
    inputs = dict.fromkeys(INPUTS, LISTED | PICTURES)
    editing = ("seed", "steps", "guidance", "width", "height", "source_prompt", "prompt", *FLOWEDIT)
    edited = dict.fromkeys(editing, LISTED) | {"image": LISTED | PICTURES, "on_step": ANY}
    paths = st.sampled_from([model, str(model), lora, "tiny\x00", "no/such/thing", "a" * 5000])
    opened = {"model": LISTED | paths, "backend": LISTED, "dtype": LISTED | st.sampled_from(["float32", "float16"]),
              "lora": LISTED | st.sampled_from([str(lora), [f"{lora}:2"], f"{lora}:nan", [lora], f"{lora}:1e400"]),
              "memory": LISTED | st.just("streamed"), "report": ANY, "cache": LISTED, "progress": ANY}  # fmt: skip
    opened |= dict.fromkeys(PARTS, LISTED | paths)
    step = {"width": 16, "height": 16, "steps": 1}
    sampled = {"conditioning": ANY | st.just(text), "start": LISTED, "timesteps": LISTED} | settings | listeners

    def kinds() -> dict[str, tuple[Callable[..., Any], dict, dict, Callable[[Any], object]]]:
        return {
            "pipe": (pipe, {"prompt": "a cat"} | step, image | settings | listeners | inputs, is_image),
            "edit": (pipe.edit, EDITED | step | {"n_max": 1}, edited, is_image),
            "load": (minflux.load, {"model": model, "backend": "numpy"}, opened, is_pipeline),
            "sample": (
                lambda **given: list(pipe.sample(**given)), {"conditioning": text} | step, sampled, is_steps,
            ),
            "encode": (
                pipe.encode, {"prompts": "a cat"},
                {"prompts": LISTED | MANY, "negative_prompt": LISTED, "guidance": ANY, "true_cfg_scale": ANY}, silent,
            ),
            "decode": (pipe.decode, {}, {"latents": LISTED}, is_pixels),
            "encode_image": (
                pipe.encode_image, {}, {"image": LISTED | st.sampled_from([Image.new(m, (16, 16)) for m in "L1P"])},
                silent,
            ),
        }  # fmt: skip

    return st.one_of(
        *(
            some_of(right, wrong).map(lambda given, name=name, f=f, check=check: Call(name, f, given, check))
            for name, (f, right, wrong, check) in kinds().items()
        )
    )


def is_image(result: Any) -> None:
    images = result if isinstance(result, list) else [result]
    if not images or not all(isinstance(image, Image.Image) for image in images):
        raise Fault(f"no image: {result!r}")


def is_pipeline(result: Any) -> None:
    is_image(result("a cat", width=16, height=16, steps=1))


def is_steps(result: Any) -> None:
    if not result or not np.isfinite(result[-1].x).all():
        raise Fault("no latents")


def is_pixels(result: Any) -> None:
    if result.dtype != np.uint8 or result.ndim != 4:
        raise Fault(f"no pixels: {result.dtype} {result.shape}")
