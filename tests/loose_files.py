"""A small model as people have FLUX.1: a file for each part, and no folder. What no shape shows is as FLUX.1 has it.

Its heads are 128 wide and its vocabularies are as large as FLUX.1's, so that nothing but the files is needed.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.tree import flatten
from minflux.inference.beside import DEV_SCHEDULE, SCHNELL_SCHEDULE
from minflux.inference.flux1 import Flux1
from minflux.inference.load import DEV_DEFAULTS, SCHNELL_DEFAULTS, save_model
from minflux.inference.pipeline import Defaults
from minflux.model.clip import CLIP_L, CLIPConfig
from minflux.model.flux import SCHNELL
from minflux.model.t5 import T5_XXL, T5Config
from minflux.model.vae import FLUX_VAE
from tests.tiny_model import TOKENIZERS, pipeline, random_tree

FLUX = replace(
    SCHNELL, in_channels=16, out_channels=16, vec_in_dim=16, context_in_dim=24, hidden_size=128, num_heads=1, depth=1,
    depth_single_blocks=1,
)  # fmt: skip
VAE = replace(FLUX_VAE, ch=4, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4, norm_groups=4)
CLIP = CLIPConfig(CLIP_L.vocab_size, 16, 24, 2, 1, max_position_embeddings=24, eos_token_id=CLIP_L.vocab_size - 1)
T5 = T5Config(T5_XXL.vocab_size, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)

NAMES = {"transformer": "unet/flux1", "text_encoder": "clip/clip_l", "text_encoder_2": "clip/t5xxl", "vae": "vae/ae"}


def make(guidance: bool = False) -> Flux1:
    """Make the model, as FLUX.1-dev or as FLUX.1-schnell."""
    rng = np.random.default_rng(1)
    cfg = replace(FLUX, guidance_embed=guidance)
    usual: Defaults = DEV_DEFAULTS if guidance else SCHNELL_DEFAULTS
    return replace(
        pipeline(),
        flux=(cfg, random_tree(flux_shapes(cfg), rng)),
        vae=(VAE, random_tree(vae_shapes(VAE), rng)),
        clip=(CLIP, random_tree(clip_shapes(CLIP), rng)),
        t5=(T5, random_tree(t5_shapes(T5), rng)),
        schedule=DEV_SCHEDULE if guidance else SCHNELL_SCHEDULE,
        defaults=usual,
    )


def write_folder(folder: Path, guidance: bool = False) -> Path:
    """Write the model as a folder, with the small model's tokenizers."""
    save_model(make(guidance), folder)
    for name, source in TOKENIZERS.items():
        shutil.copytree(source, folder / name)
    return folder


def write_part(pipe: Flux1, name: str, path: Path) -> Path:
    """Write one part of a model into a file under its own names: BFL's, or Hugging Face's."""
    trees = {"transformer": pipe.flux, "vae": pipe.vae, "text_encoder": pipe.clip, "text_encoder_2": pipe.t5}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, COMPONENTS[name].own_naming.from_ours(flatten(trees[name][1])))
    return path


def write_files(folder: Path, guidance: bool = False) -> dict[str, Path]:
    """Write the model as ComfyUI lays it out; return its files by component."""
    pipe = make(guidance)
    return {name: write_part(pipe, name, folder / f"{where}.safetensors") for name, where in NAMES.items()}
