"""What training starts from, and the gradients it follows: held to PyTorch's autograd, weight by weight."""

import math

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from minflux.backend import get_backend
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten, leaves
from minflux.errors import BackendError
from minflux.inference.text import Tokenizer
from minflux.model.flux import flux
from minflux.model.t5 import position_bias, t5_encoder
from minflux.model.vae import resnet_block
from minflux.train import flow as flow_training
from minflux.train import objective
from minflux.train import vae as vae_training
from minflux.train.init_weights import init_weights
from tests import compare, tiny_model
from tests.checkpoints.oracles import RECORDS
from tests.conftest import CHOSEN

MLX = pytest.mark.parametrize("nx", [name for name in CHOSEN if not name.startswith("numpy")], indirect=True)


# -- the weights to start from -------------------------------------------------------------------------------


def test_initial_weights_are_the_same_for_the_same_seed():
    first, again, other = (flatten(init_weights({"w": (3, 4), "b.bias": (4,)}, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["w"], again["w"], strict=True)
    assert (first["w"] != other["w"]).all()


def test_initial_matrices_keep_the_size_of_what_goes_in():
    """Deviation 1/√fan-in, where a kernel's fan-in is height · width · channels."""
    p = init_weights({"w.weight": (500, 40), "k.weight": (300, 3, 3, 8), "norm.weight": (5,), "w.bias": (5,)}, seed=0)
    assert p["w"]["weight"].std() == pytest.approx(40**-0.5, rel=0.03)
    assert p["k"]["weight"].std() == pytest.approx(72**-0.5, rel=0.03)
    assert p["norm"]["weight"].tolist() == [1] * 5
    assert p["w"]["bias"].tolist() == [0] * 5


def test_a_fresh_text_encoder_tells_an_order_from_another():
    """Two words exchanged, each one's own state changes by more than a tenth; with biases of 0.1 it was 2%."""
    cfg = tiny_model.T5
    p = init_weights(t5_shapes(cfg), seed=0)
    ids = np.array([[5, 6, 7, 8, 9, 1], [8, 6, 7, 5, 9, 1]], np.int32)
    first, second = t5_encoder(p, cfg, ids)
    assert np.linalg.norm(first[0] - second[3]) > 0.1 * np.linalg.norm(first[0])


def test_fresh_heads_of_a_text_encoder_look_one_way():
    """Of an even head's attention less than 10% goes to later words, of an odd head's to earlier ones; mean of 20."""
    cfg, later, earlier = tiny_model.T5, [], []
    for seed in range(20):
        p = init_weights(t5_shapes(cfg), seed)
        table = p["encoder"]["block"][0]["layer"][0]["SelfAttention"]["relative_attention_bias"]["weight"]
        bias = position_bias(table, 9, cfg)[0, :, 4]  # of the fifth of nine words
        weights = np.exp(bias) / np.exp(bias).sum(-1, keepdims=True)
        later.append(weights[::2, 5:].sum(-1).mean())
        earlier.append(weights[1::2, :5].sum(-1).mean())
    assert np.mean(later) < 0.1
    assert np.mean(earlier) < 0.1


def test_initial_blocks_change_nothing():
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)
    p = init_weights(vae_shapes(tiny_model.VAE), seed=0)
    np.testing.assert_array_equal(resnet_block(p["decoder"]["mid"]["block_1"], x, groups=2), x)
    cfg, zeros = tiny_model.FLUX, np.zeros((1, 6, 3), np.int32)
    img, txt, y = (np.ones(shape, np.float32) for shape in ((1, 6, 16), (1, 6, 24), (1, 16)))
    v = flux(init_weights(flux_shapes(cfg), seed=0), cfg, img, zeros, txt, zeros, np.ones(1, np.float32), y)
    assert (v == 0).all()


# -- losses and their gradients ------------------------------------------------------------------------------


def assert_gradients(kind: str, got: dict, module: torch.nn.Module) -> None:
    """Compare the gradient of every weight, under the file's names, with those that PyTorch left in `module`."""
    spec = RECORDS[kind]
    ours = spec.folder_naming.from_ours({name: np.array(g) for name, g in leaves(got)})
    theirs = {
        spec.alias(name): np.zeros(w.shape) if w.grad is None else w.grad.numpy()
        for name, w in module.named_parameters()
    }
    assert ours.keys() == theirs.keys()
    whole = math.sqrt(sum(np.sum(g**2) for g in theirs.values()))
    for name, g in theirs.items():
        error = np.linalg.norm(ours[name] - g)
        assert error <= 1e-4 * np.linalg.norm(g) + 1e-6 * whole, f"{name}: {error:.1e} of {np.linalg.norm(g):.1e}"


def torch_vae_loss(vae, image: torch.Tensor, noise: torch.Tensor, kl_weight: float) -> torch.Tensor:
    """The same loss in diffusers' autoencoder, NCHW."""
    latents = vae.encode(image).latent_dist
    drawn = vae.decode(latents.mean + latents.std * noise).sample
    return (image - drawn).abs().mean() + kl_weight * latents.kl().mean() / latents.mean[0].numel()


def nhwc(nx, x: torch.Tensor):
    return nx.array(x.permute(0, 2, 3, 1).contiguous().numpy())


@pytest.fixture
def vae_case(model):
    theirs = FluxPipeline.from_pretrained(model).vae
    image, noise = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 4, 2, 3)
    with torch.enable_grad():
        loss = torch_vae_loss(theirs, image, noise, 0.3)
        loss.backward()
    return theirs, image, noise, loss


