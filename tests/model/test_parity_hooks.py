"""What `on_block` shows of a model while it runs, against the same arrays of diffusers' and transformers' models."""

import numpy as np
import pytest
import torch
from diffusers.models.transformers import transformer_flux
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5EncoderModel

from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.tree import tree_map
from minflux.model import clip, t5
from minflux.model.flux import FluxConfig, flux
from minflux.model.latents import image_ids, text_ids
from minflux.model.modulation import modulations
from tests import tiny_model
from tests.compare import MODEL
from tests.model.test_parity_flux import inputs, oracle
from tests.model.test_parity_text import clip_oracle, random_t5, their_t5
from tests.strategies import batches, clip_configs, t5_configs

CONFIG = FluxConfig(
    in_channels=4, out_channels=4, vec_in_dim=5, context_in_dim=7, hidden_size=72, num_heads=3, depth=2,
    depth_single_blocks=3, axes_dim=(8, 8, 8), guidance_embed=False,
)  # fmt: skip


class Diary(list):
    """An `on_block` that keeps all that it is told."""

    def __call__(self, name, seen):
        self.append((name, seen))

    @property
    def names(self):
        return [name for name, _ in self]


@pytest.fixture
def attended(monkeypatch):
    """The q, k and v, each (B, L, H, K), of every attention that diffusers computes."""
    found, compute = [], transformer_flux.dispatch_attention_fn

    def noting(query, key, value, *args, **kwargs):
        found.append((query, key, value))
        return compute(query, key, value, *args, **kwargs)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", noting)
    return found


def watched_blocks(module) -> list:
    """A list that the output (txt, img) of every block of diffusers' model is added to while it runs."""
    found: list = []
    for block in [*module.transformer_blocks, *module.single_transformer_blocks]:
        block.register_forward_hook(lambda block, args, output: found.append(output))
    return found


def test_what_a_transformer_shows(trial, attended):
    """Of every block the streams, the modulation, and the q, k and v that attention is computed with."""
    torch.manual_seed(0)
    module, p = oracle(trial, cfg := CONFIG)
    img, txt, t, y = inputs(trial, cfg, 2, 2, 3, 5)
    ids = image_ids(trial.array(img), 4, 6), text_ids(trial.array(txt))
    streams, diary = watched_blocks(module), Diary()
    module(img, txt, y, t, *(trial.tensor(positions)[0] for positions in ids))
    arrays = trial.array(img), ids[0], trial.array(txt), ids[1], trial.array(t, "float32"), trial.array(y)
    out = flux(p, cfg, *arrays, on_block=diary, keep_qkv=True)

    double = [f"double_blocks.{i}" for i in range(cfg.depth)]
    assert diary.names == double + [f"single_blocks.{i}" for i in range(cfg.depth_single_blocks)]
    silu = torch.nn.functional.silu(module.time_text_embed(t * 1000, y))
    for i, (name, seen) in enumerate(diary):
        their_txt, their_img = streams[i]
        trial.check(seen["img"], their_img, MODEL)
        trial.check(seen["txt"], their_txt, MODEL)
        for letter, theirs in zip("qkv", attended[i], strict=True):
            trial.check(seen[letter], theirs.transpose(1, 2), MODEL)
        if name in double:
            trial.check(seen["mod"]["img"], module.transformer_blocks[i].norm1.linear(silu), MODEL)
            trial.check(seen["mod"]["txt"], module.transformer_blocks[i].norm1_context.linear(silu), MODEL)
        else:
            trial.check(seen["mod"], module.single_transformer_blocks[i - cfg.depth].norm.linear(silu), MODEL)

    silent = Diary()  # to listen changes nothing, and q, k and v are there only when they are asked for
    trial.check(flux(p, cfg, *arrays, on_block=silent), trial.tensor(out), 0)
    assert silent.names == diary.names
    assert all(set(seen) == {"img", "txt", "mod"} for _, seen in silent)
    trial.check(flux(p, cfg, *arrays), trial.tensor(out), 0)


def test_modulations_are_shown_block_by_block(nx):
    p = tree_map(nx.array, tiny_model.random_tree(flux_shapes(CONFIG), np.random.default_rng(0)))
    diary = Diary()
    mod = modulations(p, nx.array(np.ones((2, CONFIG.hidden_size), np.float32)), diary)
    double, single = ([f"{kind}_blocks.{i}" for i in range(len(mod[kind]))] for kind in ("double", "single"))
    assert diary.names == [*double, *single, "final_layer"]
    for (_, seen), expected in zip(diary, [*mod["double"], *mod["single"], mod["final"]], strict=True):
        assert set(seen) == {"mod"}
        assert seen["mod"] is expected


@given(t5_configs(), batches, st.integers(1, 9))
def test_what_t5_shows(trial, cfg, batch, length):
    module, diary = random_t5(trial, T5EncoderModel(their_t5(cfg)), cfg), Diary()
    ids = torch.randint(0, cfg.vocab_size, (batch, length))
    t5.t5_encoder(trial.tree(module), cfg, trial.array(ids), diary)
    assert diary.names == [f"encoder.block.{i}" for i in range(cfg.num_layers)]
    after = module(ids, output_hidden_states=True).hidden_states[1:-1]  # the last of them is normed already
    for (_, seen), expected in zip(diary, after, strict=False):
        trial.check(seen["txt"], expected, MODEL)


@given(clip_configs(), batches, st.integers(1, 9))
def test_what_clip_shows(trial, cfg, batch, length):
    (module, p), diary = clip_oracle(trial, cfg), Diary()
    ids = torch.randint(0, cfg.vocab_size, (batch, length))
    clip.clip_encoder(p, cfg, trial.array(ids), diary)
    assert diary.names == [f"text_model.encoder.layers.{i}" for i in range(cfg.num_hidden_layers)]
    after = module(ids, output_hidden_states=True).hidden_states[1:]
    for (_, seen), expected in zip(diary, after, strict=True):
        trial.check(seen["txt"], expected, MODEL)
