"""SigLIP's vision encoder and Redux against transformers' `SiglipVisionModel` and diffusers' `ReduxImageEncoder`."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from minflux.checkpoints.components.siglip import alias, write_config
from minflux.checkpoints.tree import tree
from minflux.images import Preprocessing
from minflux.model.redux import redux
from minflux.model.siglip import SO400M, siglip_encoder
from tests.compare import MODEL
from tests.strategies import batches, siglip_configs


@given(siglip_configs(), batches)
def test_siglip_encoder(trial, cfg, batch):
    config = SiglipVisionConfig(**write_config(cfg))
    config._attn_implementation = "eager"
    module = trial.random(SiglipVisionModel(config))
    p = tree({ours: w for name, w in trial.flat(module).items() if (ours := alias(name)) is not None})
    x = trial.randn(batch, 3, cfg.image_size, cfg.image_size)
    layers = []
    got = siglip_encoder(p, cfg, trial.array(x.permute(0, 2, 3, 1)), lambda name, seen: layers.append(name))
    trial.close("SigLIP vision encoder", got, module(x).last_hidden_state, MODEL)
    assert layers == [f"encoder.layers.{i}" for i in range(cfg.num_hidden_layers)]


def test_so400m_has_729_patches():
    assert SO400M.grid**2 == 729


@given(batches, st.integers(1, 9), st.integers(5, 20), st.integers(5, 20))
def test_redux(trial, batch, length, width, out):
    module = trial.random(ReduxImageEncoder(width, out))
    x = trial.randn(batch, length, width)
    trial.close("Redux", redux(trial.tree(module), trial.array(x)), module(x).image_embeds)


@pytest.mark.parametrize("size", [(40, 30), (384, 384), (7, 200), (500, 401)])
@pytest.mark.parametrize(("side", "resample"), [(384, 3), (17, 2)])
def test_an_image_is_prepared_as_by_transformers(size, side, resample):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    processor = SiglipImageProcessorPil(
        size={"height": side, "width": side}, image_mean=mean, image_std=std, resample=resample
    )
    expected = processor(image, return_tensors="pt")["pixel_values"].permute(0, 2, 3, 1).numpy()
    got = Preprocessing(side, side, mean, std, resample)(image)
    np.testing.assert_allclose(got, expected, atol=2e-6, strict=True)


def test_usually_it_is_what_siglip_takes():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8))
    theirs = SiglipImageProcessorPil(size={"height": 384, "width": 384})(image, return_tensors="pt")
    expected = theirs["pixel_values"].permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(Preprocessing(384, 384)(image)), expected, atol=2e-6, rtol=0)
