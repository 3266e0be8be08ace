"""Muon: a step along the orthogonal matrix nearest to the gradient, for the weights that it moves."""

import numpy as np
import pytest
import torch

from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.vae import vae_shapes
from minflux.checkpoints.tree import flatten
from minflux.model.flux import FluxConfig
from minflux.train.init_weights import init_weights
from minflux.train.optimizer import AdamW, by_muon, init_state, muon, orthogonal, schedule, update
from tests import compare, tiny_model


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (9, 9)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_orthogonal_evens_out_singular_values_and_keeps_directions(nx, shape, scale):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    got = nx.to_numpy(orthogonal(nx, nx.array(scale * matrix)))
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    values = np.diag(u.T @ got @ v.T)
    assert 0.5 < values.min() <= values.max() < 1.3
    assert np.linalg.norm(got - u @ np.diag(values) @ v) < 1e-3 * np.linalg.norm(got)


def test_orthogonal_is_torchs_polynomial(nx):
    """Muon's published lines, in PyTorch, in float32."""
    x = torch.randn(6, 20)
    expected = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * square + 2.0315 * square @ square) @ expected
    compare.assert_close(nx, orthogonal(nx, nx.array(x.numpy())), expected, compare.COMPONENT)


def test_a_direction_is_about_as_large_as_adams(nx):
    """Root mean square 0.2, whatever the shape: (16, 64) and its turned form."""
    for shape in ((16, 64), (64, 16)):
        g = nx.array(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
        direction, *_ = muon(nx, AdamW(muon=0.9), 0 * g, 0 * g, g, {})
        assert float(nx.mean(direction * direction)) ** 0.5 == pytest.approx(0.2, rel=0.15)


def test_the_momentum_sums_gradients_and_looks_ahead(nx):
    first, second = (nx.array(torch.randn(8, 9).numpy()) for _ in range(2))
    opt = AdamW(muon=0.5)
    _, m, v = muon(nx, opt, 0 * first, 0 * first, first, {})
    direction, m, v = muon(nx, opt, m, v, second, {})
    expected = 0.2 * 3 * orthogonal(nx, second + 0.5 * (second + 0.5 * first))
    np.testing.assert_allclose(nx.to_numpy(direction), nx.to_numpy(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nx.to_numpy(m), nx.to_numpy(second + 0.5 * first), rtol=1e-6)


def test_a_kernel_is_a_matrix_of_one_row_an_output(nx):
    g = torch.randn(8, 3, 3, 5)
    opt, now = AdamW(muon=0.9), {}
    kernel, *_ = muon(nx, opt, *(nx.array(x.numpy()) for x in (0 * g, 0 * g, g)), now)
    matrix, *_ = muon(nx, opt, *(nx.array(x.reshape(8, 45).numpy()) for x in (0 * g, 0 * g, g)), now)
    np.testing.assert_array_equal(nx.to_numpy(kernel).reshape(8, 45), nx.to_numpy(matrix))


def test_what_muon_moves():
    """Matrices and kernels between the first and the last layer; the rest is Adam's."""
    shapes = vae_shapes(tiny_model.VAE) | flux_shapes(FluxConfig(hidden_size=64, num_heads=1, axes_dim=(16, 24, 24)))
    moved = {name for name, shape in shapes.items() if by_muon(name, shape)}
    assert "decoder.mid.block_1.conv1.weight" in moved
    assert "single_blocks.3.linear1.weight" in moved
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "img_in.weight", "final_layer.linear.weight"):
        assert name in shapes
        assert name not in moved
    assert not any(name.endswith("bias") or "norm" in name.split(".")[-2] for name in moved)
    assert not by_muon("shared.weight", (400, 64))
    assert not by_muon("text_model.embeddings.position_embedding.weight", (77, 64))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_only_muons_weights_change_their_step(nx, momentum):
    weights = init_weights({"conv_in.weight": (8, 8), "w.weight": (8, 8)}, 0)
    p = {name: nx.array(x) for name, x in flatten(weights).items()}
    grads = {name: nx.array(np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)) for name in p}
    steps = []
    for opt in (AdamW(muon=momentum), AdamW()):
        now = {k: nx.array(x, dtype=nx.float32) for k, x in schedule(opt, 300, 1000).items()}
        after = update(nx, opt, init_state(nx, tree_of(p)), tree_of(grads), now)
        steps.append({name: nx.to_numpy(x) for name, x in flatten(after["params"]).items()})
    np.testing.assert_array_equal(steps[0]["conv_in.weight"], steps[1]["conv_in.weight"])
    assert np.array_equal(steps[0]["w.weight"], steps[1]["w.weight"]) is (momentum == 0)


def tree_of(flat: dict) -> dict:
    return {name.partition(".")[0]: {"weight": x} for name, x in flat.items()}
