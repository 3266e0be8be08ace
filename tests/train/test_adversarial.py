"""The judge and the loss that it takes part in: held to PyTorch, gradients and balance too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline

from minflux.backend import get_backend
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten, leaves, tree, tree_map
from minflux.train import adversarial, discriminator, loop
from minflux.train.discriminator import JudgeConfig, fold, hinge, judge, judge_shapes
from minflux.train.loop import Plan
from minflux.train.optimizer import AdamW, init_state, schedule
from minflux.train.workers import Team
from tests import compare, tiny_model
from tests.conftest import CHOSEN

MLX = pytest.mark.parametrize("nx", [name for name in CHOSEN if not name.startswith("numpy")], indirect=True)
CFG = JudgeConfig(channels=(8, 12, 16), norm_groups=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("model"))


def judge_weights() -> dict[str, torch.Tensor]:
    """Random weights of a judge, NHWC kernels."""
    flat = flatten(tiny_model.random_tree(judge_shapes(CFG), np.random.default_rng(4)))
    return {name: torch.from_numpy(x) for name, x in flat.items()}


def torch_judge(p: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The judge in PyTorch, NCHW: folding is `pixel_unshuffle` with channels last."""
    x = F.pixel_unshuffle(image, 2)  # channels (c, row, column); ours are (row, column, c)
    b, _, h, w = x.shape
    x = x.reshape(b, 3, 4, h, w).transpose(1, 2).reshape(b, 12, h, w)
    x = F.leaky_relu(conv(p, "conv.0", x, padding=1), 0.2)
    for i in (1, 2):
        x = conv(p, f"conv.{i}", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = F.leaky_relu(F.group_norm(x, 2, p[f"norm.{i - 1}.weight"], p[f"norm.{i - 1}.bias"], 1e-6), 0.2)
    return conv(p, "verdict", x, padding=1)


def conv(p: dict[str, torch.Tensor], name: str, x: torch.Tensor, **how) -> torch.Tensor:
    return F.conv2d(x, p[f"{name}.weight"].permute(0, 3, 1, 2), p[f"{name}.bias"], **how)


def nhwc(nx, x: torch.Tensor):
    return nx.array(x.permute(0, 2, 3, 1).contiguous().numpy())


def ours(nx, p: dict[str, torch.Tensor]):
    return tree({name: nx.array(x.numpy()) for name, x in p.items()})


def test_folding_puts_pixels_on_top_of_each_other(nx):
    image = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    got = nx.to_numpy(fold(nx.array(image)))
    assert got.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(got[1, 0, 1], image[1, :2, 2:].ravel())


def test_the_judge(nx):
    image, p = torch.rand(2, 3, 32, 24) * 2 - 1, judge_weights()
    got = judge(ours(nx, p), CFG, nhwc(nx, image))
    expected = torch_judge(p, image).permute(0, 2, 3, 1)
    assert expected.shape == (2, 4, 3, 1)  # a verdict for each 8×8 pixels
    compare.assert_close(nx, got, expected, compare.COMPONENT)


def test_the_hinge(nx):
    originals, redrawn = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    got = hinge(nx, *(nx.array(x.numpy()) for x in (originals, redrawn)))
    assert float(got) == pytest.approx(0.5 * 0.25 + 0.5 * 0.625)


def torch_case(model, weight: float, kl_weight: float):
    """diffusers' autoencoder, PyTorch's judge, and the loss with its balance taken by autograd."""
    vae, critic = FluxPipeline.from_pretrained(model).vae, judge_weights()
    image, noise = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 4, 2, 3)
    with torch.enable_grad():
        latents = vae.encode(image).latent_dist
        drawn = vae.decode(latents.mean + latents.std * noise).sample
        error, praise = (image - drawn).abs().mean(), torch_judge(critic, drawn).mean()
        kernel = vae.decoder.conv_out.weight
        sizes = [torch.autograd.grad(x, kernel, retain_graph=True)[0].norm() for x in (error, praise)]
        balance = sizes[0] / (sizes[1] + 1e-4)
        kl = latents.kl().mean() / latents.mean[0].numel()
        loss = error + kl_weight * kl - weight * praise
        loss.backward()
    return vae, critic, image, noise, drawn, loss, balance


@MLX
def test_the_loss_and_its_gradient(nx, model):
    vae, critic, image, noise, drawn, loss, balance = torch_case(model, weight=0.7, kl_weight=0.3)
    cfg, p = load_component(model, "vae", nx)

    def ours_of(p):
        return adversarial.adversarial_loss(
            p, cfg, ours(nx, critic), CFG, nhwc(nx, image), nhwc(nx, noise), kl_weight=0.3, weight=0.7
        )

    (got, features), grads = nx.value_and_grad(ours_of)(p)
    compare.assert_close(nx, got, loss, compare.COMPONENT)
    last = p["decoder"]["conv_out"]
    compare.assert_close(nx, discriminator.conv3(last, features), drawn.permute(0, 2, 3, 1), compare.COMPONENT)
    got = adversarial.balanced(last, features, ours(nx, critic), CFG, nhwc(nx, image))
    compare.assert_close(nx, got, balance, compare.COMPONENT)
    for name, theirs in {
        "decoder.conv_out.weight": vae.decoder.conv_out.weight,
        "decoder.mid.block_1.conv1.weight": vae.decoder.mid_block.resnets[0].conv1.weight,
        "encoder.conv_in.weight": vae.encoder.conv_in.weight,
        "encoder.conv_out.weight": vae.encoder.conv_out.weight,
    }.items():
        expected = theirs.grad.permute(0, 2, 3, 1).numpy()
        assert compare.relative_error(nx.to_numpy(flatten(grads)[name]), expected) <= 1e-4, name


