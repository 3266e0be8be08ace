"""What is measured: each work's sizes, its inputs, drawn alike in every process, and its count of operations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.laptop import bytes_of
from minflux import zoo
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.open import open_component
from minflux.inference.text import Tokenizer
from minflux.model import flops
from minflux.model.clip import CLIP_L
from minflux.model.flux import SCHNELL, TINY, FluxConfig
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE
from minflux.train.flow import CLIP_TOKENIZER, T5_TOKENIZER, configs_of
from minflux.train.optimizer import AdamW
from minflux.train.recipe import Training, optimizer, part, read_recipe, section, stages, workers

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """One thing to compute. `parts` are the models it needs, by their folders' names; `sizes` shape its inputs."""

    name: str
    title: str
    kind: str  # which entry of contenders' tables computes it
    parts: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def cfg(self) -> Any:
        """The config of its only part."""
        (cfg,) = self.parts.values()
        return cfg

    @property
    def flops(self) -> float:
        """Floating-point operations, 0 where they are not counted."""
        return FLOPS[self.kind](self) if self.kind in FLOPS else 0

    def inputs(self) -> Inputs:
        """Draw the inputs, the same in every process."""
        return INPUTS[self.kind](self, np.random.default_rng(0))


# -- products ----------------------------------------------------------------------------------------------------


def product(size: int) -> Work:
    """A product of two square matrices: what the machine can reach."""
    return Work("product", f"a product of two matrices of {size}×{size}", "product", sizes={"n": size})


def matrices(work: Work, rng: np.random.Generator) -> Inputs:
    """Two matrices, the second one scaled to keep the size of numbers."""
    n = work.sizes["n"]
    a, b = (rng.standard_normal((n, n), np.float32) for _ in "ab")
    return {"a": a, "b": b / np.float32(n**0.5)}


# -- the transformer ---------------------------------------------------------------------------------------------


def step(name: str, cfg: FluxConfig, text: int, image: int, batch: int = 1) -> Work:
    """One step of the transformer on so many text and image tokens."""
    title = (
        f"one transformer step: width {cfg.hidden_size}, {cfg.num_heads} heads, {cfg.depth} + {cfg.depth_single_blocks}"
        f" blocks, {text} text and {image} image tokens" + (f", {batch} at once" if batch > 1 else "")
    )
    return Work(name, title, "transformer", {"transformer": cfg}, {"text": text, "image": image, "batch": batch})


def transformer_inputs(work: Work, rng: np.random.Generator) -> Inputs:
    """Tokens, pooled text and a time whose thousandfold bfloat16 holds exactly."""
    cfg, text, image, batch = work.cfg, *(work.sizes[name] for name in ("text", "image", "batch"))
    return {
        "img": rng.standard_normal((batch, image, cfg.in_channels), np.float32),
        "txt": rng.standard_normal((batch, text, cfg.context_in_dim), np.float32),
        "y": rng.standard_normal((batch, cfg.vec_in_dim), np.float32),
        "timesteps": np.full(batch, 0.5, np.float32),
    }


