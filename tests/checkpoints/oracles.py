"""The modules of diffusers and transformers that our components are held to, in small sizes."""

import pytest
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel
from transformers import T5Config as TheirT5Config

from minflux.checkpoints.components import COMPONENTS, UNET
from minflux.checkpoints.components import clip as clip_files
from minflux.checkpoints.components import flux as flux_files
from minflux.checkpoints.components import t5 as t5_files
from minflux.checkpoints.components import unet as unet_files
from minflux.checkpoints.components import vae as vae_files
from minflux.model.clip import CLIPConfig
from minflux.model.flux import FluxConfig
from minflux.model.t5 import T5Config
from minflux.model.unet import UNetConfig
from minflux.model.vae import VAEConfig

RECORDS = COMPONENTS | {UNET.name: UNET}
ORACLES = {
    "transformer": lambda cfg: FluxTransformer2DModel.from_config(flux_files.write_config(cfg)),
    "vae": lambda cfg: AutoencoderKL.from_config(vae_files.write_config(cfg)),
    "text_encoder": lambda cfg: CLIPTextModel(CLIPTextConfig(**clip_files.write_config(cfg))),
    "text_encoder_2": lambda cfg: T5EncoderModel(TheirT5Config(**t5_files.write_config(cfg))),
    "unet": lambda cfg: UNet2DConditionModel.from_config(unet_files.write_config(cfg)),
}

SMALL = FluxConfig(4, 4, 3, 5, 12, 4.0, 2, 1, 1, (2, 2, 2), guidance_embed=True)
SMALL_CONFIGS = {
    "transformer": SMALL,
    "vae": VAEConfig(ch=4, ch_mult=(1, 2), z_channels=2, norm_groups=2),
    "text_encoder": CLIPConfig(9, 4, 6, 2, 2, eos_token_id=8),
    "text_encoder_2": T5Config(9, 4, 3, 6, 2, 2),
    "unet": UNetConfig(3, 2, (4, 8), (False, True), 1, 2, 5, 2),
}

KINDS = pytest.mark.parametrize("kind", ORACLES)
