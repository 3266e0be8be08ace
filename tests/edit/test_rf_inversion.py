"""RF-inversion: the paper's two algorithms on diffusers' FluxPipeline, and the way there and back."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

import minflux
from minflux.edit.rf_inversion import RFInversion, invert
from minflux.errors import ArgumentError
from minflux.inference.load import load
from minflux.sampling.guidance import Guidance
from tests import compare
from tests.conftest import CHOSEN
from tests.shipped import needs_weights

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
STEPS, WIDTH, HEIGHT = 5, 80, 48
SHAPE = 1, 6, 10, 4


def velocity_in_torch(folder, prompt: str, guidance: float):
    """v(x, t) of diffusers on latents (1, h, w, C)."""
    pipe = FluxPipeline.from_pretrained(folder)
    txt, pooled, txt_ids = pipe.encode_prompt(prompt, None, max_sequence_length=24)
    _, height, width, channels = SHAPE
    ids = pipe._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)

    def v(x: torch.Tensor, t: float) -> torch.Tensor:
        packed = pipe._pack_latents(x.permute(0, 3, 1, 2), 1, channels, height, width)
        out = pipe.transformer(
            hidden_states=packed, timestep=torch.tensor([t]), guidance=torch.tensor([guidance]),
            pooled_projections=pooled, encoder_hidden_states=txt, txt_ids=txt_ids, img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        return pipe._unpack_latents(out, HEIGHT, WIDTH, 8).permute(0, 2, 3, 1)

    return v


def forward_ode(v, image, noise, times, gamma):
    """Algorithm 1: the controlled forward ODE, in the paper's time, in which the image is at 0 and noise at 1."""
    y = image
    for s, after in pairwise(times):
        unconditional, conditional = v(y, s), (noise - y) / (1 - s)
        y = y + (unconditional + gamma * (conditional - unconditional)) * (after - s)
    return y


def reverse_ode(v, image, y, times, eta, first, last):
    """Algorithm 2: the controlled reverse ODE, in the paper's time, in which noise is at 0 and the image at 1."""
    out = []
    for i, (s, after) in enumerate(pairwise(times)):
        unconditional, conditional = -v(y, 1 - s), (image - y) / (1 - s)
        strength = eta if first <= i < last else 0
        y = y + (unconditional + strength * (conditional - unconditional)) * (after - s)
        out.append(y)
    return out


@FLOAT32
@pytest.mark.parametrize(("gamma", "eta", "window"), [(0.5, 0.9, (0.0, 0.6)), (0, 0.4, (0.2, 1.0)), (1, 1.0, (0, 0.4))])
def test_both_ways_are_the_paper_s_at_every_step(trial, dev_model, gamma, eta, window):
    image, noise = trial.randn(*SHAPE), trial.randn(*SHAPE)
    pipe = load(dev_model, trial.nx)
    times = pipe.schedule.timesteps(STEPS, 15)
    rising = [float(t) for t in times[::-1]]
    there = forward_ode(velocity_in_torch(dev_model, "", 1.0), image, noise, rising, gamma)
    falling = [1 - float(t) for t in times]
    first, last = (int(share * STEPS) for share in window)
    expected = reverse_ode(velocity_in_torch(dev_model, "a cat", 3.5), image, there, falling, eta, first, last)

    null = pipe.velocity(pipe.encode(""), SHAPE[1:3], Guidance(1.0))
    inverted = invert(null, trial.array(image), trial.array(noise), times, gamma)
    trial.close("RF-inversion, the inverted latents", inverted, there, compare.MODEL)
    edit = RFInversion(trial.array(image), eta, window)
    got = pipe.sample(pipe.encode("a cat"), steps=STEPS, guidance=3.5, start=inverted, edit=edit)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("RF-inversion, each step's latents", step.x, theirs, compare.MODEL)


def test_drawn_all_the_way_the_noise_and_the_image_are_reached(nx, model):
    """Where γ or η is 1 throughout, the model has no say, and the line is straight, to rounding."""
    pipe = load(model, nx)
    rng = np.random.default_rng(0)
    image, noise = (nx.array(rng.standard_normal(SHAPE).astype(np.float32)) for _ in range(2))
    v = pipe.velocity(pipe.encode("", guidance=1), SHAPE[1:3], Guidance())
    there = invert(v, image, noise, pipe.schedule.timesteps(STEPS, 15), gamma=1)
    np.testing.assert_allclose(nx.to_numpy(there), nx.to_numpy(noise), atol=1e-5)
    edit = RFInversion(image, eta=1.0, window=(0, 1))
    *_, step = pipe.sample(pipe.encode("a cat", guidance=1), steps=STEPS, guidance=1, start=there, edit=edit)
    np.testing.assert_allclose(nx.to_numpy(step.x), nx.to_numpy(image), atol=1e-5)


@needs_weights
def test_plain_inversion_comes_back_the_nearer_the_more_steps():
    pipe = minflux.load("tiny")
    prompt = "a cat left of a tree on a blue background"
    text = pipe.encode(prompt, guidance=1)
    image = pipe.encode_image(pipe(prompt, seed=2, steps=8))
    v = pipe.velocity(text, image.shape[1:3], Guidance())

    def error(steps: int) -> float:
        start = invert(v, image, image, pipe.schedule.timesteps(steps, 64), gamma=0)
        *_, step = pipe.sample(text, steps=steps, guidance=1, start=start)
        return float(np.linalg.norm(step.x - image) / np.linalg.norm(image))

    errors = [error(steps) for steps in (5, 10, 20)]
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2]
    assert errors[2] < 0.1


def test_what_is_refused(model):
    pipe = minflux.load(model)
    image = np.zeros(SHAPE, np.float32)
    with pytest.raises(ArgumentError, match="gamma must be a number from 0 to 1, got 2"):
        invert(lambda x, t: x, image, image, np.array([1, 0]), gamma=2)
    with pytest.raises(ArgumentError, match="eta must be a number from 0 to 1, got -1"):
        list(pipe.sample(pipe.encode("a cat"), steps=1, start=image, edit=RFInversion(image, eta=-1)))
