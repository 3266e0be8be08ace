"""The whole transformer against diffusers' `FluxTransformer2DModel`."""

import math

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.tree import tree
from minflux.model.flux import DEV, PRESETS, condition, flux, velocity
from minflux.model.latents import image_ids, pack, text_ids, unpack
from minflux.model.modulation import modulations
from minflux.model.rope import rope
from tests.compare import MODEL
from tests.strategies import batches, flux_configs, tokens

sides = st.integers(1, 5)


def oracle(trial, cfg):
    """diffusers' model of these sizes with random weights, and its weights as our tree."""
    module = trial.random(FluxTransformer2DModel.from_config(write_flux_config(cfg)))
    return module, tree(flux_to_bfl(trial.flat(module)))


def inputs(trial, cfg, batch, rows, cols, text_tokens):
    """img, txt, t and y of random numbers; t and the guidance stay float32."""
    img = trial.randn(batch, rows * cols, cfg.in_channels)
    txt = trial.randn(batch, text_tokens, cfg.context_in_dim)
    return img, txt, torch.rand(batch), trial.randn(batch, cfg.vec_in_dim)


@pytest.mark.parametrize("guided", [False, True])
@given(data=st.data(), batch=batches, rows=sides, cols=sides, text_tokens=tokens)
def test_flux(trial, guided, data, batch, rows, cols, text_tokens):
    cfg = data.draw(flux_configs(wide=True, guidance_embed=guided))
    module, p = oracle(trial, cfg)
    img, txt, t, y = inputs(trial, cfg, batch, rows, cols, text_tokens)
    guidance = 1 + 9 * torch.rand(batch) if guided else None
    img_ids, txt_ids = image_ids(trial.array(img), 2 * rows, 2 * cols), text_ids(trial.array(txt))
    ids = [trial.tensor(i)[0] for i in (img_ids, txt_ids)]

    expected = module(img, txt, y, t, *ids, guidance=guidance, return_dict=False)[0]
    got = flux(
        p, cfg, trial.array(img), img_ids, trial.array(txt), txt_ids, trial.array(t, "float32"),
        trial.array(y), None if guidance is None else trial.array(guidance, "float32"),
    )  # fmt: skip
    trial.close("FLUX transformer", got, expected, MODEL)


@pytest.mark.parametrize("hidden", [False, True])
@given(data=st.data(), batch=batches, rows=sides, cols=sides, text_tokens=tokens)
def test_a_bias_of_attention(trial, hidden, data, batch, rows, cols, text_tokens):
    """Random numbers, or -inf for all pairs of tokens but a few; scaled_dot_product_attention takes them as a mask."""
    cfg = data.draw(flux_configs(wide=True, guidance_embed=False))
    module, p = oracle(trial, cfg)
    img, txt, t, y = inputs(trial, cfg, batch, rows, cols, text_tokens)
    length = text_tokens + rows * cols
    bias = trial.randn(1, 1, length, length)
    if hidden:
        bias = torch.where((bias > 1) | torch.eye(length, dtype=bool), 0, -torch.inf)
    ids = image_ids(trial.array(img), 2 * rows, 2 * cols), text_ids(trial.array(txt))
    theirs = [trial.tensor(i)[0] for i in ids]
    expected = module(img, txt, y, t, *theirs, joint_attention_kwargs={"attention_mask": bias}, return_dict=False)[0]
    pe = rope(trial.nx.concatenate(ids[::-1], axis=1), cfg.axes_dim, cfg.theta)
    mod = modulations(p, condition(p, trial.array(t, "float32"), trial.array(y)))
    got = velocity(p, trial.array(img), trial.array(txt), mod, pe, bias=trial.array(bias))
    trial.close("FLUX transformer, attention with a bias", got, expected, MODEL)