def latent_sides(work: Work) -> tuple[int, int]:
    """Give the latents' height and width: a square of tokens, or two of them side by side; 2×2 latents a token.

    >>> latent_sides(Work("", "", "", sizes={"image": 512}))
    (32, 64)
    """
    rows = math.isqrt(work.sizes["image"])
    rows = rows if rows * rows == work.sizes["image"] else math.isqrt(work.sizes["image"] // 2)
    return 2 * rows, 2 * (work.sizes["image"] // rows)


# -- autoencoder and text encoders ---------------------------------------------------------------------------------


def decoding(side: int) -> Work:
    """FLUX.1's VAE, to an image of `side` pixels."""
    return Work(f"VAE{side}", f"FLUX.1's VAE, latents to {side}×{side}", "vae", {"vae": FLUX_VAE}, {"side": side})


def latents(work: Work, rng: np.random.Generator) -> Inputs:
    """Latents (1, side/8, side/8, 16)."""
    side = work.sizes["side"] // work.cfg.downscale
    return {"latents": rng.standard_normal((1, side, side, work.cfg.z_channels), np.float32)}


def encoding(name: str, title: str, part: str, cfg: Any, tokens: int) -> Work:
    """A text encoder."""
    return Work(name, f"{title}, {tokens} tokens", part, {part: cfg}, {"tokens": tokens})


def text(work: Work, rng: np.random.Generator) -> Inputs:
    """Token ids (1, T); the last is the end of the text for CLIP."""
    ids = rng.integers(3, 1000, (1, work.sizes["tokens"]), np.int32)
    ids[:, -1] = getattr(work.cfg, "eos_token_id", 1)
    return {"ids": ids}


# -- the small model ---------------------------------------------------------------------------------------------

IMAGE_TOKENS = 64  # of 128×128 pixels
STEPS_COMPARED = 3  # of training: their losses are the result, so that a wrong update is seen
PROMPT = "a cat left of an apple on a blue background"


@dataclass(frozen=True)
class Recipe:
    """What a training step depends on."""

    optimizer: AdamW
    steps: int
    batch: int
    workers: int
    configs: tuple[Any, ...]
    text_length: int


def of_training(name: str = "tiny") -> Recipe:
    """Read the small model's recipe: the last stage of its flow, with AdamW alone, for PyTorch's peer has no Muon."""
    recipe = read_recipe(name)
    stage = f"flow.{stages(recipe, 'flow')[-1]}"
    how = section(Training, part(recipe, f"{stage}.training"))
    tokens = [Tokenizer.from_folder(zoo.FOLDER / "tiny" / name) for name in (CLIP_TOKENIZER, T5_TOKENIZER)]
    length, _ = part(recipe, f"{stage}.mixture")["text"][0]
    opt = replace(optimizer(part(recipe, f"{stage}.optimizer")), muon=0.0)
    return Recipe(opt, how.steps, how.batch, workers(recipe, "flow"), configs_of(recipe, *tokens), length)


def training() -> Work:
    """One step of training the small model, all workers together."""
    how = of_training()
    parts = dict(zip(("transformer", "text_encoder", "text_encoder_2"), how.configs, strict=True))
    samples = f"{how.batch} samples of {IMAGE_TOKENS} image and {how.text_length} text tokens"
    title = f"one training step of the small model, by AdamW: {samples}"
    return Work("train", title, "train", parts, {"text": how.text_length, "image": IMAGE_TOKENS, "batch": how.batch})


def training_inputs(work: Work, rng: np.random.Generator) -> Inputs:
    """A batch, as `flow_loss` takes it: without the losses of grounding beside it, which PyTorch's peer has not."""
    flux_cfg, clip_cfg, t5_cfg = work.parts.values()
    batch, side = work.sizes["batch"], latent_sides(work)
    x0, noise = (rng.standard_normal((batch, *side, flux_cfg.in_channels // 4), np.float32) for _ in "ab")
    clip_ids = rng.integers(0, clip_cfg.eos_token_id, (batch, clip_cfg.max_position_embeddings), np.int32)
    clip_ids[:, -1] = clip_cfg.eos_token_id
    t5_ids = rng.integers(0, t5_cfg.vocab_size, (batch, work.sizes["text"]), np.int32)
    return {"x0": x0, "noise": noise, "t": rng.random(batch, np.float32), "clip_ids": clip_ids, "t5_ids": t5_ids}


def generating(steps: int = 20) -> Work:
    """The whole command, from the start of the process to the PNG."""
    parts = {kind: open_component(zoo.FOLDER / "tiny", kind).config for kind in COMPONENTS}
    title = f"minflux generate of the small model, {steps} steps, from the start of the process to the PNG"
    return Work("generate", title, "generate", parts, {"text": 64, "image": IMAGE_TOKENS, "batch": 2, "steps": steps})


def importing() -> Work:
    """A new process that imports the library, and ends."""
    return Work("import", "a new process with `import minflux`, or diffusers' FluxPipeline, and no more", "import")


# -- tables ------------------------------------------------------------------------------------------------------


def work_of_text(work: Work) -> float:
    """Count both text encoders on a batch."""
    clip_cfg, t5_cfg, sizes = work.parts["text_encoder"], work.parts["text_encoder_2"], work.sizes
    once = flops.clip(clip_cfg, clip_cfg.max_position_embeddings) + flops.t5(t5_cfg, sizes["text"])
    return sizes["batch"] * once


def work_of_step(work: Work) -> float:
    """Count one step of the transformer on a batch."""
    sizes = work.sizes
    return flops.flux(work.parts["transformer"], sizes["text"], sizes["image"], sizes["batch"])


def work_of_training(work: Work) -> float:
    """Count forward and backward: each product has two gradients of its own size."""
    return 3 * (work_of_step(work) + work_of_text(work))


def work_of_generating(work: Work) -> float:
    """Count the text, with and without the prompt, each step twice likewise, and the autoencoder."""
    steps = work.sizes["steps"] * work_of_step(work)
    return work_of_text(work) + steps + flops.vae_decode(work.parts["vae"], *latent_sides(work))


INPUTS: dict[str, Callable[[Work, np.random.Generator], Inputs]] = {
    "product": matrices,
    "transformer": transformer_inputs,
    "vae": latents,
    "text_encoder": text,
    "text_encoder_2": text,
    "train": training_inputs,
}
FLOPS: dict[str, Callable[[Work], float]] = {
    "product": lambda work: flops.linear(*3 * (work.sizes["n"],)),
    "transformer": work_of_step,
    "vae": lambda work: flops.vae_decode(work.cfg, *2 * (work.sizes["side"] // work.cfg.downscale,)),
    "text_encoder": lambda work: flops.clip(work.cfg, work.sizes["tokens"]),
    "text_encoder_2": lambda work: flops.t5(work.cfg, work.sizes["tokens"]),
    "train": work_of_training,
    "generate": work_of_generating,
}


def sized(width: int, heads: int, depth: int, single: int) -> FluxConfig:
    """FLUX.1-schnell's transformer, narrower or shallower; RoPE's three axes share a head as 1 : 3.5 : 3.5."""
    head = width // heads
    return replace(
        SCHNELL, hidden_size=width, num_heads=heads, depth=depth, depth_single_blocks=single,
        axes_dim=(head // 8, head // 16 * 7, head // 16 * 7),
    )  # fmt: skip


def on_cpu() -> list[Work]:
    """What is measured on a CPU."""
    return [
        product(2048),
        step("S", sized(256, 4, 2, 4), 32, 256),
        step("M", sized(1024, 8, 2, 4), 256, 1024),
        step("L", sized(3072, 24, 1, 2), 256, 1024),
        step("tiny", TINY, 64, IMAGE_TOKENS, batch=2),
        decoding(256),
        decoding(512),
        *text_encoders(),
        training(),
        generating(),
        importing(),
    ]


def on_gpu(room: float) -> list[Work]:
    """What is measured on a GPU, where each contender has `room` bytes for its weights."""
    return [product(8192), step("1024²", deepest(room), 512, 4096), decoding(1024), *text_encoders()]


def deepest(room: float) -> FluxConfig:
    """FLUX.1-schnell with as many blocks as fit into `room` bytes in bfloat16, one double to two single ones.

    One and two there are at least, as at L.
    """
    one, two = (replace(SCHNELL, depth=n, depth_single_blocks=2 * n) for n in (1, 2))
    first, both = bytes_of("transformer", one), bytes_of("transformer", two)
    depth = max(1, min(SCHNELL.depth, 1 + int((room - first) // (both - first))))
    return replace(SCHNELL, depth=depth, depth_single_blocks=2 * depth)


def text_encoders() -> list[Work]:
    """Both of them; of T5 so many layers as need not be much larger than all else."""
    two_layers = replace(T5_XXL, num_layers=2)
    return [
        encoding("T5", "T5-XXL's encoder at full width, 2 of its 24 layers", "text_encoder_2", two_layers, 256),
        encoding("CLIP", "CLIP-L's text encoder", "text_encoder", CLIP_L, 77),
    ]
