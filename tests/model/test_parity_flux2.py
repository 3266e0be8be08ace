"""FLUX.2's transformer against diffusers' `Flux2Transformer2DModel`."""

import math

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.flux2 import FLUX2_TRANSFORMER, flux2_shapes
from minflux.checkpoints.tree import tree
from minflux.model.flux2 import FLUX2_PRESETS, REFERENCE_STEP, double_block, flux2, image_ids, single_block, text_ids
from minflux.model.rope import rope
from tests.compare import MODEL
from tests.strategies import batches, flux2_configs, tokens

sides = st.integers(1, 5)


def oracle(trial, cfg):
    """diffusers' model of these sizes with random weights, and its weights as our tree."""
    module = trial.random(Flux2Transformer2DModel.from_config(FLUX2_TRANSFORMER.write_config(cfg)))
    return module, tree(FLUX2_TRANSFORMER.folder_naming.load(trial.flat(module), cfg))


@given(
    cfg=flux2_configs(), batch=batches, sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=3), words=tokens
)
def test_flux2(trial, cfg, batch, sizes, words):
    """With as many references as there are sizes after the first."""
    module, p = oracle(trial, cfg)
    count = sum(rows * columns for rows, columns in sizes)
    img, txt = trial.randn(batch, count, cfg.in_channels), trial.randn(batch, words, cfg.context_in_dim)
    places = [image_ids(trial.array(img), 2 * h, 2 * w, i * REFERENCE_STEP) for i, (h, w) in enumerate(sizes)]
    img_ids, txt_ids = trial.nx.concatenate(places, axis=1), text_ids(trial.array(txt))
    t, guidance = torch.rand(batch), torch.rand(batch) * 5 if cfg.guidance_embed else None
    ids = [trial.tensor(some).long() for some in (img_ids, txt_ids)]
    expected = module(img, txt, t, *ids, guidance, return_dict=False)[0]
    strength = None if guidance is None else trial.array(guidance, "float32")
    got = flux2(
        p, cfg, trial.array(img), img_ids, trial.array(txt), txt_ids, trial.array(t, "float32"), strength
    )  # fmt: skip
    trial.close("FLUX.2 transformer", got, expected, MODEL)


@given(cfg=flux2_configs(), batch=batches, image_tokens=tokens, words=tokens)
def test_the_double_block(trial, cfg, batch, image_tokens, words):
    module, p = oracle(trial, cfg)
    d = cfg.hidden_size
    img, txt = trial.randn(batch, image_tokens, d), trial.randn(batch, words, d)
    img_mod, txt_mod = trial.randn(batch, 6 * d, scale=0.3), trial.randn(batch, 6 * d, scale=0.3)
    ids = torch.randint(0, 30, (1, words + image_tokens, 4))
    theirs = module.transformer_blocks[0](img, txt, img_mod, txt_mod, module.pos_embed(ids[0]))
    mod = {"img": trial.array(img_mod), "txt": trial.array(txt_mod)}
    pe = rope(trial.array(ids), cfg.axes_dim, cfg.theta)
    ours = double_block(p["double_blocks"][0], trial.array(img), trial.array(txt), mod, pe)
    for got, expected in zip(ours, reversed(theirs), strict=True):
        trial.close("FLUX.2 double-stream block", got, expected)


@given(cfg=flux2_configs(), batch=batches, length=tokens)
def test_the_single_block(trial, cfg, batch, length):
    module, p = oracle(trial, cfg)
    x, mod = trial.randn(batch, length, cfg.hidden_size), trial.randn(batch, 3 * cfg.hidden_size, scale=0.3)
    ids = torch.randint(0, 30, (1, length, 4))
    expected = module.single_transformer_blocks[0](x, None, mod, module.pos_embed(ids[0]))
    pe = rope(trial.array(ids), cfg.axes_dim, cfg.theta)
    got = single_block(p["single_blocks"][0], trial.array(x), trial.array(mod), pe)
    trial.close("FLUX.2 single-stream block", got, expected)


def test_places_are_diffusers(nx):
    latents = [torch.zeros(1, 4, 3, 2), torch.zeros(1, 4, 2, 5)]
    like = nx.zeros((2, 7, 1))
    first = nx.to_numpy(image_ids(like, 6, 4))
    np.testing.assert_array_equal(first, Flux2KleinPipeline._prepare_latent_ids(latents[0].expand(2, -1, -1, -1)))
    rest = [nx.to_numpy(image_ids(like, 2 * z.shape[2], 2 * z.shape[3], 10 * i)) for i, z in enumerate(latents, 1)]
    expected = Flux2KleinPipeline._prepare_image_ids(latents).expand(2, -1, -1)
    np.testing.assert_array_equal(np.concatenate(rest, axis=1), expected)
    np.testing.assert_array_equal(
        nx.to_numpy(text_ids(like)), Flux2KleinPipeline._prepare_text_ids(torch.zeros(2, 7, 1))
    )


@given(data=st.data())
def test_on_block_sees_every_block_with_its_queries_and_keys(trial, data):
    cfg = data.draw(flux2_configs(guidance_embed=False))
    _, p = oracle(trial, cfg)
    img, txt = (trial.array(trial.randn(1, n, c)) for n, c in ((6, cfg.in_channels), (3, cfg.context_in_dim)))
    heard = {}
    flux2(
        p, cfg, img, image_ids(img, 4, 6), txt, text_ids(txt), trial.array(torch.rand(1), "float32"),
        on_block=heard.__setitem__, keep_qkv=True,
    )  # fmt: skip
    singles = [f"single_blocks.{i}" for i in range(cfg.depth_single_blocks)]
    assert list(heard) == [f"double_blocks.{i}" for i in range(cfg.depth)] + singles
    for seen in heard.values():
        assert seen["img"].shape == (1, 6, cfg.hidden_size)
        assert [seen[name].shape for name in "qkv"] == 3 * [(1, cfg.num_heads, 9, cfg.head_dim)]


@given(cfg=flux2_configs())
def test_a_guidance_that_the_model_does_not_take_is_refused(trial, cfg):
    _, p = oracle(trial, cfg)
    img, txt = (trial.array(trial.randn(1, 1, width)) for width in (cfg.in_channels, cfg.context_in_dim))
    t = trial.array(torch.rand(1), "float32")
    with pytest.raises(ValueError, match="guidance strength"):
        flux2(p, cfg, img, image_ids(img, 2, 2), txt, text_ids(txt), t, None if cfg.guidance_embed else t)


@pytest.mark.parametrize(("name", "billions"), [("klein 4B", 3.9), ("klein 9B", 9.1), ("dev", 32.2)])
def test_as_many_numbers_as_diffusers_has(name, billions):
    cfg = FLUX2_PRESETS[name]
    with torch.device("meta"):
        module = Flux2Transformer2DModel.from_config(FLUX2_TRANSFORMER.write_config(cfg))
    shapes = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    assert FLUX2_TRANSFORMER.file_shapes(FLUX2_TRANSFORMER.folder_naming, cfg) == shapes
    numbers = sum(map(math.prod, flux2_shapes(cfg).values()))
    assert numbers == sum(map(math.prod, shapes.values()))
    assert round(numbers / 1e9, 1) == billions
