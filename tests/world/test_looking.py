"""Where the transformer looks for a word: which tokens it is, what heat is, and in which half it lies."""

from dataclasses import replace

import numpy as np
import pytest

from minflux.errors import ArgumentError
from minflux.inference.text import Tokenizer
from minflux.model.attention import attention_weights
from minflux.world.looking import half_share, heat_maps, looks, word_tokens
from minflux.world.tokenizers import train_tokenizers
from tests import tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizers(folder)
    return Tokenizer.from_folder(folder / "tokenizer_2")


@pytest.mark.parametrize(
    ("prompt", "word"),
    [("a cat left of an apple", "cat"), ("a carrot above a car", "car"), ("a small sunflower on white", "sunflower")],
)
def test_a_word_is_found_among_the_tokens(tokenizer, prompt, word):
    places = word_tokens(tokenizer, prompt, word)
    ids = tokenizer([prompt])[0]
    assert tokenizer.backend.decode([int(ids[i]) for i in places]).strip() == word


def test_a_word_that_is_not_there_is_named(tokenizer):
    with pytest.raises(ArgumentError, match="'car' is not in the prompt 'a carrot'"):
        word_tokens(tokenizer, "a carrot", "car")


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (2.0, 4)])
def test_heat_is_the_attention_paid_to_a_word(guidance, rows):
    pipe = tiny_model.pipeline()
    prompts, words, seen_heat = ["a cat", "an apple left of a dog"], ["cat", "dog"], []

    def listen(name, seen):
        if name == "single_blocks.1":
            weights = np.asarray(attention_weights(seen["q"], seen["k"]))
            assert len(weights) == rows
            length = seen["txt"].shape[1]
            seen_heat.append([weights[i, :, length:, t].sum(0) for i, t in enumerate(places)])

    places = [word_tokens(pipe.t5_tokenizer, *pair) for pair in zip(prompts, words, strict=True)]
    pipe(prompts, seed=3, steps=2, width=64, height=64, guidance=guidance, on_block=listen)
    found = heat_maps(pipe, prompts, words, seed=3, side=64, steps=2, guidance=guidance)["single_blocks.1"]
    for i in range(2):
        expected = np.mean([step[i] for step in seen_heat], axis=0)
        np.testing.assert_allclose(found[i].reshape(expected.shape), expected, rtol=1e-5)


@pytest.mark.parametrize(("axis", "row", "column"), [("horizontal", 1, 3), ("vertical", 3, 1)])
def test_the_half_of_an_item(axis, row, column):
    heat = np.zeros((1, 4, 4))
    heat[0, row, column] = 3.0
    heat[0, 0, 0] = 1.0
    np.testing.assert_allclose(half_share(heat, axis, second=True), [0.75])
    np.testing.assert_allclose(half_share(heat, axis, second=False), [0.25])


def test_random_weights_look_anywhere(tokenizer):
    pipe = tiny_model.pipeline()
    cfg = replace(tiny_model.T5, vocab_size=tokenizer.vocab_size)
    p = tiny_model.random_tree(tiny_model.t5_shapes(cfg), np.random.default_rng(0))
    shares = looks(replace(pipe, t5=(cfg, p), t5_tokenizer=tokenizer), count=4, steps=1)
    assert len(shares) == 3 * tiny_model.FLUX.num_heads
    assert all(0.2 < share < 0.8 for share in shares.values())
