"""The three losses that tie words to what they stand for: each held to PyTorch or to plain loops, and their sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minflux.checkpoints.components.clip import clip_shapes
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.tree import tree_map
from minflux.model.flux import FluxConfig
from minflux.train.flow import flow_loss
from minflux.train.grounding import (
    Grounding,
    cross_entropy,
    grounded_loss,
    layers_shapes,
    look_loss,
    naming,
    place_loss,
)
from minflux.train.velocity import CLIP_TOKENS
from minflux.world.parts import LABELS, image_labels, image_parts, text_parts
from tests import tiny_model
from tests.train.test_velocity import data, folder, vae  # noqa: F401  (fixtures)

IMAGE, TEXT = np.array([[0, 1, 1, 2, 0, 0], [3, 0, 0, 0, 0, 3]], np.int32), np.array([[1, 0, 2], [0, 3, 3]], np.int32)


def test_cross_entropy(nx):
    torch.manual_seed(0)
    logits, labels = 30 * torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 7), labels.reshape(-1))
    found = cross_entropy(nx.array(logits.numpy()), nx.array(labels.numpy().astype(np.int32)))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_naming(nx):
    names = nx.to_numpy(naming(nx.array(IMAGE), nx.array(TEXT)))
    assert np.argwhere(names).tolist() == [
        [0, 1, 0], [0, 2, 0], [0, 3, 2], [1, 0, 1], [1, 0, 2], [1, 5, 1], [1, 5, 2],
    ]  # fmt: skip


def test_places_are_the_middles_of_what_is_named(nx):
    """In 2 × 3 tokens the two of part 1 have their middle at (2/3, 1/4), and part 3 in two corners at (1/2, 1/2)."""
    names = naming(nx.array(IMAGE), nx.array(TEXT))
    right = np.array([[[2 / 3, 0.25], [9, 9], [1 / 6, 0.75]], [[9, 9], [0.5, 0.5], [0.5, 0.5]]], np.float32)
    assert float(place_loss(nx.array(right), names, (4, 6))) == pytest.approx(0, abs=1e-9)
    moved = right + np.array([0.3, 0.4], np.float32)
    assert float(place_loss(nx.array(moved), names, (4, 6))) == pytest.approx(0.25, rel=1e-5)
    assert float(place_loss(nx.array(right), names * 0, (4, 6))) == 0  # no caption names anything


def test_looks(nx):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 2, 9, 8)  # of (B, H, T + I, K) each
    names = torch.tensor(nx.to_numpy(naming(nx.array(IMAGE), nx.array(TEXT))))
    weights = torch.softmax(q[:, 0, 3:] @ k[:, 0].mT / 8**0.5, dim=-1)[:, :, :3]
    shares = [(weights[b, i] * names[b, i]).sum() for b in (0, 1) for i in range(6) if names[b, i].any()]
    found = look_loss(nx.array(q.numpy()), nx.array(k.numpy()), nx.array(names.numpy()))
    assert float(found) == pytest.approx(float(-torch.log(torch.stack(shares)).mean()), rel=1e-4)


def test_the_loss_is_the_flow_s_and_a_share_of_each(nx, data):  # noqa: F811
    flux_cfg = FluxConfig(16, 16, 16, 24, 32, 4.0, 2, 1, 1, (4, 6, 6), guidance_embed=False)
    clip_cfg = replace(tiny_model.CLIP, max_position_embeddings=CLIP_TOKENS, vocab_size=data.clip.vocab_size)
    configs = flux_cfg, clip_cfg, replace(tiny_model.T5, vocab_size=data.t5.vocab_size)
    rng = np.random.default_rng(0)
    shapes = (flux_shapes(flux_cfg), clip_shapes(clip_cfg), t5_shapes(configs[2]), layers_shapes(24, 32))
    parts = [tree_map(nx.array, tiny_model.random_tree(s, rng)) for s in shapes]
    p = dict(zip(("transformer", "clip", "t5"), parts, strict=False)) | parts[-1]
    arrays = [nx.array(x) for x in data.grounded(rng)]

    def loss(*weights):
        grounding = Grounding(*weights, look_in=("double_blocks.0", "single_blocks.0"), label_after="double_blocks.0")
        return float(grounded_loss(p, configs, grounding, *arrays))

    alone = float(flow_loss(p, configs, *arrays[:6]))
    assert loss(0.0, 0.0, 0.0) == pytest.approx(alone, rel=1e-6)
    each = [loss(*row) - alone for row in np.eye(3).tolist()]
    assert all(share > 0.01 for share in each)
    assert each[2] < 4 * np.log(len(LABELS))  # random logits: about that of even odds
    assert loss(0.5, 0.25, 2.0) == pytest.approx(alone + 0.5 * each[0] + 0.25 * each[1] + 2 * each[2], rel=1e-4)


def test_a_grounded_batch_is_the_batch_with_what_its_tokens_stand_for(data):  # noqa: F811
    *batch, labels, shown, named = data.grounded(np.random.default_rng(7))
    drawn, texts, same = data.with_captions(np.random.default_rng(7))
    for one, two, three in zip(batch, same, data.batch(np.random.default_rng(7)), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    np.testing.assert_array_equal(labels, [image_labels(scene) for scene in drawn], strict=True)
    np.testing.assert_array_equal(shown, [image_parts(scene) for scene in drawn], strict=True)
    length = batch[4].shape[1]
    for row, scene, text in zip(named, drawn, texts, strict=True):
        np.testing.assert_array_equal(row, text_parts(scene, text, data.t5, length) if text else 0 * row)