def test_the_balance_is_capped_where_the_judge_says_nothing():
    nx = get_backend("mlx")
    silent = tree_map(lambda x: 0 * x, ours(nx, judge_weights()))
    last = {"weight": nx.array(torch.randn(3, 3, 3, 4).numpy()), "bias": nx.array(np.zeros(3, np.float32))}
    features, image = (nx.array(torch.randn(1, 16, 16, c).numpy()) for c in (4, 3))
    assert float(adversarial.balanced(last, 1e6 * features, silent, CFG, image)) == adversarial.MOST


# -- the step ------------------------------------------------------------------------------------------------


@pytest.fixture
def mlx(monkeypatch):
    """MLX as it trains, but that nothing is compiled."""
    pytest.importorskip("mlx.core")
    nx = get_backend("mlx")
    monkeypatch.setattr(type(nx), "compile", lambda self, function: function)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: None)
    return nx


def run(mlx, model, folder, steps: int, on_sample=None, share: float = 0.5):
    cfg, p = load_component(model, "vae", mlx)
    opt = AdamW(lr=1e-2, warmup=1)
    image = np.random.default_rng(7).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    state = adversarial.begin(mlx, p, ours(mlx, judge_weights()))
    step = adversarial.adversarial_step(mlx, opt, cfg, CFG, 1e-3, share, Team())
    plan = Plan(folder, steps, checkpoint_every=2, sample_every=3)

    def batch(rng):
        return image, rng.standard_normal((2, 2, 2, 4), np.float32)

    loop.run(mlx, Team(), plan, opt, state, step, batch, on_sample)
    return loop.checkpoint.load(folder, mlx)[0], image


def test_the_judge_learns_to_tell_redrawn_from_original(mlx, model, tmp_path):
    state, image = run(mlx, model, tmp_path, 12)
    cfg, _ = load_component(model, "vae", mlx)
    noise = mlx.zeros((2, 2, 2, 4), dtype=mlx.float32)
    features, _ = adversarial.redraw(state["params"], cfg, mlx.array(image), noise)
    drawn = discriminator.conv3(state["params"]["decoder"]["conv_out"], features)
    before, after = (
        float(hinge(mlx, *(judge(p, CFG, x) for x in (mlx.array(image), drawn))))
        for p in (ours(mlx, judge_weights()), state["critic"]["params"])
    )
    assert after < 0.6 * before


def test_a_stopped_run_ends_as_one_that_never_stopped(mlx, model, tmp_path):
    """The judge and its moments are in the checkpoint too."""

    def stop(*args):
        raise KeyboardInterrupt

    run(mlx, model, tmp_path / "whole", 5)
    with pytest.raises(KeyboardInterrupt):
        run(mlx, model, tmp_path / "stopped", 5, on_sample=stop)
    run(mlx, model, tmp_path / "stopped", 5)
    first, second = ((tmp_path / name / loop.checkpoint.NAME).read_bytes() for name in ("whole", "stopped"))
    assert first == second


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(model):
    nx = get_backend("mlx")
    cfg, p = load_component(model, "vae", nx)
    image = nx.array(np.random.default_rng(7).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32))
    now = {k: nx.array(x, dtype=nx.float32) for k, x in schedule(AdamW(), 300, 1000).items()}
    steps = []
    for compiled in (True, False):
        state = adversarial.begin(nx, p, ours(nx, judge_weights())) | {"balance": nx.array(0.5, dtype=nx.float32)}
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                patch.setattr(type(nx), "compile", lambda self, function: function)
            step = adversarial.adversarial_step(nx, AdamW(), cfg, CFG, 1e-3, 0.5, Team())
        steps.append(step(state, now, (image, nx.zeros((2, 2, 2, 4), dtype=nx.float32))))
    (first, *one), (second, *two) = steps
    np.testing.assert_allclose([float(x) for x in one], [float(x) for x in two], rtol=1e-4)
    np.testing.assert_allclose(float(first["balance"]), float(second["balance"]), rtol=1e-3)
    for name, x in leaves(first["m"]):
        np.testing.assert_allclose(np.array(x), np.array(flatten(second["m"])[name]), atol=1e-5, err_msg=name)


def test_a_run_starts_with_a_judge_of_its_own(mlx):
    p = {"w": mlx.zeros(3, dtype=mlx.float32)}
    state = adversarial.begin(mlx, p, {"v": mlx.zeros(2, dtype=mlx.float32)})
    assert set(state) == {*init_state(mlx, p), "critic", "balance"}
    assert [name for name, _ in leaves(state["critic"]["m"])] == ["v"]
