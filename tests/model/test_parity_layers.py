"""Each part of the transformer against diffusers' own, one by one: what is wrong is found where it is."""

import numpy as np
import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
    FluxTransformerBlock,
)
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.tree import tree, tree_map
from minflux.model.attention import (
    attention,
    attention_weights,
    merge_heads,
    normed_qkv,
    project_heads,
    qk_norm,
    split_heads,
)
from minflux.model.blocks import double_block, final_layer, mlp, single_block
from minflux.model.embeddings import embedding, mlp_embedder, timestep_embedding
from minflux.model.linear import linear
from minflux.model.modulation import chunks, modulate, modulation, modulations
from minflux.model.rope import apply_rope, rope
from tests.compare import COMPONENT
from tests.strategies import batches, flux_configs, tokens

dims = st.integers(1, 17)


def random_ids(batch: int, length: int) -> torch.Tensor:
    """Positions of one sequence for the whole batch, as diffusers has it: (B, L, 3)."""
    return torch.randint(0, 70, (length, 3)).expand(batch, length, 3)


def pair(trial, ids, cfg):
    """The rotation of `ids` as diffusers' blocks take it, and as ours do."""
    theirs = FluxPosEmbed(cfg.theta, list(cfg.axes_dim))(ids[0])
    return theirs, rope(trial.array(ids), cfg.axes_dim, cfg.theta)


def diffusers_tree(trial, module, prefix):
    """A diffusers module's weights, as the tree that BFL's names make."""
    return tree(flux_to_bfl(trial.flat(module, prefix)))


@given(batches, tokens, dims)
def test_embedding(trial, batch, length, width):
    module = trial.random(torch.nn.Embedding(11, width))
    ids = torch.randint(0, 11, (batch, length))
    trial.close("embedding", embedding(trial.array(ids), trial.tree(module)["weight"]), module(ids), 0)