def test_the_autoencoders_loss(nx, model, vae_case):
    _, image, noise, expected = vae_case
    cfg, p = load_component(model, "vae", nx)
    got = vae_training.vae_loss(p, cfg, nhwc(nx, image), nhwc(nx, noise), 0.3)
    compare.assert_close(nx, got, expected, compare.COMPONENT)


@MLX
def test_the_gradient_of_the_autoencoders_loss(nx, model, vae_case):
    theirs, image, noise, _ = vae_case
    cfg, p = load_component(model, "vae", nx)
    loss = nx.value_and_grad(lambda p: vae_training.vae_loss(p, cfg, nhwc(nx, image), nhwc(nx, noise), 0.3))
    assert_gradients("vae", loss(p)[1], theirs)


PROMPTS = ["a cat left of an apple on a blue background", ""]


def torch_flow_loss(pipe, x0, noise, t, clip_ids, t5_ids) -> torch.Tensor:
    """The same loss in diffusers' and transformers' models, NCHW."""
    b, c, h, w = x0.shape
    x_t = (1 - t[:, None, None, None]) * x0 + t[:, None, None, None] * noise
    txt = pipe.text_encoder_2(t5_ids)[0]
    v = pipe.transformer(
        hidden_states=pipe._pack_latents(x_t, b, c, h, w),
        encoder_hidden_states=txt,
        pooled_projections=pipe.text_encoder(clip_ids).pooler_output,
        timestep=t,
        img_ids=pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(txt.shape[1], 3),
    ).sample
    return (v - pipe._pack_latents(noise - x0, b, c, h, w)).square().mean()


@pytest.fixture
def flow_case(model):
    theirs = FluxPipeline.from_pretrained(model)
    clip_ids, t5_ids = (Tokenizer.from_folder(model / name)(PROMPTS, 24) for name in tiny_model.TOKENIZERS)
    x0, noise, t = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6), torch.tensor([0.3, 0.9])
    with torch.enable_grad():
        ids = [torch.from_numpy(ids.astype(np.int64)) for ids in (clip_ids, t5_ids)]
        loss = torch_flow_loss(theirs, x0, noise, t, *ids)
        loss.backward()
    return theirs, (x0, noise, t, clip_ids, t5_ids), loss


def our_flow_loss(nx, model, inputs):
    """The loss as a function of the weights alone, and the weights."""
    parts = ("transformer", "text_encoder", "text_encoder_2")
    configs, weights = zip(*(load_component(model, part, nx) for part in parts), strict=True)
    x0, noise, t, clip_ids, t5_ids = inputs
    batch = nhwc(nx, x0), nhwc(nx, noise), nx.array(t.numpy()), nx.array(clip_ids), nx.array(t5_ids)
    return lambda p: flow_training.flow_loss(p, configs, *batch), dict(
        zip(("transformer", "clip", "t5"), weights, strict=True)
    )


def test_the_flows_loss(nx, model, flow_case):
    _, inputs, expected = flow_case
    loss, p = our_flow_loss(nx, model, inputs)
    compare.assert_close(nx, loss(p), expected, compare.COMPONENT)


@MLX
def test_the_gradient_of_the_flows_loss(nx, model, flow_case):
    """All three models learn at once."""
    theirs, inputs, _ = flow_case
    loss, p = our_flow_loss(nx, model, inputs)
    _, grads = nx.value_and_grad(loss)(p)
    assert_gradients("transformer", grads["transformer"], theirs.transformer)
    assert_gradients("text_encoder", grads["clip"], theirs.text_encoder)
    assert_gradients("text_encoder_2", grads["t5"], theirs.text_encoder_2)


def test_numpy_has_no_gradients():
    with pytest.raises(BackendError, match="train with the mlx backend"):
        get_backend("numpy").value_and_grad(lambda p: p)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_logit_of_the_times_is_normal_around_the_log_of_the_shift(shift):
    t = objective.logit_normal(np.random.default_rng(0), 500, shift)
    assert t.dtype == np.float32
    logits = np.log(t / (1 - t.astype(np.float64)))
    np.testing.assert_allclose(logits, np.random.default_rng(0).standard_normal(500) + np.log(shift), atol=1e-5)
