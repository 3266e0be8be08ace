"""What is measured: each work's sizes, its inputs, drawn alike in every process, and its count of operations."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.bench import flops
from minflux.model.clip import CLIP_L
from minflux.model.flux import SCHNELL, FluxConfig
from minflux.model.t5 import T5_XXL
from minflux.model.vae import FLUX_VAE

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


def step(name: str, cfg: FluxConfig, text: int, rows: int, batch: int = 1) -> Work:
    """One step of the transformer on `rows`² image tokens."""
    title = (
        f"one transformer step: width {cfg.hidden_size}, {cfg.num_heads} heads, {cfg.depth} + {cfg.depth_single_blocks}"
        f" blocks, {text} text and {rows * rows} image tokens"
    )
    return Work(name, title, "transformer", {"transformer": cfg}, {"text": text, "rows": rows, "batch": batch})


def transformer_inputs(work: Work, rng: np.random.Generator) -> Inputs:
    """Tokens, pooled text and a time whose thousandfold bfloat16 holds exactly."""
    cfg, text, rows, batch = work.cfg, work.sizes["text"], work.sizes["rows"], work.sizes["batch"]
    return {
        "img": rng.standard_normal((batch, rows * rows, cfg.in_channels), np.float32),
        "txt": rng.standard_normal((batch, text, cfg.context_in_dim), np.float32),
        "y": rng.standard_normal((batch, cfg.vec_in_dim), np.float32),
        "timesteps": np.full(batch, 0.5, np.float32),
    }


# -- autoencoder and text encoders ---------------------------------------------------------------------------------


def decoding(side: int) -> Work:
    """FLUX.1's autoencoder, to a picture of `side` pixels."""
    return Work(f"VAE{side}", f"FLUX.1's autoencoder, latents to {side}×{side}", "vae", {"vae": FLUX_VAE}, {"side": side})


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


INPUTS: dict[str, Callable[[Work, np.random.Generator], Inputs]] = {
    "product": matrices,
    "transformer": transformer_inputs,
    "vae": latents,
    "text_encoder": text,
    "text_encoder_2": text,
}
FLOPS: dict[str, Callable[[Work], float]] = {
    "product": lambda work: flops.linear(*3 * (work.sizes["n"],)),
    "transformer": lambda work: flops.flux(
        work.cfg, work.sizes["text"], work.sizes["rows"] ** 2, work.sizes["batch"]
    ),
    "vae": lambda work: flops.vae_decode(work.cfg, *2 * (work.sizes["side"] // work.cfg.downscale,)),
    "text_encoder": lambda work: flops.clip(work.cfg, work.sizes["tokens"]),
    "text_encoder_2": lambda work: flops.t5(work.cfg, work.sizes["tokens"]),
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
        step("S", sized(256, 4, 2, 4), 32, 16),
        step("M", sized(1024, 8, 2, 4), 256, 32),
        step("L", sized(3072, 24, 1, 2), 256, 32),
        decoding(256),
        decoding(512),
        encoding("T5", "T5-XXL's encoder at full width, 2 of its 24 layers", "text_encoder_2", replace(T5_XXL, num_layers=2), 256),
        encoding("CLIP", "CLIP-L's text encoder", "text_encoder", CLIP_L, 77),
    ]
