"""The road not taken: losses and gradients are PyTorch's, runs resume, and what is trained can be sampled with."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import T5Config as TheirT5Config
from transformers import T5EncoderModel

from minflux.backend import get_backend
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.t5 import write_config as write_t5
from minflux.checkpoints.components.unet import unet_shapes, write_config
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten, leaves, tree, tree_map
from minflux.errors import ArgumentError, CheckpointError
from minflux.model.unet import unet
from minflux.sampling.ddpm import NoiseSchedule, ddim
from minflux.sampling.timesteps import Schedule
from minflux.train import checkpoint, loop, noise_prediction
from minflux.train.flow import flow_loss
from minflux.train.init_weights import init_weights
from minflux.train.noise_prediction import (
    Prediction,
    Task,
    batches,
    prediction_loss,
    sample_latents,
    task_of,
    train_prediction,
)
from minflux.train.recipe import read_recipe
from minflux.train.run import run_prediction
from minflux.world import tokenizers
from tests import compare, tiny_model
from tests.checkpoints.oracles import RECORDS
from tests.train.test_losses import MLX, assert_gradients, nhwc

RECIPE = Path(__file__).with_name("unet.toml")
UNET = noise_prediction.UNetConfig(4, 4, (4, 8), (False, True), 1, 2, 24, 2)
FLOW = (tiny_model.FLUX, tiny_model.CLIP, tiny_model.T5)


def task(**asked) -> Task:
    return Task(Prediction(**asked), NoiseSchedule(num_train_timesteps=100), Schedule(shift=3.0), UNET, FLOW)


# -- the loss ------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def case(request):
    """diffusers' U-Net and transformers' T5 with random weights, a batch, and PyTorch's loss, gradients left behind."""
    theirs = UNet2DConditionModel.from_config(write_config(UNET))
    text = T5EncoderModel(TheirT5Config(**write_t5(tiny_model.T5)))
    for module in (theirs, text):
        module.eval()
        for w in module.parameters():
            w.data = torch.randn(w.shape) * (0.3 if w.ndim == 1 else w[0].numel() ** -0.5) + (w.ndim == 1)
    x, target, n = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6), torch.tensor([125.0, 875.0])  # n / 1000 is exact
    ids = torch.tensor([[5, 6, 7, 1], [9, 1, 0, 0]])
    with torch.enable_grad():
        error = theirs(x, n, text(ids)[0]).sample - target
        loss = error.square().mean() if request.param == 2 else error.abs().mean()
        loss.backward()
    return request.param, theirs, text, (x, target, n, ids), loss


def ours(nx, case):
    """The same weights and loss."""
    power, theirs, text, (x, target, n, ids), _ = case
    p = {}
    for name, key, module in (("unet", "unet", theirs), ("t5", "text_encoder_2", text)):
        flat = {RECORDS[key].alias(name): nx.array(w.numpy()) for name, w in module.state_dict().items()}
        p[name] = tree(RECORDS[key].folder_naming.to_ours(flat))
    clip_ids, pooled = nx.zeros((2, 3), dtype=nx.int32), nx.zeros(2, dtype=nx.float32)
    batch = nhwc(nx, x), nhwc(nx, target), nx.array(n.numpy() / 1000), clip_ids, nx.array(ids.int().numpy()), pooled
    return lambda p: prediction_loss(p, task(power=power), *batch), p


def test_the_loss_is_pytorchs(nx, case):
    loss, p = ours(nx, case)
    compare.assert_close(nx, loss(p), case[-1], compare.MODEL)


@MLX
def test_every_gradient_is_pytorchs(nx, case):
    loss, p = ours(nx, case)
    _, grads = nx.value_and_grad(loss)(p)
    assert_gradients("unet", grads["unet"], case[1])
    assert_gradients("text_encoder_2", grads["t5"], case[2])


def test_the_transformer_s_loss_on_velocity_is_the_flow_s(nx):
    rng = np.random.default_rng(0)
    asked = task(network="transformer", objective="velocity")
    p = tree_map(nx.array, tiny_model.random_tree(asked.shapes, rng))
    x0, noise = (rng.standard_normal((2, 4, 6, 4)).astype(np.float32) for _ in range(2))
    t, pooled = np.array([0.3, 0.9], np.float32), np.array([1, 0], np.float32)
    ids = rng.integers(3, 20, (2, 7)).astype(np.int32)
    data = FixedData((x0, noise, t, ids, ids, pooled))
    batch = [nx.array(x) for x in batches(asked, data)(rng)]
    arrays = [nx.array(x) for x in (x0, noise, t, ids, ids, pooled)]
    expected = flow_loss(p, FLOW, *arrays)
    assert float(prediction_loss(p, asked, *batch)) == pytest.approx(float(expected), rel=1e-5)


class FixedData:
    """Data of one batch."""

    def __init__(self, arrays):
        self.arrays = arrays

    def batch(self, rng):
        return self.arrays