@given(data=st.data(), batch=batches, guided=st.booleans())
def test_conditioning(trial, data, batch, guided):
    cfg = data.draw(flux_configs(wide=True, guidance_embed=guided))
    module, p = oracle(trial, cfg)
    t, y = torch.rand(batch), trial.randn(batch, cfg.vec_in_dim)
    guidance = (torch.rand(batch),) if guided else ()
    expected = module.time_text_embed(t * 1000, *(g * 1000 for g in guidance), y)
    got = condition(p, trial.array(t, "float32"), trial.array(y), *(trial.array(g, "float32") for g in guidance))
    trial.close("conditioning", got, expected)


@given(data=st.data(), rows=sides, cols=sides)
def test_a_batch_is_as_good_as_its_rows(trial, data, rows, cols):
    cfg = data.draw(flux_configs(wide=True, guidance_embed=False))
    _, p = oracle(trial, cfg)
    img, txt, t, y = inputs(trial, cfg, 3, rows, cols, 4)

    def run(rows_of_batch):
        a, b, c = (trial.array(x[rows_of_batch]) for x in (img, txt, y))
        ids = image_ids(a, 2 * rows, 2 * cols), text_ids(b)
        return flux(p, cfg, a, ids[0], b, ids[1], trial.array(t[rows_of_batch], "float32"), c)

    whole = trial.tensor(run(slice(0, 3)))
    for i in range(3):
        trial.check(run(slice(i, i + 1)), whole[i : i + 1], 1e-6)


@given(data=st.data())
def test_velocity_is_flux_after_its_conditioning(trial, data):
    cfg = data.draw(flux_configs(wide=True, guidance_embed=False))
    _, p = oracle(trial, cfg)
    img, txt, t, y = inputs(trial, cfg, 2, 2, 3, 4)
    img, txt, t, y = *map(trial.array, (img, txt)), trial.array(t, "float32"), trial.array(y)
    ids = image_ids(img, 4, 6), text_ids(txt)
    pe = rope(trial.nx.concatenate(ids[::-1], axis=1), cfg.axes_dim, cfg.theta)
    got = velocity(p, img, txt, modulations(p, condition(p, t, y)), pe)
    trial.check(got, trial.tensor(flux(p, cfg, img, ids[0], txt, ids[1], t, y)), 1e-6)


@pytest.mark.parametrize(("embedded", "given_one"), [(True, False), (False, True)])
def test_guidance_must_fit_the_model(nx, embedded, given_one):
    cfg = PRESETS["dev" if embedded else "schnell"]
    one = nx.array(np.ones(1, np.float32))
    tokens, ids = nx.array(np.ones((1, 1, 64), np.float32)), nx.array(np.zeros((1, 1, 3), np.int32))
    with pytest.raises(ValueError, match="guidance"):
        flux({}, cfg, tokens, ids, tokens, ids, one, tokens[0], one if given_one else None)


@given(batches, sides, sides, st.integers(1, 5))
def test_packing_as_diffusers_does_it(trial, batch, rows, cols, channels):
    from diffusers import FluxPipeline

    latents = trial.randn(batch, channels, 2 * rows, 2 * cols)
    expected = FluxPipeline._pack_latents(latents, batch, channels, 2 * rows, 2 * cols)
    ours = trial.array(latents.permute(0, 2, 3, 1).contiguous())
    got = pack(ours)
    trial.close("packing", got, expected, 0)
    trial.close("packing", unpack(got, 2 * rows, 2 * cols), latents.permute(0, 2, 3, 1), 0)
    expected_ids = FluxPipeline._prepare_latent_image_ids(batch, rows, cols, "cpu", torch.float32)
    for row in trial.nx.to_numpy(image_ids(got, 2 * rows, 2 * cols)):
        np.testing.assert_array_equal(row, expected_ids.numpy())
    assert not trial.nx.to_numpy(text_ids(got)).any()


def test_flux_dev_has_780_weights_of_11_9_billion_numbers():
    shapes = flux_shapes(DEV)
    assert len(shapes) == 780
    assert sum(map(math.prod, shapes.values())) == 11_901_408_320
