"""The grid of `benchmarks/same_images.py`: which images are drawn, which models converted, which commands run.

Paths are relative to the folder of a checkout's own results: "4bit" is the model that this checkout has converted,
"../shared/dev" is one file for both.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

SHARED = "shared"
TINY = "tiny"
DEV, SCHNELL = f"../{SHARED}/dev", f"../{SHARED}/schnell"
MEMORY = ("resident", "staged", "streamed")
CAT = "a cat left of an apple on a blue background"
BEE = "a bee above a hat on a pink background"
LONG = "a large red mushroom on a green background " * 8
PEFT, KOHYA, TEXT = (f"../{SHARED}/{name}.safetensors" for name in ("peft", "kohya", "text"))


@dataclass(frozen=True)
class Case:
    """One image, or a batch: the model, the settings of `minflux.load`, the prompts, the settings of the call."""

    model: str
    load: dict[str, Any]
    prompt: str | list[str] = CAT
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the case in one line."""
        prompts = "" if isinstance(self.prompt, str) else f"{len(self.prompt)} prompts "
        whole = f"{self.model} {_listed(self.load)} | {prompts}{_listed(self.call)}"
        return whole.replace(f"../{SHARED}/", "").replace(".safetensors", "")


def _listed(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


# -- images ----------------------------------------------------------------------------------------------------

CALLS: list[tuple[str | list[str], dict[str, Any]]] = [
    (CAT, {"seed": 0, "steps": 1}),
    (CAT, {"seed": 7, "steps": 2}),
    (BEE, {"seed": 123456789, "steps": 5}),
    (CAT, {"seed": 3, "steps": 9}),
    ("", {"seed": 1, "steps": 2}),
    (LONG, {"seed": 1, "steps": 2}),
    (CAT, {"seed": 7, "steps": 3, "guidance": 1.0}),
    (CAT, {"seed": 7, "steps": 3, "guidance": 2.0}),
    (CAT, {"seed": 7, "steps": 3, "guidance": 3.5}),
    (CAT, {"seed": 7, "steps": 3, "guidance": 3.5, "negative_prompt": BEE}),
    (CAT, {"seed": 7, "steps": 3, "width": 96, "height": 48}),
    (CAT, {"seed": 7, "steps": 2, "width": 32, "height": 128, "guidance": 1.0}),
    ([CAT, BEE, CAT], {"seed": 7, "steps": 3}),
    ([CAT, BEE], {"seed": [5, 2], "steps": 3, "guidance": 3.5, "negative_prompt": "a hat", "width": 80, "height": 64}),
    ([CAT], {"seed": 7, "steps": 2, "guidance": 1.0}),
]
DEV_CALLS: list[tuple[str | list[str], dict[str, Any]]] = [
    (CAT, {"seed": 3}),
    (CAT, {"seed": 7, "steps": 3, "guidance": 1.0}),
    (CAT, {"seed": 7, "steps": 3, "guidance": 3.5}),
    (BEE, {"seed": 7, "steps": 3, "guidance": 3.5, "width": 112, "height": 48}),
    ([CAT, BEE, CAT], {"seed": 7, "steps": 2, "guidance": 2.0}),
    ([CAT, BEE], {"seed": [9, 4], "steps": 2, "width": 48, "height": 64}),
]
FEW = [
    (CAT, {"seed": 7, "steps": 3}),
    ([CAT, BEE], {"seed": 4, "steps": 2, "guidance": 3.5, "negative_prompt": "a hat"}),
]
ONE = FEW[:1]
LARGE = [(CAT, {"seed": 7, "steps": 1, "width": 576, "height": 528, "guidance": 1.0})]
LORAS = (
    [PEFT],
    [f"{PEFT}:-0.6"],
    [f"{KOHYA}:0.8"],
    [f"{PEFT}:0.5", f"{KOHYA}:1.3"],
    [f"{TEXT}:0.9"],
    [PEFT, f"{TEXT}:0.5", f"{KOHYA}:-0.25"],
)
QUANTISED = ("4bit", "8bit", "4bit-bf16", "8bit-lora")
CONVERTED = ("own", "diffusers-f16", "diffusers-bf16", "diffusers-lora", "bfl/flux.safetensors", "8bit-floats")


def cases(backend: str, quick: bool) -> list[Case]:
    """Return the images to draw on a backend."""
    return [
        Case(model, {"backend": backend, **load}, prompt, call)
        for model, loads, calls in (_quick if quick else _full)(backend)
        for load in loads
        for prompt, call in calls
    ]


def _in(memory: tuple[str, ...] = MEMORY, **load: Any) -> list[dict[str, Any]]:
    return [{"memory": mode, **load} for mode in memory]


def _quick(backend: str) -> list[tuple]:
    return [
        (TINY, _in(), FEW),
        (TINY, _in(("resident",), lora=LORAS[-1]), ONE),
        (DEV, _in(), DEV_CALLS[2:4]),
        ("4bit", _in(), ONE),
        ("4bit", _in(("streamed",), lora=LORAS[3]), ONE),
        (SCHNELL, _in(("resident",)), LARGE),
        *([(TINY, _in(dtype="bfloat16"), ONE)] if backend == "mlx" else []),
    ]


def _full(backend: str) -> list[tuple]:
    dtypes = ["bfloat16", "float16"] if backend == "mlx" else []
    return [
        (TINY, [{}, {"dtype": "float32"}], ONE),
        (TINY, _in(), CALLS),
        (SCHNELL, _in(), FEW),
        (DEV, _in(), DEV_CALLS),
        *((TINY, _in(lora=lora), FEW) for lora in LORAS),
        *((TINY, _in(dtype=dtype), FEW) for dtype in dtypes),
        *((DEV, _in(dtype=dtype), DEV_CALLS[2:5]) for dtype in dtypes),
        *((TINY, _in(dtype=dtype, lora=LORAS[-1]), ONE) for dtype in dtypes),
        *((model, _in(), FEW) for model in QUANTISED),
        *((model, _in(lora=lora), ONE) for model in QUANTISED[:3] for lora in (LORAS[1], LORAS[3], LORAS[5])),
        *(
            (model, _in(dtype=dtype, lora=lora), ONE)
            for model in QUANTISED
            for dtype in dtypes
            for lora in ([], LORAS[3])
        ),
        *((model, _in(), ONE) for model in CONVERTED),
        (CONVERTED[0], _in(lora=LORAS[-1]), ONE),
        (CONVERTED[4], _in(lora=LORAS[3]), ONE),
        (TINY, [{"cache": "kept"}, {"cache": "kept", "memory": "streamed"}], FEW),
        (TINY, _in(("resident",)), LARGE),
        (SCHNELL, _in(), LARGE),
        (SCHNELL, _in(("resident",)), [([CAT, BEE], {"seed": 2, "steps": 2, "width": 528, "height": 544})]),
        *((SCHNELL, _in(("resident",), dtype=dtype), LARGE) for dtype in dtypes),
    ]


# -- conversions -----------------------------------------------------------------------------------------------


def conversions(quick: bool) -> list[tuple[str, ...]]:
    """Return the arguments of each `minflux convert`: the source, the target, the options."""
    four = (TINY, "4bit", "--format", "minflux", "--quantize", "4")
    if quick:
        return [four, (TINY, "ae.safetensors", "--format", "bfl", "--part", "vae")]
    return [
        four,
        (TINY, "8bit", "--format", "minflux", "--quantize", "8"),
        (TINY, "4bit-bf16", "--format", "minflux", "--quantize", "4", "--dtype", "bf16"),
        (TINY, "8bit-lora", "--format", "minflux", "--quantize", "8", "--lora", f"{PEFT}:0.7", "--lora", TEXT),
        (TINY, "own", "--format", "minflux"),
        (TINY, "diffusers-f16", "--format", "diffusers", "--dtype", "f16"),
        (TINY, "diffusers-bf16", "--format", "diffusers", "--dtype", "bf16"),
        (TINY, "diffusers-lora", "--format", "diffusers", "--lora", KOHYA, "--lora", f"{PEFT}:0.5"),
        (TINY, "bfl/flux.safetensors", "--format", "bfl"),
        (TINY, "ae.safetensors", "--format", "bfl", "--part", "vae"),
        (TINY, "bf16.safetensors", "--format", "bfl", "--dtype", "bf16", "--lora", KOHYA),
        (TINY, "clip", "--format", "diffusers", "--part", "text_encoder"),
        ("8bit", "8bit-floats", "--format", "diffusers"),
        ("4bit", "4bit-bfl.safetensors", "--format", "bfl"),
        ("own", "own-back", "--format", "diffusers"),
        ("bfl/flux.safetensors", "from-bfl", "--format", "diffusers"),
        (DEV, "dev-own", "--format", "minflux"),
        (DEV, "dev.safetensors", "--format", "bfl"),
        (DEV, "dev-bf16", "--format", "diffusers", "--dtype", "bf16"),
    ]


# -- commands --------------------------------------------------------------------------------------------------


def commands(backend: str, quick: bool) -> list[tuple[str, ...]]:
    """Return the arguments of each `minflux generate`; "--from" draws the last one's file again, and OLD's."""
    plain = (CAT, "--seed", "7", "--steps", "3", "--backend", backend, "--out", "out/a.png")
    again = ("--from", "../old/out/a.png", "--out", "out/again.png")
    if quick:
        return [plain, again]
    lora = ("--lora", f"{PEFT}:0.7", "--lora", KOHYA)
    return [
        plain,
        again,
        (*plain, "--preview", "out/steps.png"),
        (*plain, "--preview", "out/steps.gif", "--size", "96x48", "--guidance", "3.5", "--negative-prompt", BEE),
        again,
        (*plain, *lora, "--memory", "staged"),
        again,
        (*plain, "--seed", "8", "--memory", "streamed", "--cache"),
        (*plain, "--cache"),
        (*plain, "--model", DEV, "--guidance", "2"),
        again,
        (*plain, "--model", "4bit"),
        (*plain, "--model", "bfl/flux.safetensors", *lora),
    ]


# -- LoRAs -----------------------------------------------------------------------------------------------------


def write_loras(model: Path, folder: Path) -> None:
    """Write three LoRAs of random numbers for the model in `model`: PEFT's names, kohya's, and both text encoders'."""
    rng = np.random.default_rng(5)
    transformer = matrices(model / "transformer")
    settings = {"transformer.lora_alpha": 6, "transformer.use_rslora": True}
    peft = _peft("transformer.", transformer, rng)
    save_file(peft, folder / "peft.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    save_file(_kohya(joint(transformer), rng), folder / "kohya.safetensors")
    clip, t5 = (matrices(model / name, "layer") for name in ("text_encoder", "text_encoder_2"))
    clip_of_them = {name: shape for name, shape in clip.items() if "layers" in name}
    t5_of_them = {name: shape for name, shape in t5.items() if "Attention" in name and "bias" not in name}
    text = _peft("text_encoder.", clip_of_them, rng) | _peft("text_encoder_2.", t5_of_them, rng)
    save_file(text, folder / "text.safetensors")


def matrices(folder: Path, within: str = "") -> dict[str, tuple[int, int]]:
    """Return the shapes of a component's matrices by their layer's name in the file."""
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "numpy") as held:
        shapes = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and within in name
    }