def test_noise_is_mixed_as_diffusers_mixes_it():
    asked = task()
    asked = replace(asked, noise=NoiseSchedule("scaled_linear"))
    rng = np.random.default_rng(0)
    x0, noise = (rng.standard_normal((64, 2, 3, 4)).astype(np.float32) for _ in range(2))
    data = FixedData((x0, noise, np.zeros(64, np.float32), None))
    x, target, time, _ = batches(asked, data)(rng)
    n = np.round(time * 1000).astype(int)
    assert len(set(n)) > 50
    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    expected = theirs.add_noise(torch.from_numpy(x0), torch.from_numpy(noise), torch.from_numpy(n))
    assert x.dtype == time.dtype == np.float32
    np.testing.assert_allclose(x, expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(target, noise)


# -- weights and recipes -------------------------------------------------------------------------------------


def test_a_fresh_u_net_answers_0():
    p = init_weights({f"unet.{name}": shape for name, shape in unet_shapes(UNET).items()}, seed=0)["unet"]
    x, txt = np.ones((1, 4, 4, 4), np.float32), np.ones((1, 2, 24), np.float32)
    assert (unet(p, UNET, x, np.ones(1, np.float32), txt) == 0).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"network": "vit"}, "network must"), ({"objective": "x"}, "objective must"), ({"power": 3}, "power must")],
)
def test_what_can_not_be_asked(wrong, words):
    with pytest.raises(ArgumentError, match=words):
        Prediction(**wrong)


def test_the_shipped_recipe_has_a_u_net_of_about_the_transformer_s_size(tmp_path):
    tokenizers.train_tokenizers(tmp_path)
    asked = task_of(read_recipe("unet"), tmp_path)
    ours, flow = unet_shapes(asked.unet).values(), flux_shapes(asked.flow[0]).values()
    assert 0.8 < sum(map(math.prod, ours)) / sum(map(math.prod, flow)) < 1.25
    assert asked.unet.cross_attention_dim == asked.flow[2].d_model


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patched():
    """MLX as it trains, but that nothing is compiled."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(nx), "compile", lambda self, function: function)
        patch.setattr(loop, "keep_freed_memory", lambda: None)
        yield nx


@pytest.fixture(scope="module")
def folder(patched, model, tmp_path_factory):
    """The run of the small recipe, on the small random model's VAE."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model").mkdir()
    (folder / "model" / "vae").symlink_to(model / "vae")
    run_prediction(str(RECIPE), folder)
    return folder


def test_a_run_leaves_samples_a_log_and_a_u_net_that_diffusers_opens(patched, folder):
    assert (folder / "prediction" / "every" / "step-3.png").exists()
    assert (folder / "prediction" / "small" / "log.csv").exists()
    cfg, p = load_component(folder / "model", "unet", patched)
    state, _ = checkpoint.load(folder / "prediction" / "every", patched)
    for name, w in leaves(p):
        np.testing.assert_array_equal(np.array(w), np.array(flatten(state["ema"])[f"unet.{name}"]))
    theirs = UNet2DConditionModel.from_pretrained(folder / "model" / "unet")
    x, txt, n = torch.randn(1, 4, 6, 8), torch.randn(1, 3, cfg.cross_attention_dim), torch.tensor([40.0])
    got = unet(p, cfg, nhwc(patched, x), patched.array(n.numpy()), patched.array(txt.numpy()))
    compare.assert_close(patched, got, theirs(x, n, txt).sample.permute(0, 2, 3, 1), compare.MODEL)


@pytest.mark.parametrize("asked", [{}, {"network": "transformer"}, {"objective": "velocity", "power": 1}])
def test_a_stopped_run_ends_as_one_that_never_stopped(patched, folder, tmp_path, asked):
    settings = read_recipe(RECIPE)
    settings["prediction"] |= asked

    def stop(task, p, stage, step):
        if stage == "every":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_prediction(settings, tmp_path / "stopped", folder / "model", patched, stop)
    train_prediction(settings, tmp_path / "stopped", folder / "model", patched)
    train_prediction(settings, tmp_path / "whole", folder / "model", patched)
    first, second = ((tmp_path / run / "every" / checkpoint.NAME).read_bytes() for run in ("whole", "stopped"))
    assert first == second


def test_a_run_without_an_autoencoder_is_refused(patched, tmp_path):
    with pytest.raises(CheckpointError, match="run `minflux train vae` first"):
        run_prediction(str(RECIPE), tmp_path)


# -- sampling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"network": "transformer"}, {"objective": "velocity"}])
def test_latents_are_sampled_with_guidance(nx, asked):
    """With guidance 1 the empty prompts have no effect; else they have."""
    asked = task(clip=4.0, **asked)
    p = tree_map(nx.array, tiny_model.random_tree(asked.shapes, np.random.default_rng(0)))
    noise = nx.array(np.random.default_rng(1).standard_normal((1, 4, 4, 4)).astype(np.float32))
    ids = [np.array([[5, 6, 1], [empty, 8, 1]], np.int32) for empty in (3, 7)]

    def drawn(i, guidance, **how):
        both = nx.array(ids[i])
        return nx.to_numpy(sample_latents(p, asked, (both, both), noise, 3, guidance, **how))

    np.testing.assert_allclose(drawn(0, 1.0), drawn(1, 1.0), rtol=1e-4, atol=1e-4)
    assert np.abs(drawn(0, 3.0) - drawn(1, 3.0)).max() > 1e-3
    fresh = nx.array(np.ones((1, 4, 4, 4), np.float32))
    assert np.abs(drawn(0, 1.0, solver=ddim(1.0, lambda step: fresh)) - drawn(0, 1.0)).max() > 1e-3
