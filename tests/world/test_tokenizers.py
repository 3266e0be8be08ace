"""The world's tokenizers: whole words for what it knows, letters for what is written, and transformers agrees."""

from itertools import islice

import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from minflux.inference.text import T5_UNKNOWN, Tokenizer
from minflux.world import tokenizers
from minflux.world.captions import stream
from minflux.world.vocabulary import known_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    tokenizers.train_tokenizers(folder)
    return folder


@pytest.fixture(scope="module")
def t5(folder):
    return Tokenizer.from_folder(folder / "tokenizer_2")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a cat", ["▁a", "▁cat"]),
        ("Two stars.", ["▁Two", "▁stars", "."]),
        ("A sign that says STAR", ["▁", "A", "▁sign", "▁that", "▁says", "▁", "S", "T", "A", "R"]),
        ('saying "star"', ["▁saying", "▁", '"', "s", "t", "a", "r", '"']),
        ("3 kitties", ["▁3", "▁kitties"]),
        ("a unicorn", ["▁a", "▁", "u", "n", "i", "c", "o", "r", "n"]),
    ],
)
def test_known_words_are_whole_and_written_words_are_spelled(t5, text, pieces):
    assert t5.backend.encode(text, add_special_tokens=False).tokens == pieces


def test_every_known_word_is_one_token(t5):
    for word in known_words():
        for text in {word, tokenizers.capital(word)}:
            assert t5.backend.encode(text, add_special_tokens=False).tokens == ["▁" + text]


def test_all_of_ascii_can_be_encoded(t5):
    visible = "".join(map(chr, range(33, 127)))
    assert T5_UNKNOWN not in t5.backend.encode(visible).tokens


def test_no_caption_is_cut_at_64_tokens(folder):
    for name in ("tokenizer", "tokenizer_2"):
        backend = Tokenizer.from_folder(folder / name).backend
        backend.no_padding()
        assert max(len(backend.encode(text).ids) for _, text in islice(stream(8), 2000)) <= 40


@pytest.mark.parametrize(("name", "theirs"), [("tokenizer", CLIPTokenizer), ("tokenizer_2", T5Tokenizer)])
def test_transformers_reads_the_same_ids(folder, name, theirs):
    ours, theirs = Tokenizer.from_folder(folder / name), theirs.from_pretrained(folder / name)
    texts = [text for _, text in islice(stream(9), 300)] + ["", "Über ~ STARSHIP 'x'", "A"]
    expected = theirs(texts, padding="max_length", max_length=48, truncation=True, return_tensors="np").input_ids
    assert (ours(texts, 48) == expected).all()
    assert theirs.model_max_length == ours.max_length == {"tokenizer": 77, "tokenizer_2": 512}[name]
