"""A complete model folder with random weights: small, quick to draw with, and open to diffusers too.

Everything is random, biases and norm scales as well, so that no weight can be left out unnoticed. Only the
tokenizers are real: those of minflux/zoo/tiny.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from minflux import zoo
from minflux.backend import get_backend
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.shapes import Shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.tree import tree
from minflux.inference.flux1 import Flux1
from minflux.inference.load import save_model
from minflux.inference.pipeline import Defaults
from minflux.inference.text import Tokenizer
from minflux.model.clip import CLIPConfig
from minflux.model.flux import FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.vae import VAEConfig
from minflux.sampling.timesteps import Schedule

TOKENIZERS = {name: zoo.FOLDER / "tiny" / name for name in ("tokenizer", "tokenizer_2")}
CLIP_TOKENS, T5_TOKENS = (Tokenizer.from_folder(folder).vocab_size for folder in TOKENIZERS.values())

FLUX = FluxConfig(
    in_channels=16, out_channels=16, vec_in_dim=16, context_in_dim=24, hidden_size=32, num_heads=2, depth=1,
    depth_single_blocks=2, axes_dim=(4, 6, 6), guidance_embed=False,
)  # fmt: skip
VAE = VAEConfig(
    ch=4, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4, norm_groups=2, scale_factor=0.7, shift_factor=0.1
)
CLIP = CLIPConfig(CLIP_TOKENS, 16, 24, 2, 2, max_position_embeddings=77, eos_token_id=CLIP_TOKENS - 1)
T5 = T5Config(T5_TOKENS, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
DEFAULTS = Defaults(width=64, height=64, steps=4, guidance=2.0, text_length=24)
DEV_SCHEDULE = Schedule(shift=3.0, use_dynamic_shifting=True)


def random_tree(shapes: Shapes, rng: np.random.Generator) -> dict:
    """Draw weights: matrices and kernels of 1/√inputs, biases near 0 and norm scales near 1."""
    return tree({name: random_weight(name, shape, rng) for name, shape in shapes.items()})


def random_weight(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    vector = len(shape) == 1
    centre = 1.0 if vector and name.endswith(("weight", "scale")) else 0.0
    spread = 0.3 if vector else np.prod(shape[1:]) ** -0.5
    return (centre + spread * rng.standard_normal(shape)).astype(np.float32)


def pipeline(guidance: bool = False, beside: int = 0, **sizes: int) -> Flux1:
    """Make the model; with `guidance` embedded and its steps shifted by the picture's size, as dev has it.

    beside: numbers of a token that it takes beside the latents': 16 as Canny and Depth, 16 + 256 as Fill. sizes: other
    ones of the transformer.
    """
    rng, nx = np.random.default_rng(0), get_backend("numpy")
    flux_cfg = replace(FLUX, guidance_embed=guidance, in_channels=FLUX.in_channels + beside, **sizes)
    clip_tokenizer, t5_tokenizer = (Tokenizer.from_folder(folder) for folder in TOKENIZERS.values())
    return Flux1(
        nx=nx,
        flux=(flux_cfg, random_tree(flux_shapes(flux_cfg), rng)),
        vae=(VAE, random_tree(vae_shapes(VAE), rng)),
        clip=(CLIP, random_tree(clip_shapes(CLIP), rng)),
        t5=(T5, random_tree(t5_shapes(T5), rng)),
        clip_tokenizer=clip_tokenizer,
        t5_tokenizer=t5_tokenizer,
        schedule=DEV_SCHEDULE if guidance else Schedule(),
        defaults=DEFAULTS,
    )


def make(folder: Path, guidance: bool = False, beside: int = 0, **sizes: int) -> Path:
    """Write the model into `folder`, in diffusers' layout."""
    save_model(pipeline(guidance, beside, **sizes), folder)
    for name, source in TOKENIZERS.items():
        shutil.copytree(source, folder / name)
    return folder
