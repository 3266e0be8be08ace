"""SD3's transformer against diffusers' `SD3Transformer2DModel`, of each of the three kinds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.sd3 import SD3_TRANSFORMER, sd3_shapes
from minflux.checkpoints.tree import tree
from minflux.model.sd3 import SD3_PRESETS, positions, sd3, unpatch
from tests.compare import MODEL
from tests.strategies import batches, sd3_configs, tokens

sides = st.integers(1, 5)
KINDS = {
    "SD3": {},
    "SD3.5-large": {"qk_norm": True},
    "SD3.5-medium": {"qk_norm": True, "dual_attention_layers": (0, 1)},
}


def oracle(trial, cfg):
    """diffusers' model of these sizes with random weights and positions, and its weights as our tree."""
    module = trial.random(SD3Transformer2DModel.from_config(SD3_TRANSFORMER.write_config(cfg)))
    module.pos_embed.pos_embed = trial.randn(*module.pos_embed.pos_embed.shape)
    return module, tree(SD3_TRANSFORMER.folder_naming.load(trial.flat(module), cfg))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), batch=batches, rows=sides, cols=sides, text_tokens=tokens)
def test_sd3(trial, kind, data, batch, rows, cols, text_tokens):
    cfg = data.draw(sd3_configs(**KINDS[kind]))
    module, p = oracle(trial, cfg)
    latents = trial.randn(batch, cfg.in_channels, 2 * rows, 2 * cols)
    txt, y = trial.randn(batch, text_tokens, cfg.context_in_dim), trial.randn(batch, cfg.vec_in_dim)
    t = torch.rand(batch)
    expected = module(latents, txt, y, 1000 * t, return_dict=False)[0]
    channels_last = trial.array(latents.permute(0, 2, 3, 1).contiguous())
    got = sd3(p, cfg, channels_last, trial.array(txt), trial.array(t, "float32"), trial.array(y))
    trial.close("SD3 transformer", got, expected.permute(0, 2, 3, 1), MODEL)


@given(st.integers(1, 8), sides, sides, st.integers(1, 7))
def test_positions_are_the_middle_of_the_table(trial, side, rows, cols, width):
    from diffusers.models.embeddings import PatchEmbed

    module = PatchEmbed(2, 2, 2, 1, 4 * width, pos_embed_max_size=side)
    table = trial.array(module.pos_embed)
    if max(rows, cols) > side:
        with pytest.raises(ValueError, match="table of positions"):
            positions(table, rows, cols)
    else:
        expected = module.cropped_pos_embed(2 * rows, 2 * cols)
        trial.close("SD3 positions", positions(table, rows, cols), trial.rounded(expected), 0)


def test_a_token_goes_out_as_row_column_channel(nx):
    tokens = nx.array(np.arange(24, dtype=np.float32).reshape(1, 2, 12))  # two of 2×2×3
    got = nx.to_numpy(unpatch(tokens, 2, 4))
    np.testing.assert_array_equal(got[0, 0, :, 1], [1, 4, 13, 16])
    np.testing.assert_array_equal(got[0, 1, :, 0], [6, 9, 18, 21])


@given(data=st.data())
def test_on_block_sees_every_block_with_its_queries_and_keys(trial, data):
    cfg = data.draw(sd3_configs())
    _, p = oracle(trial, cfg)
    arrays = [trial.randn(1, *shape) for shape in ((4, 6, cfg.in_channels), (3, cfg.context_in_dim))]
    t, y, heard = trial.array(torch.rand(1), "float32"), trial.array(trial.randn(1, cfg.vec_in_dim)), {}
    sd3(p, cfg, *map(trial.array, arrays), t, y, heard.__setitem__, keep_qkv=True)
    assert list(heard) == [f"double_blocks.{i}" for i in range(cfg.depth)]
    for seen in heard.values():
        assert seen["img"].shape == (1, 6, cfg.hidden_size)
        assert [seen[name].shape for name in "qkv"] == 3 * [(1, cfg.num_heads, 9, cfg.head_dim)]


@pytest.mark.parametrize("name", SD3_PRESETS)
def test_as_many_numbers_as_diffusers_has(name):
    cfg = SD3_PRESETS[name]
    with torch.device("meta"):
        module = SD3Transformer2DModel.from_config(SD3_TRANSFORMER.write_config(replace(cfg, pos_embed_max_size=1)))
    shapes = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    ours = SD3_TRANSFORMER.file_shapes(SD3_TRANSFORMER.folder_naming, replace(cfg, pos_embed_max_size=1))
    assert ours == shapes
    table = (cfg.pos_embed_max_size**2 - 1) * cfg.hidden_size
    assert sum(map(math.prod, sd3_shapes(cfg).values())) == sum(map(math.prod, shapes.values())) + table
