"""Regional prompts: diffusers with the same attention mask, and what a region's prompt does and does not reach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

import minflux
from minflux.edit.controlnet import Control
from minflux.edit.kontext import Reference
from minflux.errors import ArgumentError
from minflux.inference.load import load
from minflux.inference.regions import region_bias, regional
from minflux.sampling.guidance import Guidance
from tests import compare
from tests.conftest import CHOSEN
from tests.shipped import needs_weights

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
PROMPTS = ["a cat", "an apple", "a blue background"]
ROWS, COLUMNS = 3, 5  # of image tokens


@pytest.fixture(scope="module")
def regions() -> np.ndarray:
    """Three regions that overlap: all of the image, its left part, and tokens here and there."""
    found = np.random.default_rng(0).random((3, ROWS, COLUMNS)) < 0.4
    found[0], found[1] = True, np.arange(COLUMNS) < 2
    return found


def hears(i: int, j: int, regions: np.ndarray, lengths: list[int]) -> bool:
    """Whether token i may hear token j, written out for one pair of tokens."""
    owners = [number for number, length in enumerate(lengths) for _ in range(length)]
    if i < len(owners) and j < len(owners):
        return owners[i] == owners[j]
    if i >= len(owners) and j >= len(owners):
        return True
    text, place = min(i, j), max(i, j) - len(owners)
    return bool(regions[owners[text], place // COLUMNS, place % COLUMNS])


def test_who_hears_whom(regions):
    lengths = [2, 4, 3]
    bias = region_bias(regions, lengths)
    size = sum(lengths) + ROWS * COLUMNS
    expected = [[0 if hears(i, j, regions, lengths) else -np.inf for j in range(size)] for i in range(size)]
    np.testing.assert_array_equal(bias, np.array(expected, np.float32)[None, None], strict=True)
    assert (np.diagonal(bias[0, 0]) == 0).all()  # a row without a zero would have no softmax


@FLOAT32
@pytest.mark.parametrize("scale", [None, 2.0])
def test_regions_are_diffusers_with_that_mask_at_every_step(trial, dev_model, regions, scale):
    theirs, steps = FluxPipeline.from_pretrained(dev_model), []
    theirs.set_progress_bar_config(disable=True)
    encoded = [theirs.encode_prompt(prompt, None, max_sequence_length=24) for prompt in PROMPTS]
    mask = torch.from_numpy(region_bias(regions, [24] * 3))

    def keep(pipe, index, t, tensors):
        steps.append(pipe._unpack_latents(tensors["latents"], 16 * ROWS, 16 * COLUMNS, 8).permute(0, 2, 3, 1))
        return tensors

    forward = theirs.transformer.forward

    def masked(*args, **how):
        is_prompt = how["encoder_hidden_states"].shape[1] == 3 * 24
        return forward(*args, **how | {"joint_attention_kwargs": {"attention_mask": mask} if is_prompt else {}})

    theirs.transformer.forward = masked
    negative = {} if scale is None else {"negative_prompt": "a frog", "true_cfg_scale": scale}
    theirs(
        prompt_embeds=torch.cat([txt for txt, _, _ in encoded], 1), pooled_prompt_embeds=encoded[0][1],
        height=16 * ROWS, width=16 * COLUMNS, num_inference_steps=3, guidance_scale=3.5, output_type="latent",
        generator=torch.Generator().manual_seed(7), callback_on_step_end=keep, max_sequence_length=24, **negative,
    )  # fmt: skip
    pipe = load(dev_model, trial.nx)
    ours = {} if scale is None else {"negative_prompt": "a frog", "true_cfg_scale": scale}
    text = regional([pipe.encode(prompt, **ours) for prompt in PROMPTS], regions)
    scales = {} if scale is None else {"true_cfg_scale": scale}
    got = pipe.sample(text, 7, 3, guidance=3.5, width=16 * COLUMNS, height=16 * ROWS, **scales)
    for step, one in zip(got, steps, strict=True):
        trial.close("regional prompts, each step's latents", step.x, one, compare.MODEL)


def test_a_prompt_without_a_region_is_not_heard(nx, model):
    pipe = load(model, nx)
    cat, apple = (pipe.encode(prompt, guidance=1) for prompt in PROMPTS[:2])
    x = nx.array(np.random.default_rng(0).standard_normal((1, 6, 10, 4)).astype(np.float32))
    everywhere, nowhere = np.ones((ROWS, COLUMNS), bool), np.zeros((ROWS, COLUMNS), bool)

    def v(text):
        return nx.to_numpy(pipe.velocity(text, (6, 10), Guidance())(x, 0.5))

    np.testing.assert_allclose(v(regional([cat, apple], [everywhere, nowhere])), v(cat), atol=1e-5)
    assert abs(v(regional([cat, apple], [everywhere, everywhere])) - v(cat)).max() > 1e-2


def test_what_regions_refuse(model):
    pipe = minflux.load(model)
    text = pipe.encode("a cat")
    with pytest.raises(
        ArgumentError, match=r"regions must be \(2, rows, columns\), one for each text, got \(1, 4, 4\)"
    ):
        regional([text, text], np.ones((1, 4, 4)))
    with pytest.raises(ArgumentError, match="regions don't go with references"):
        regional([replace(text, references=(Reference(None),))], np.ones((1, 4, 4)))
    with pytest.raises(ArgumentError, match="make it of regions of 4 × 2 image tokens, as this image has"):
        list(pipe.sample(regional([text], np.ones((1, 4, 4))), steps=1, width=32, height=64))
    with_control = replace(regional([text], np.ones((1, 2, 2))), controls=(Control(None),))
    with pytest.raises(ArgumentError, match="regions don't go with ControlNets"):
        list(pipe.sample(with_control, steps=1, width=32, height=32))


@needs_weights
def test_each_half_of_the_small_model_s_image_has_its_own_background():
    pipe = minflux.load("tiny")
    prompts = ["a cat on a blue background", "a cat on a yellow background"]
    left = np.arange(8) < 4  # of 8 × 8 image tokens
    regions = np.broadcast_to([[left], [~left]], (2, 8, 8))
    text = regional([pipe.encode(prompt) for prompt in prompts], regions)
    *_, step = pipe.sample(text, seed=7, steps=8)
    pixels = pipe.decode(step.x)[0].astype(int)
    blue, yellow = (np.asarray(pipe(prompt, seed=7, steps=8)).astype(int)[0, 0] for prompt in prompts)
    for corner, own, other in ((pixels[:8, :8], blue, yellow), (pixels[:8, -8:], yellow, blue)):
        assert 3 * abs(corner - own).mean() < abs(corner - other).mean()