@given(batches, st.sampled_from([2, 32, 256]), st.sampled_from([1.0, 1000.0]))
def test_timestep_embedding(trial, batch, dim, factor):
    t = torch.rand(batch)
    expected = get_timestep_embedding(t * factor, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    got = timestep_embedding(trial.array(t, "float32"), dim, time_factor=factor)
    trial.close("timestep embedding", got, expected, COMPONENT, "float32")


@given(batches, dims, dims)
def test_mlp_embedder(trial, batch, inputs, width):
    module = trial.random(TimestepEmbedding(inputs, width))
    x = trial.randn(batch, inputs)
    p = diffusers_tree(trial, module, "time_text_embed.timestep_embedder.")["time_in"]
    trial.close("MLP embedder", mlp_embedder(p, trial.array(x)), module(x))


@given(batches, tokens, flux_configs())
def test_rope(trial, batch, length, cfg):
    (cos, sin), ours = pair(trial, random_ids(batch, length), cfg)
    for got, expected in zip(ours, (cos, sin), strict=True):
        expected = expected[:, ::2].expand(batch, 1, length, -1)  # diffusers holds each angle twice
        trial.close("RoPE, make", got, expected, COMPONENT, "float32")


@given(batches, tokens, flux_configs())
def test_apply_rope(trial, batch, length, cfg):
    from diffusers.models.embeddings import apply_rotary_emb

    theirs, ours = pair(trial, random_ids(batch, length), cfg)
    x = trial.randn(batch, cfg.num_heads, length, sum(cfg.axes_dim))
    trial.close("RoPE, apply", apply_rope(trial.array(x), ours), apply_rotary_emb(x, theirs))


@given(batches, tokens, st.integers(2, 17), st.integers(1, 3))
def test_split_and_merge_heads(trial, batch, length, head_dim, heads):
    x = trial.randn(batch, length, heads * head_dim)
    got = split_heads(trial.array(x), head_dim)
    trial.check(got, x.unflatten(-1, (heads, head_dim)).transpose(1, 2), 0)
    trial.check(merge_heads(got), x, 0)


@given(batches, tokens, st.integers(1, 3), st.integers(2, 9))
def test_project_heads(trial, batch, length, heads, head_dim):
    module = trial.random(torch.nn.Linear(5, heads * head_dim))
    x = trial.randn(batch, length, 5)
    got = project_heads(trial.tree(module), trial.array(x), head_dim)
    trial.check(got, module(x).unflatten(-1, (heads, head_dim)).transpose(1, 2))


@given(batches, tokens, st.integers(1, 3), st.integers(2, 9))
def test_attention_weights(trial, batch, length, heads, width):
    """PyTorch's attention with one-hot values gives the weights themselves."""
    q, k = (trial.randn(batch, heads, length, width) for _ in "qk")
    one_hot = torch.eye(length).expand(batch, heads, length, length)
    got = attention_weights(trial.array(q), trial.array(k))
    trial.check(got, torch.nn.functional.scaled_dot_product_attention(q, k, one_hot))


def test_attention_notes_what_it_attends_with(nx):
    """In the dict that it is given; v as it is, q and k rotated."""
    rng = np.random.default_rng(0)
    q, k, v = (nx.array(rng.standard_normal((1, 2, 3, 6), np.float32)) for _ in "qkv")
    pe = rope(nx.array(rng.integers(0, 9, (1, 3, 3), np.int32)), (2, 2, 2))
    seen = {"mod": 1}
    attention(q, k, v, pe, seen)
    assert set(seen) == {"mod", "q", "k", "v"}
    assert seen["v"] is v
    np.testing.assert_array_equal(nx.to_numpy(seen["q"]), nx.to_numpy(apply_rope(q, pe)))
    np.testing.assert_array_equal(nx.to_numpy(seen["k"]), nx.to_numpy(apply_rope(k, pe)))


@given(batches, tokens, st.integers(3, 17))
def test_modulated_norm_of_a_double_block(trial, batch, length, width):
    module = trial.random(AdaLayerNormZero(width))
    x, vec = trial.randn(batch, length, width), trial.randn(batch, width)
    p = diffusers_tree(trial, module, "transformer_blocks.0.norm1.")["double_blocks"][0]["img_mod"]
    shift, scale, *rest = chunks(modulation(p, trial.array(vec)), 6)
    expected, *expected_rest = module(x, emb=vec)
    gate, shift2, scale2, gate2 = rest
    trial.close("AdaLN modulation", modulate(trial.array(x), shift, scale), expected)
    for got, wanted in zip((gate, shift2, scale2, gate2), expected_rest, strict=True):
        trial.close("AdaLN modulation", got, wanted[:, None])


@given(batches, tokens, st.integers(3, 17))
def test_modulated_norm_of_a_single_block(trial, batch, length, width):
    module = trial.random(AdaLayerNormZeroSingle(width))
    x, vec = trial.randn(batch, length, width), trial.randn(batch, width)
    p = diffusers_tree(trial, module, "single_transformer_blocks.0.norm.")["single_blocks"][0]["modulation"]
    shift, scale, gate = chunks(modulation(p, trial.array(vec)), 3)
    expected, expected_gate = module(x, emb=vec)
    trial.close("AdaLN modulation", modulate(trial.array(x), shift, scale), expected)
    trial.close("AdaLN modulation", gate, expected_gate[:, None])


@given(batches, flux_configs(), st.integers(1, 4))
def test_modulations_of_all_steps_at_once(trial, batch, cfg, steps):
    """The rows of one step, out of many that are computed together, are what each of diffusers' layers gives for it."""
    module = trial.random(FluxTransformer2DModel(**write_flux_config(cfg)))
    p = tree(flux_to_bfl(trial.flat(module)))
    vec = trial.randn(steps * batch, cfg.hidden_size)
    last = slice(len(vec) - batch, None)
    mod = tree_map(lambda x: x[last], modulations(p, trial.array(vec)))
    silu = torch.nn.functional.silu(vec[last])
    theirs = [
        (mod["double"][-1]["img"], module.transformer_blocks[-1].norm1.linear),
        (mod["double"][0]["txt"], module.transformer_blocks[0].norm1_context.linear),
        (mod["single"][-1], module.single_transformer_blocks[-1].norm.linear),
    ]
    for got, reference in theirs:
        trial.close("AdaLN modulation", got, reference(silu))
    shift, scale = chunks(mod["final"], 2)
    scale_first = module.norm_out.linear(silu).chunk(2, dim=-1)
    for got, expected in zip((scale, shift), scale_first, strict=True):
        trial.close("AdaLN modulation", got, expected[:, None])


@given(batches, tokens, flux_configs())
def test_qk_norm(trial, batch, length, cfg):
    width = sum(cfg.axes_dim)
    query, key = (trial.random(torch.nn.RMSNorm(width, eps=1e-6)) for _ in range(2))
    key.weight.data = trial.rounded(key.weight * 0.5 + 0.2)
    q, k = (trial.randn(batch, cfg.num_heads, length, width) for _ in range(2))
    p = {"query_norm": {"scale": trial.array(query.weight)}, "key_norm": {"scale": trial.array(key.weight)}}
    for got, expected in zip(qk_norm(p, trial.array(q), trial.array(k)), (query(q), key(k)), strict=True):
        trial.close("QK-norm", got, expected)


@given(batches, tokens, flux_configs())
def test_attention_with_norm_and_rope(trial, batch, length, cfg):
    width = cfg.hidden_size
    module = trial.random(
        FluxAttention(width, cfg.num_heads, width // cfg.num_heads, bias=True, eps=1e-6, pre_only=True)
    )
    theirs, ours = pair(trial, random_ids(batch, length), cfg)
    x = trial.randn(batch, length, width)
    p = diffusers_tree(trial, module, "transformer_blocks.0.attn.")["double_blocks"][0]["img_attn"]
    got = attention(*normed_qkv(p["norm"], linear(trial.array(x), **p["qkv"])), ours)
    trial.close("attention", got, module(x, image_rotary_emb=theirs))


@given(batches, tokens, st.integers(2, 17))
def test_mlp(trial, batch, length, width):
    from diffusers.models.attention import FeedForward

    module = trial.random(FeedForward(width, width, activation_fn="gelu-approximate"))
    x = trial.randn(batch, length, width)
    p = diffusers_tree(trial, module, "transformer_blocks.0.ff.")["double_blocks"][0]["img_mlp"]
    trial.close("MLP", mlp(p, trial.array(x)), module(x))


@given(batches, tokens, tokens, flux_configs())
def test_double_block(trial, batch, image_tokens, text_tokens, cfg):
    width = cfg.hidden_size
    module = trial.random(FluxTransformerBlock(width, cfg.num_heads, width // cfg.num_heads))
    theirs, ours = pair(trial, random_ids(batch, text_tokens + image_tokens), cfg)
    img, txt = trial.randn(batch, image_tokens, width), trial.randn(batch, text_tokens, width)
    vec = trial.randn(batch, width)
    p = diffusers_tree(trial, module, "transformer_blocks.0.")["double_blocks"][0]
    mod = {name: modulation(p[f"{name}_mod"], trial.array(vec)) for name in ("img", "txt")}
    got_img, got_txt = double_block(p, trial.array(img), trial.array(txt), mod, ours)
    expected_txt, expected_img = module(img, txt, vec, theirs)
    trial.close("double-stream block", got_img, expected_img)
    trial.close("double-stream block", got_txt, expected_txt)


@given(batches, tokens, tokens, flux_configs())
def test_single_block(trial, batch, image_tokens, text_tokens, cfg):
    width = cfg.hidden_size
    module = trial.random(FluxSingleTransformerBlock(width, cfg.num_heads, width // cfg.num_heads))
    theirs, ours = pair(trial, random_ids(batch, text_tokens + image_tokens), cfg)
    img, txt = trial.randn(batch, image_tokens, width), trial.randn(batch, text_tokens, width)
    vec = trial.randn(batch, width)
    p = diffusers_tree(trial, module, "single_transformer_blocks.0.")["single_blocks"][0]
    mod = modulation(p["modulation"], trial.array(vec))
    got = single_block(p, trial.array(torch.cat([txt, img], dim=1)), mod, ours)
    trial.close("single-stream block", got, torch.cat(module(img, txt, vec, theirs), dim=1))


class LastLayer(torch.nn.Module):
    """diffusers' last two modules, under the names they have in the model."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.proj_out = torch.nn.Linear(width, outputs)

    def forward(self, x, vec):
        return self.proj_out(self.norm_out(x, vec))


@given(batches, tokens, st.integers(3, 17), dims)
def test_final_layer(trial, batch, length, width, outputs):
    module = trial.random(LastLayer(width, outputs))
    x, vec = trial.randn(batch, length, width), trial.randn(batch, width)
    p = diffusers_tree(trial, module, "")["final_layer"]
    mod = modulation(p["adaLN_modulation"], trial.array(vec))
    trial.close("final layer", final_layer(p, trial.array(x), mod), module(x, vec))