def joint(diffusers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Return some of BFL's joint matrices and their shapes, from diffusers'."""
    width = diffusers["transformer_blocks.0.attn.to_q"][1]
    mlp = diffusers["single_transformer_blocks.0.proj_mlp"][0]
    return {
        "double_blocks_0_img_attn_qkv": (3 * width, width),
        "double_blocks_1_txt_attn_qkv": (3 * width, width),
        "double_blocks_1_img_mod_lin": (6 * width, width),
        "double_blocks_0_txt_mlp_0": (mlp, width),
        "single_blocks_1_linear1": (3 * width + mlp, width),
        "single_blocks_2_linear2": (width, width + mlp),
        "single_blocks_3_modulation_lin": (3 * width, width),
    }


def _peft(prefix: str, shapes: dict[str, tuple[int, int]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    pairs: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        down, up = _pair(shape, 4, rng)
        pairs |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return pairs


def _kohya(shapes: dict[str, tuple[int, int]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    pairs: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        down, up = _pair(shape, 3, rng)
        pairs |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
        pairs[f"lora_unet_{name}.alpha"] = np.array(2.5, np.float32)
    return pairs


def _pair(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B whose product changes a matrix by about a tenth."""
    rows, columns = shape
    spread = 0.3 / np.sqrt(columns)
    return (
        (spread * rng.standard_normal((rank, columns))).astype(np.float32),
        (0.3 * rng.standard_normal((rows, rank))).astype(np.float32),
    )
