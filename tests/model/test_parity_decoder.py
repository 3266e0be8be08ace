"""The language models that FLUX.2 reads text by, against transformers' `Qwen3ForCausalLM` and `MistralForCausalLM`."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig as TheirMistralConfig
from transformers import MistralForCausalLM, Qwen3ForCausalLM
from transformers import Qwen3Config as TheirQwen3Config

from minflux.errors import ArgumentError
from minflux.model import decoder
from minflux.model.decoder import MISTRAL_SMALL, QWEN3_4B, QWEN3_8B, MistralConfig, Qwen3Config
from tests.compare import MODEL
from tests.strategies import batches, decoder_configs

THEIRS = {
    Qwen3Config: (TheirQwen3Config, Qwen3ForCausalLM, {}),
    MistralConfig: (TheirMistralConfig, MistralForCausalLM, {"sliding_window": None}),
}
KINDS = pytest.mark.parametrize("kind", THEIRS)
SIDES = pytest.mark.parametrize("side", ["left", "right"])
lengths = st.integers(1, 40)


def oracle(trial, cfg):
    """transformers' model of these sizes, with random weights."""
    config, model, rest = THEIRS[type(cfg)]
    sizes = asdict(cfg)
    rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
    return trial.random(model(config(**sizes, rope_parameters=rope, **rest)))


def padded(batch: int, length: int, side: str) -> torch.Tensor:
    """A mask of texts of random lengths, at least one token each."""
    counts = torch.randint(1, length + 1, (batch, 1))
    place = torch.arange(length)
    return (place >= length - counts if side == "left" else place < counts).long()


@KINDS
@SIDES
@given(data=st.data(), batch=batches, length=lengths)
def test_hidden_states(trial, kind, side, data, batch, length):
    cfg = data.draw(decoder_configs(kind))
    module = oracle(trial, cfg)
    ids, mask = torch.randint(0, cfg.vocab_size, (batch, length)), padded(batch, length, side)
    layers = data.draw(st.lists(st.integers(0, cfg.num_hidden_layers - 1), min_size=1, max_size=3))
    states = module(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    arrays = (trial.array(x) for x in (ids, mask))
    got = decoder.decoder_hidden_states(trial.tree(module), cfg, *arrays, layers)
    trial.close(f"{kind.__name__[:-6]} states", got, torch.cat([states[count] for count in layers], -1), MODEL)


@KINDS
@given(data=st.data(), batch=batches, length=st.integers(1, 12))
def test_a_layer(trial, kind, data, batch, length):
    cfg = data.draw(decoder_configs(kind))
    module = oracle(trial, cfg).model
    x, mask = trial.randn(batch, length, cfg.hidden_size), torch.ones(batch, length).long()
    pe = module.rotary_emb(x, torch.arange(length)[None])
    expected = module.layers[1](x, position_embeddings=pe)  # without a mask it is causal
    ids = trial.array(mask)
    rest = decoder.positions(ids, cfg), decoder.visible(ids)
    got = decoder.decoder_layer(trial.tree(module.layers[1]), cfg, trial.array(x), *rest)
    trial.close(f"{kind.__name__[:-6]} layer", got, expected)


def small(trial, kind=Qwen3Config):
    """A model of four layers, its weights as our tree, and two rows of tokens for it, the second padded in front."""
    cfg = kind(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    return cfg, trial.tree(oracle(trial, cfg)), trial.array(torch.randint(0, 20, (2, 4))), trial.array(mask)


def test_no_more_layers_are_run_than_are_asked_for(trial):
    cfg, p, ids, mask = small(trial)
    p["model"]["layers"] = p["model"]["layers"][:2]
    names = []
    got = decoder.decoder_hidden_states(p, cfg, ids, mask, [2, 0], lambda name, seen: names.append(name))
    assert names == ["model.layers.0", "model.layers.1"]
    assert got.shape == (2, 4, 32)
    trial.check(got[..., 16:], trial.tensor(p["model"]["embed_tokens"]["weight"][ids]), 0)


@pytest.mark.parametrize("layers", [[], [-1], [1, 4]])
def test_layers_that_there_are_not(trial, layers):
    cfg, p, ids, mask = small(trial)
    with pytest.raises(ArgumentError, match=r"layers: expected numbers from 0 to 3, got \["):
        decoder.decoder_hidden_states(p, cfg, ids, mask, layers)


def test_a_later_token_and_padding_change_nothing(trial):
    cfg, p, ids, mask = small(trial, MistralConfig)
    other = trial.nx.array(trial.nx.to_numpy(ids).copy())
    other[0, 3] = (other[0, 3] + 1) % 20
    other[1, 0] = (other[1, 0] + 1) % 20
    states, others = (decoder.decoder_hidden_states(p, cfg, x, mask, [3]) for x in (ids, other))
    trial.check(states[0, :3], trial.tensor(others[0, :3]), 0)
    trial.check(states[1, 2:], trial.tensor(others[1, 2:]), 0)
    assert not bool((states[0, 3] == others[0, 3]).all())


def test_what_flux2_takes():
    assert QWEN3_4B.state_layers == QWEN3_8B.state_layers == (9, 18, 27)
    assert MISTRAL_SMALL.state_layers == (10, 20, 30)
    assert [cfg.text_width for cfg in (QWEN3_4B, QWEN3_8B, MISTRAL_SMALL)] == [7680, 12288, 15360]
