"""Whose LoRA a file is, and every way in which FLUX.1's own name their modules."""

import re
from dataclasses import replace

import numpy as np
import pytest

from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.safetensors import contents, write_safetensors
from minflux.checkpoints.lora import add_loras, read_lora
from minflux.checkpoints.lora_families import widened_by
from minflux.errors import CheckpointError
from tests import tiny_model

CONFIGS = {"transformer": tiny_model.FLUX, "text_encoder": tiny_model.CLIP, "text_encoder_2": tiny_model.T5}
D = tiny_model.FLUX.hidden_size


def written(path, stem: str, columns: int = D, rows: int = D, down="lora_A.weight", up="lora_B.weight", more=()):
    """A LoRA of one pair, and of other arrays of one number."""
    rng = np.random.default_rng(rows + columns)
    pair = {
        f"{stem}{'' if down[0] == '_' else '.'}{role}": shape for role, shape in ((down, (2, columns)), (up, (rows, 2)))
    }
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in pair.items()}
    write_safetensors(path, arrays | {name: np.ones(1, np.float32) for name in more})
    return arrays


OTHERS = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": ("lora_unet", 768, "Stable Diffusion 1"),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": ("unet", 2048, "SDXL"),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": ("lora_unet", 1024, "Stable Diffusion 2"),
    "diffusion_model.joint_blocks.0.x_block.attn.qkv": ("mmdit", 1536, "Stable Diffusion 3"),
    "transformer.transformer_blocks.0.attn.to_q": ("sd3", 2432, "Stable Diffusion 3"),
    "transformer.transformer_blocks.0.img_mlp.net.0.proj": ("qwen", 3072, "Qwen-Image"),
    "transformer.transformer_blocks.59.attn.add_q_proj": ("qwen", 3072, "Qwen-Image"),
    "diffusion_model.blocks.0.self_attn.q": ("wan", 1536, "Wan"),
    "lora_unet_blocks_3_ffn_0": ("wan", 1536, "Wan"),
    "transformer.blocks.3.attn1.to_q": ("wan", 1536, "Wan"),
    "lora_unet_double_blocks_0_img_mlp_fc1": ("hunyuan", 3072, "HunyuanVideo"),
    "transformer.single_blocks.0.modulation.linear": ("hunyuan", 3072, "HunyuanVideo"),
    "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": ("flux2", 3072, "FLUX.2"),
    "transformer.transformer_blocks.0.attn1.to_q": ("ltx", 2048, "LTX-Video"),
    "diffusion_model.distilled_guidance_layer.layers.0.in_layer": ("chroma", 3072, "Chroma"),
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": ("te2", 1280, "SDXL or Stable Diffusion 3, which have"),
}


@pytest.mark.parametrize("stem", OTHERS)
def test_a_lora_of_another_model_is_called_that(tmp_path, stem):
    _, width, title = OTHERS[stem]
    written(tmp_path / "l.safetensors", stem, width)
    with pytest.raises(CheckpointError, match=re.escape(f"is a LoRA for {title}")):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


def test_the_part_of_an_sdxl_lora_that_fits_clip_is_not_added(tmp_path):
    """SDXL's first text encoder is FLUX.1's."""
    te = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"
    unet = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    written(tmp_path / "l.safetensors", unet, 640, more=[te, "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha"])
    with pytest.raises(CheckpointError, match=r"is a LoRA for SDXL; this model is FLUX\.1"):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


def test_a_wider_input_makes_a_control_lora(tmp_path):
    written(tmp_path / "l.safetensors", "transformer.x_embedder", 2 * tiny_model.FLUX.out_channels)
    wide = widened_by(contents(tmp_path / "l.safetensors"), tiny_model.FLUX)
    assert wide == replace(tiny_model.FLUX, in_channels=2 * tiny_model.FLUX.out_channels)
    assert widened_by(contents(tmp_path / "l.safetensors"), wide) == wide


def test_another_loras_width_is_of_no_account(tmp_path):
    written(tmp_path / "l.safetensors", "transformer.x_embedder", tiny_model.FLUX.in_channels)
    assert widened_by(contents(tmp_path / "l.safetensors"), tiny_model.FLUX) == tiny_model.FLUX


