"""Both text encoders against transformers' `T5EncoderModel` and `CLIPTextModel`."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel
from transformers import T5Config as TheirT5Config
from transformers.models.t5.modeling_t5 import T5Attention, T5DenseGatedActDense

from minflux.checkpoints.components.clip import alias as clip_alias
from minflux.checkpoints.components.clip import write_config as write_clip_config
from minflux.checkpoints.components.sd3 import SD3_CLIP_G
from minflux.checkpoints.components.t5 import write_config as write_t5_config
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import tree
from minflux.model import clip, t5
from tests import tiny_model
from tests.compare import MODEL, relative_error
from tests.strategies import batches, clip_configs, t5_configs

lengths = st.integers(1, 40)


def their_t5(cfg):
    config = TheirT5Config(**write_t5_config(cfg))
    config._attn_implementation = "eager"
    return config


def random_t5(trial, module, cfg):
    """Random weights; those of q are smaller by √d_kv, as T5 begins: it has no other softmax scale."""
    for name, weight in trial.random(module).named_parameters():
        if name.endswith("q.weight"):
            weight.data = trial.rounded(weight * cfg.d_kv**-0.5)
    return module


@given(t5_configs(), st.integers(1, 200))
def test_position_bias(trial, cfg, length):
    module = random_t5(trial, T5Attention(their_t5(cfg), has_relative_attention_bias=True), cfg)
    got = t5.position_bias(trial.array(module.relative_attention_bias.weight), length, cfg)
    trial.close("T5 position bias", got, module.compute_bias(length, length, device="cpu"), 0)


@given(t5_configs(), batches, st.integers(1, 12))
def test_t5_attention(trial, cfg, batch, length):
    module = random_t5(trial, T5Attention(their_t5(cfg), has_relative_attention_bias=True), cfg)
    x = trial.randn(batch, length, cfg.d_model)
    bias = t5.position_bias(trial.array(module.relative_attention_bias.weight), length, cfg)
    got = t5.self_attention(trial.tree(module), trial.array(x), bias, cfg.d_kv)
    trial.close("T5 attention", got, module(x)[0])


@given(t5_configs(), batches, st.integers(1, 12))
def test_t5_gated_mlp(trial, cfg, batch, length):
    module = trial.random(T5DenseGatedActDense(their_t5(cfg)))
    x = trial.randn(batch, length, cfg.d_model)
    trial.close("T5 gated MLP", t5.gated_mlp(trial.tree(module), trial.array(x)), module(x))


@given(t5_configs(), batches, lengths)
def test_t5_encoder(trial, cfg, batch, length):
    module = random_t5(trial, T5EncoderModel(their_t5(cfg)), cfg)
    ids = torch.randint(0, cfg.vocab_size, (batch, length))
    got = t5.t5_encoder(trial.tree(module), cfg, trial.array(ids))
    trial.close("T5 encoder", got, module(ids).last_hidden_state, MODEL)


def clip_oracle(trial, cfg):
    """transformers' CLIP of these sizes with random weights, and its weights as our tree."""
    config = CLIPTextConfig(**write_clip_config(cfg))
    config._attn_implementation = "eager"
    module = trial.random(CLIPTextModel(config))
    return module, tree({clip_alias(name): w for name, w in trial.flat(module).items()})


def text_with_ends(cfg, batch: int, length: int, places: list[int]) -> torch.Tensor:
    """Random ids, in each row an end-of-text token, which some rows have again later (CLIP pads with it)."""
    ids = torch.randint(0, cfg.eos_token_id, (batch, length))
    for row, place in zip(ids, places, strict=False):
        row[place % length] = cfg.eos_token_id
        row[-1] = cfg.eos_token_id
    return ids


@given(clip_configs(), batches, st.integers(1, 9), st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_clip_encoder(trial, cfg, batch, length, places):
    module, p = clip_oracle(trial, cfg)
    ids = text_with_ends(cfg, batch, length, places)
    expected = module(ids)
    states, pooled = clip.clip_encoder(p, cfg, trial.array(ids))
    trial.close("CLIP states", states, expected.last_hidden_state, MODEL)
    trial.close("CLIP pooled", pooled, expected.pooler_output, MODEL)


@given(clip_configs(), batches, st.integers(1, 9), st.integers(8, 11), st.sampled_from(["quick_gelu", "gelu"]))
def test_a_projected_clip(trial, cfg, batch, length, width, act):
    """To no fewer than 8 numbers: one alone may be a small difference of large ones, and far off in bfloat16."""
    layers = max(2, cfg.num_hidden_layers)
    cfg = replace(cfg, hidden_act=act, projection_dim=width, num_hidden_layers=layers)
    config = CLIPTextConfig(**SD3_CLIP_G.write_config(cfg))
    config._attn_implementation = "eager"
    module = trial.random(CLIPTextModelWithProjection(config))
    p = tree({SD3_CLIP_G.alias(name): w for name, w in trial.flat(module).items()})
    ids = text_with_ends(cfg, batch, length, [0, 1, 2])
    expected = module(ids, output_hidden_states=True)
    states, pooled = clip.projected_clip(p, cfg, trial.array(ids))
    trial.close("CLIP states before the last layer", states, expected.hidden_states[-2], MODEL)
    trial.close("CLIP pooled, projected", pooled, expected.text_embeds, MODEL)


@given(clip_configs(), batches, st.integers(1, 9))
def test_clip_attention_sees_no_later_token(trial, cfg, batch, length):
    module, p = clip_oracle(trial, cfg)
    layer = module.encoder.layers[0].self_attn
    x = trial.randn(batch, length, cfg.hidden_size)
    forbidden = torch.full((1, 1, length, length), -torch.inf).triu(1)
    mask = clip.causal_mask(trial.array(x), length)
    assert str(mask.dtype).endswith(trial.dtype)
    weights = p["text_model"]["encoder"]["layers"][0]["self_attn"]
    got = clip.self_attention(weights, trial.array(x), cfg.num_attention_heads, mask)
    trial.close("CLIP attention", got, layer(x, attention_mask=forbidden)[0])


@given(batches, st.integers(1, 20))
def test_quick_gelu(trial, batch, width):
    from transformers.activations import QuickGELUActivation

    x = trial.randn(batch, width, scale=3.0)
    trial.close("quick GELU", clip.quick_gelu(trial.array(x)), QuickGELUActivation()(x))


def test_t5_in_float16_keeps_what_overflows_in_float32(nx, tmp_path):
    """As T5-XXL's, this wo gives more than 65504; transformers holds it in float32, and so do we."""
    cfg = replace(tiny_model.T5, num_layers=2)
    theirs = T5EncoderModel(their_t5(cfg))
    for name, weight in theirs.named_parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(name)))
        if name.endswith("wo.weight"):
            weight.data *= 3000
    theirs.save_pretrained(tmp_path / "text_encoder_2")
    theirs = T5EncoderModel.from_pretrained(tmp_path / "text_encoder_2", dtype=torch.float16)
    assert theirs.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    ids = torch.arange(12)[None]
    seen = []
    theirs.encoder.block[0].register_forward_hook(lambda block, x, y: seen.append(y[0]))
    expected = theirs(ids).last_hidden_state
    assert seen[0].abs().max() > 65504
    config, p = load_component(tmp_path, "text_encoder_2", nx, "float16")
    got = t5.t5_encoder(p, config, nx.array(ids.numpy()))
    assert str(got.dtype).endswith("float16")
    assert relative_error(nx.to_numpy(nx.as_float32(got)), expected.detach().float().numpy()) < 2**-9
