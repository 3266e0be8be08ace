"""Whose LoRA a file is: told by its names and shapes, so that an error can say it.

Some of these models share names and sizes with FLUX.1, or a text encoder: a part of their LoRA would fit, and the
picture would be wrong without a word.

Sources: diffusers' `loaders/lora_conversion_utils.py`, ComfyUI's `comfy/lora.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from minflux.checkpoints.formats.safetensors import Stored
from minflux.errors import CheckpointError
from minflux.model.flux import DEV, FluxConfig

# what a name of such a LoRA has in it, dots or underscores between its parts, and the model
FAMILIES = tuple(
    (re.compile(mark.replace("/", "[._]")), title)
    for mark, title in (
        (r"(^|/)transformer_blocks/\d+/attn1/", "LTX-Video"),
        (r"joint_blocks/\d|(^|/)transformer_blocks/\d+/attn2/", "Stable Diffusion 3"),
        (r"transformer_blocks/\d+/(img_mlp|txt_mlp|img_mod|txt_mod)/(net|1)", "Qwen-Image"),
        (r"(^|/)blocks/\d+/(self_attn|cross_attn|attn1|attn2|ffn)/", "Wan"),
        (r"double_blocks/\d+/(img|txt)_(mlp/fc[12]|mod/linear)|single_blocks/\d+/modulation/linear", "HunyuanVideo"),
        (r"individual_token_refiner|token_refiner/refiner_blocks", "HunyuanVideo"),
        (r"(single|double)_stream_modulation|to_qkv_mlp_proj|ff(_context)?/linear_(in|out)", "FLUX.2"),
        (r"distilled_guidance_layer", "Chroma"),
        (r"double_stream_blocks/\d|single_stream_blocks/\d", "HiDream"),
        (r"noise_refiner/\d|context_refiner/\d", "Z-Image or Lumina"),
        (r"joint_transformer_blocks/\d", "AuraFlow"),
        (r"lora_prior_(unet|te)_", "Stable Cascade"),
    )
)
UNET = re.compile(r"(down|up|input|output)_blocks[._]\d|(mid|middle)_block[._]")
CROSS_ATTENTION = re.compile(r"attn2[._]to_k.*(lora_A|lora_down|down)(\.\w+)?\.weight$|attn2[._]to_k.*hada_w1_b$")
UNETS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of their text
SECOND_CLIP = re.compile(r"lora_te2_text_model|text_encoder_2\.text_model|text_encoders\.clip_g\.")
DOUBLE_BLOCKS = 19  # of FLUX.1
DOUBLE_BLOCK = re.compile(r"(?<!single_)transformer_blocks[._](\d+)[._]attn[._]")
TO_Q = re.compile(r"attn[._]to_q\.(lora_A|lora_down)(\.\w+)?\.weight$")
WIDTHS = {1536: "Stable Diffusion 3", 2432: "Stable Diffusion 3"}

# adapters that are none of those we add, by what their names have in them
OTHERS = {
    "hada_t1": "LoHa of a convolution, in Tucker form", "lokr_t2": "LoKr of a convolution, in Tucker form",
    "lora_mid": "a LoRA of a convolution, in Tucker form", "oft_blocks": "OFT", "oft_diag": "OFT", "oft_R": "OFT",
    "boft_": "BOFT", ".a1.weight": "GLoRA", "ia3_l": "IA³", "on_input": "IA³", "vera_lambda": "VeRA",
    "lora_embedding_": "a LoRA of a table of embeddings", "modules_to_save": "a module trained whole",
    "set_weight": "a weight in place of ours",
    "reshape_weight": "ComfyUI's extract of a wider weight", "bundle_emb": "a trained word (textual inversion)",
}  # fmt: skip
IMAGE_IN = re.compile(r"(^|[._])(img_in|x_embedder)\.(lora_A|lora_down)(\.\w+)?\.weight$")


def check_kind(path: Path, found: Mapping[str, Stored], flux: FluxConfig = DEV) -> None:
    """Raise `CheckpointError` for a LoRA of another model than FLUX.1, and for other adapters.

    flux: the config of the transformer that it is for.
    """
    family = family_of(found, flux)
    if family:
        raise CheckpointError(f"{path}: is a LoRA for {family}; this model is FLUX.1")
    for key in found:
        for mark, kind in OTHERS.items():
            if mark in key:
                raise CheckpointError(f"{path}: {key}: is {kind}, an adapter of another kind; minflux can't add it")


def family_of(found: Mapping[str, Stored], flux: FluxConfig) -> str | None:
    """Return the model that a LoRA is for by its names, None if nothing speaks against FLUX.1."""
    if any(map(UNET.search, found)):
        return unet_of(found)
    for mark, title in FAMILIES:
        if any(map(mark.search, found)):
            return title
    if any(map(SECOND_CLIP.search, found)):
        return "SDXL or Stable Diffusion 3, which have a second CLIP"
    return by_size(found, flux)


def unet_of(found: Mapping[str, Stored]) -> str:
    """Return which Stable Diffusion with a U-Net a LoRA is for, by the width of its text."""
    for key, stored in found.items():
        if CROSS_ATTENTION.search(key) and len(stored.shape) > 1:
            return UNETS.get(stored.shape[1], "a Stable Diffusion with a U-Net")
    return "SDXL" if any(map(SECOND_CLIP.search, found)) else "Stable Diffusion 1, 2 or SDXL"


def by_size(found: Mapping[str, Stored], flux: FluxConfig) -> str | None:
    """Tell models whose names are FLUX.1's by the width of their double blocks, or by how many they are."""
    double = {key: match for key in found if (match := DOUBLE_BLOCK.search(key))}
    widths = {found[key].shape[-1] for key in double if TO_Q.search(key) and found[key].shape}
    title = next((WIDTHS[width] for width in widths - {flux.hidden_size} if width in WIDTHS), None)
    most = max(flux.depth, DOUBLE_BLOCKS)
    return title or ("Qwen-Image" if any(int(match[1]) >= most for match in double.values()) else None)


def widened_by(found: Mapping[str, Stored], flux: FluxConfig) -> FluxConfig:
    """Return the config of a transformer with a LoRA added: a control LoRA gives it a control image's input.

    BFL's Canny and Depth LoRAs are for FLUX.1-dev, whose first matrix they widen with what is 0 without them.
    """
    inputs = [stored.shape for key, stored in found.items() if IMAGE_IN.search(key)]
    is_plain, wide = flux.in_channels == flux.out_channels, 2 * flux.out_channels
    is_control = any(len(shape) == 2 and shape[1] == wide for shape in inputs)
    return replace(flux, in_channels=wide) if is_plain and is_control else flux
