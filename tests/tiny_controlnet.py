"""Small random ControlNets for the model of tests/tiny_model.py, as diffusers writes them: one of each family."""

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FluxControlNetModel

from minflux.checkpoints.components.controlnet import write_config
from minflux.model.controlnet import ControlNetConfig
from tests import tiny_model

INSTANTX = ControlNetConfig(
    **vars(tiny_model.FLUX) | {"depth": 2, "depth_single_blocks": 1, "guidance_embed": True, "out_channels": 64}
)
KINDS = {
    "instantx": INSTANTX,
    "union": replace(INSTANTX, modes=5),
    "union-pro-2": replace(INSTANTX, depth=3, depth_single_blocks=0),
    "xlabs": replace(INSTANTX, depth_single_blocks=0, hint_channels=4),
    "plain": replace(INSTANTX, depth=1, depth_single_blocks=2, guidance_embed=False),  # without guidance
}


def module_of(kind: str, seed: int = 7) -> FluxControlNetModel:
    """diffusers' ControlNet with random weights, projections too: they are zeros when training begins."""
    torch.manual_seed(seed)
    module = FluxControlNetModel.from_config(write_config(KINDS[kind]))
    for name, weight in module.named_parameters():
        spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3
        centre = 1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0
        weight.data = centre + spread * torch.randn(weight.shape)
    return module.eval()


def make(folder: Path, kind: str, seed: int = 7) -> Path:
    """Write a ControlNet's folder."""
    module_of(kind, seed).save_pretrained(folder)
    return folder
