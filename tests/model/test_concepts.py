"""Concept attention against its formula in PyTorch, on diffusers' layers; and that the image stays what it is."""

import numpy as np
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.nn.functional import scaled_dot_product_attention

from minflux.model.concepts import Concepts
from minflux.model.flux import FluxConfig, flux
from minflux.model.latents import image_ids, text_ids
from tests.compare import MODEL
from tests.model.test_parity_flux import inputs, oracle

CONFIG = FluxConfig(
    in_channels=4, out_channels=4, vec_in_dim=5, context_in_dim=7, hidden_size=72, num_heads=3, depth=3,
    depth_single_blocks=1, axes_dim=(8, 8, 8), guidance_embed=False,
)  # fmt: skip
TEXT, ROWS, COLUMNS, COUNT = 5, 2, 3, 4


def heads(x: torch.Tensor) -> torch.Tensor:
    """(B, L, D) as (B, L, H, K)."""
    return x.unflatten(-1, (CONFIG.num_heads, -1))


def attend(q, k, v) -> torch.Tensor:
    """Attention of (B, L, H, K), its heads side by side: (B, L, D)."""
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)


def concepts_in_torch(block, concepts, img, txt, temb, rotary):
    """The concepts after a block of diffusers, and the scores o_c · o_i in it."""
    attn = block.attn
    img, txt = block.norm1(img, emb=temb)[0], block.norm1_context(txt, emb=temb)[0]
    own, gate, shift, scale, gate_mlp = block.norm1_context(concepts, emb=temb)
    q = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(txt))), attn.norm_q(heads(attn.to_q(img)))], 1)
    k = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(txt))), attn.norm_k(heads(attn.to_k(img)))], 1)
    v = torch.cat([heads(attn.add_v_proj(txt)), heads(attn.to_v(img))], 1)
    q, k = (apply_rotary_emb(x, rotary, sequence_dim=1) for x in (q, k))
    image = attend(q[:, TEXT:], k, v)
    concept = attend(
        attn.norm_added_q(heads(attn.add_q_proj(own))),
        torch.cat([attn.norm_added_k(heads(attn.add_k_proj(own))), k[:, TEXT:]], 1),
        torch.cat([heads(attn.add_v_proj(own)), v[:, TEXT:]], 1),
    )
    concepts = concepts + gate[:, None] * attn.to_add_out(concept)
    hidden = block.norm2_context(concepts) * (1 + scale[:, None]) + shift[:, None]
    return concepts + gate_mlp[:, None] * block.ff_context(hidden), concept @ image.mT


def test_scores_and_maps(trial):
    torch.manual_seed(0)
    module, p = oracle(trial, CONFIG)
    img, txt, t, y = inputs(trial, CONFIG, 2, ROWS, COLUMNS, TEXT)
    tokens, entering = trial.randn(COUNT, CONFIG.context_in_dim), []
    for block in module.transformer_blocks:
        block.register_forward_pre_hook(lambda block, args, how: entering.append(how), with_kwargs=True)
    ids = image_ids(trial.array(img), 2 * ROWS, 2 * COLUMNS), text_ids(trial.array(txt))
    module(img, txt, y, t, *(trial.tensor(positions)[0] for positions in ids))

    concepts, scores = module.context_embedder(tokens).expand(2, -1, -1), []
    for block, seen in zip(module.transformer_blocks, entering, strict=True):
        streams = seen["hidden_states"], seen["encoder_hidden_states"]
        concepts, score = concepts_in_torch(block, concepts, *streams, seen["temb"], seen["image_rotary_emb"])
        scores.append(score)

    listener = Concepts(p, trial.array(tokens))
    arrays = trial.array(img), ids[0], trial.array(txt), ids[1], trial.array(t, "float32"), trial.array(y)
    out = flux(p, CONFIG, *arrays, on_block=listener, keep_qkv=True)
    assert len(listener.scores) == len(scores) == CONFIG.depth
    for ours, theirs in zip(listener.scores, scores, strict=True):
        got = ours.astype(arrays[0].dtype)
        trial.close("concept attention", got, theirs, MODEL)
    if trial.dtype == "float32":  # softmax of scores as large as these doubles what bfloat16 rounds
        mean = torch.stack([score.softmax(dim=1) for score in scores]).mean(0)
        assert np.abs(trial.nx.to_numpy(listener.maps()) - mean.numpy()).max() < 1e-3
    np.testing.assert_allclose(trial.nx.to_numpy(listener.maps()).sum(axis=1), 1, atol=1e-5)
    trial.check(flux(p, CONFIG, *arrays), trial.tensor(out), 0)  # the image stays what it is


def test_each_step_begins_with_the_concepts_anew(trial):
    _, p = oracle(trial, CONFIG)
    img, txt, t, y = inputs(trial, CONFIG, 1, ROWS, COLUMNS, TEXT)
    ids = image_ids(trial.array(img), 2 * ROWS, 2 * COLUMNS), text_ids(trial.array(txt))
    arrays = trial.array(img), ids[0], trial.array(txt), ids[1], trial.array(t, "float32"), trial.array(y)
    listener = Concepts(p, trial.array(trial.randn(COUNT, CONFIG.context_in_dim)))
    for _ in range(2):
        flux(p, CONFIG, *arrays, on_block=listener, keep_qkv=True)
    first, again = listener.scores[: CONFIG.depth], listener.scores[CONFIG.depth :]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(trial.nx.to_numpy(one), trial.nx.to_numpy(other))
