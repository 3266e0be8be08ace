"""A small random FLUX.1 Redux for the model of tests/tiny_model.py, as diffusers and transformers write it."""

from pathlib import Path

import torch
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from minflux.checkpoints.components.siglip import write_config
from minflux.model.siglip import SiglipConfig
from tests import tiny_model

SIGLIP = SiglipConfig(12, 20, 2, 3, image_size=17, patch_size=5)
TOKENS = 9


def make(folder: Path) -> Path:
    """Write Redux's three folders, and its index."""
    torch.manual_seed(5)
    parts = {
        "image_encoder": SiglipVisionModel(SiglipVisionConfig(**write_config(SIGLIP))),
        "image_embedder": ReduxImageEncoder(SIGLIP.hidden_size, tiny_model.T5.d_model),
    }
    for name, module in parts.items():
        for weight in module.parameters():
            weight.data = torch.randn(weight.shape) * weight[0].numel() ** -0.5
        module.save_pretrained(folder / name)
    size = {"height": SIGLIP.image_size, "width": SIGLIP.image_size}
    SiglipImageProcessorPil(size=size).save_pretrained(folder / "feature_extractor")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPriorReduxPipeline"}')
    return folder