# -- FLUX.1's own --------------------------------------------------------------------------------------------

PROJ = "double_blocks.0.img_attn.proj"
CLIP_Q = "text_model.encoder.layers.0.self_attn.q_proj"
T5_Q = "encoder.block.0.layer.0.SelfAttention.q"
CLIP_NAMES = ["text_encoder.", "text_encoders.clip_l.transformer.", "text_encoder.base_model.model."]
T5_NAMES = ["text_encoder_2.", "text_encoders.t5xxl.transformer.", "text_encoders.transformer."]
SPELLINGS = {
    **{f"{prefix}{PROJ}": PROJ for prefix in ("", "diffusion_model.", "base_model.model.", "model.diffusion_model.")},
    **{
        f"{prefix}transformer_blocks.0.attn.to_out.0": PROJ
        for prefix in ("", "transformer.", "base_model.model.", "transformer.base_model.model.", "diffusion_model.")
    },
    **{
        f"{prefix}transformer_blocks_0_attn_to_out_0": PROJ
        for prefix in ("lora_transformer_", "lycoris_", "lora_unet_")
    },
    "lora_unet_double_blocks_0_img_attn_proj": PROJ,
    **{f"{prefix}{CLIP_Q}": CLIP_Q for prefix in CLIP_NAMES},
    **{f"{prefix}{CLIP_Q.replace('.', '_')}": CLIP_Q for prefix in ("lora_te_", "lora_te1_")},
    f"text_encoder.{CLIP_Q.removeprefix('text_model.')}": CLIP_Q,
    **{f"{prefix}{T5_Q}": T5_Q for prefix in T5_NAMES},
    **{f"{prefix}{T5_Q.replace('.', '_')}": T5_Q for prefix in ("lora_te2_", "lora_te3_")},
}
ROLES = [
    ("lora_A.weight", "lora_B.weight"), ("lora_A.default_0.weight", "lora_B.default_0.weight"), ("lora_A", "lora_B"),
    ("lora_down.weight", "lora_up.weight"), ("lora.down.weight", "lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"), ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
]  # fmt: skip


def size(stem: str) -> tuple[int, int]:
    component = {PROJ: "transformer", CLIP_Q: "text_encoder", T5_Q: "text_encoder_2"}[stem]
    rows, columns = COMPONENTS[component].shapes(CONFIGS[component])[f"{stem}.weight"]
    return rows, columns


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_every_spelling_of_a_module(tmp_path, spelled):
    rows, columns = size(SPELLINGS[spelled])
    written(tmp_path / "l.safetensors", spelled, columns, rows)
    (change,) = read_lora(tmp_path / "l.safetensors", CONFIGS)
    assert change.module.stem == SPELLINGS[spelled]


@pytest.mark.parametrize("roles", ROLES)
def test_every_spelling_of_a_pair(tmp_path, roles):
    down, up = written(tmp_path / "l.safetensors", PROJ, *size(PROJ), *roles).values()
    got = add_loras(
        {f"{PROJ}.weight": np.zeros(size(PROJ), np.float32)}, read_lora(tmp_path / "l.safetensors", CONFIGS)
    )
    np.testing.assert_allclose(got[f"{PROJ}.weight"], up @ down, rtol=1e-5, atol=1e-6)


def test_comfyui_s_part_of_a_single_block(tmp_path):
    """linear1_qkv: the first three parts of linear1, as ComfyUI's `model_lora_keys_unet` has it."""
    stem = "single_blocks.0.linear1"
    down, up = written(tmp_path / "l.safetensors", f"diffusion_model.{stem}_qkv", D, 3 * D).values()
    shape = (3 * D + int(D * tiny_model.FLUX.mlp_ratio), D)
    got = add_loras({f"{stem}.weight": np.zeros(shape, np.float32)}, read_lora(tmp_path / "l.safetensors", CONFIGS))
    np.testing.assert_allclose(got[f"{stem}.weight"][: 3 * D], up @ down, rtol=1e-5, atol=1e-6)
    assert not got[f"{stem}.weight"][3 * D :].any()
