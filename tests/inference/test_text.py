"""Tokenizers: the same ids as transformers, from the same folders, and ours trained the same each time."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5TokenizerFast

from minflux import zoo
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.text import PromptTruncated, Tokenizer
from minflux.world import tokenizers as training
from minflux.world import tokenizing
from minflux.world.captions import stream

TINY = zoo.FOLDER / "tiny"
CLIP_FOLDER, T5_FOLDER = TINY / "tokenizer", TINY / "tokenizer_2"
KINDS = pytest.mark.parametrize("kind", ["clip", "t5", "bare clip", "bare clip, old settings", "t5 with sentinels"])
quiet = pytest.mark.filterwarnings("ignore::minflux.inference.text.PromptTruncated")

AWKWARD = [
    "",
    " ",
    "\t\n",
    "A CAT",
    "a cat\u3000 left\xa0of\r\nan apple ",
    "<|endoftext|>",
    "<|ENDOFTEXT|> a <|StartOfText|>b",
    "<pad> </s> <unk> </S> <extra_id_7>",
    "🐱 + 👩‍👩‍👧 = ☂️?!",
    "É e\u0301 E\u0301 İ ß ﬁ Ω 漢字 שלום",
    "it's 2024, they'll 3½ ²",
    "x\x00y\x01 \x7f",
    "▁a ▁ b▁c",
    "\udbff\udfff".encode("utf-16", "surrogatepass").decode("utf-16"),
    "zyzzyva " * 200,
    "a" * 3000,
]
PIECES = [*sorted(tokenizing.clip_words(["a cat left of an apple, on a blue background: small"])), *AWKWARD]
prompts = st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, "Cat", "LARGE", "  "])).map(" ".join))


# ------------------------------------------------------------------------------- the same as transformers


def bare_clip(folder: Path, special_settings: dict) -> None:
    """A folder such as FLUX.1's `tokenizer/`: vocabulary and merges, no tokenizer.json."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(CLIP_FOLDER / name, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, **special_settings}))


def added(content: str) -> dict:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **flags}


def make_bare_clip(folder: Path) -> None:
    tokens = {"666": added("<|startoftext|>"), "667": added("<|endoftext|>")}
    tokens = {i: {**token, "special": True} for i, token in tokens.items()}
    names = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    bare_clip(folder, {"added_tokens_decoder": tokens, "bos_token": "<|startoftext|>", **names})


def make_old_bare_clip(folder: Path) -> None:
    kind = {"__type": "AddedToken"}
    names = {name: {**kind, **added("<|endoftext|>")} for name in ("eos_token", "unk_token")}
    start = {**kind, **added("<|startoftext|>")}
    bare_clip(folder, {"bos_token": start, "pad_token": "<|endoftext|>", **names})


def make_t5_with_sentinels(folder: Path) -> None:
    pieces = tokenizing.train_unigram(training.t5_pieces(training.training_captions()[:500]))
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    T5TokenizerFast(vocab=pieces, model_max_length=512).save_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict:
    """Ours and transformers' tokenizer for each kind of folder."""
    folders = {"clip": CLIP_FOLDER, "t5": T5_FOLDER}
    makers = {
        "bare clip": make_bare_clip,
        "bare clip, old settings": make_old_bare_clip,
        "t5 with sentinels": make_t5_with_sentinels,
    }
    for kind, make in makers.items():
        folders[kind] = tmp_path_factory.mktemp("folder")
        make(folders[kind])
    theirs = {kind: (T5TokenizerFast if "t5" in kind else CLIPTokenizer) for kind in folders}
    return {k: (Tokenizer.from_folder(f), theirs[k].from_pretrained(f)) for k, f in folders.items()}


def assert_same(pair, texts: list[str], length: int) -> None:
    ours, theirs = pair
    expected = theirs(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
    ids = ours(texts, length)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, np.array(expected))
    assert ids.min() >= 0
    assert ids.max() < ours.vocab_size


@KINDS
def test_captions_get_transformers_ids(pairs, kind):
    captions = [caption for _, caption in islice(stream(1, held_out=True), 2000)]
    assert_same(pairs[kind], captions, 40)


@KINDS
@quiet
@pytest.mark.parametrize("length", [2, 3, 8, 32, 77])
def test_awkward_texts_get_transformers_ids(pairs, kind, length):
    assert_same(pairs[kind], AWKWARD, length)


@KINDS
@quiet
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(prompts, min_size=1, max_size=4), length=st.integers(2, 40))
def test_any_text_gets_transformers_ids(pairs, kind, texts, length):
    assert_same(pairs[kind], texts, length)


@KINDS
def test_settings_agree_with_transformers(pairs, kind):
    ours, theirs = pairs[kind]
    assert ours.max_length == theirs.model_max_length
    assert ours.vocab_size == len(theirs)
    assert ours.backend.token_to_id(ours.pad_token) == theirs.pad_token_id


# ------------------------------------------------------------------------------------- the form of the ids


def test_clip_form():
    tokenizer = Tokenizer.from_folder(CLIP_FOLDER)
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    ids = tokenizer(["", "a cat"], 5)
    assert ids[0].tolist() == [start, end, end, end, end]
    assert [tokenizer.backend.id_to_token(i) for i in ids[1, 1:3]] == ["a</w>", "cat</w>"]
    assert ids[1, 3:].tolist() == [end, end]


def test_t5_form():
    tokenizer = Tokenizer.from_folder(T5_FOLDER)
    ids = tokenizer(["", "a Cat"], 4)
    assert ids[0].tolist() == [1, 0, 0, 0]
    assert [tokenizer.backend.id_to_token(i) for i in ids[1]] == ["▁a", "▁Cat", "</s>", "<pad>"]


@pytest.mark.parametrize(("folder", "length"), [(CLIP_FOLDER, 77), (T5_FOLDER, 512)])
def test_default_length_and_empty_batch(folder, length):
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer(["a cat"]).shape == (1, length)
    assert tokenizer([]).shape == (0, length)


@pytest.mark.parametrize("folder", [CLIP_FOLDER, T5_FOLDER])
def test_any_character_has_an_id_and_ascii_is_known(folder):
    tokenizer = Tokenizer.from_folder(folder)
    unknown = tokenizer.backend.token_to_id("<unk>")
    ascii_ids = tokenizer([chr(i) for i in range(33, 127)], 8)
    assert unknown is None or not (ascii_ids == unknown).any()
    if unknown is None:  # bytes: the start once, and the end only after the text
        body = tokenizer([chr(i) for i in range(33, 0xD800)], 8)
        assert ((body == tokenizer.vocab_size - 2).sum(axis=1) == 1).all()
        ends = body == tokenizer.vocab_size - 1
        assert (np.diff(ends.astype(int), axis=1) >= 0).all()


# ----------------------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize(("folder", "length"), [(CLIP_FOLDER, 6), (T5_FOLDER, 5)])
def test_warning_shows_what_was_dropped(folder, length):
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.warns(PromptTruncated, match=rf"cut to {length} tokens; dropped: 'Apple ON  a 🐱 background'$") as seen:
        ids = tokenizer(["a cat", "a cat above  an Apple ON  a 🐱 background"], length)
    assert len(seen) == 1
    kept = ["a", "cat", "above", "an"]
    body = [tokenizer.backend.id_to_token(i).strip("▁").removesuffix("</w>") for i in ids[1]]
    assert [token for token in body if token in kept] == kept
    assert ids[1, -1] == tokenizer.backend.token_to_id("</s>" if folder == T5_FOLDER else "<|endoftext|>")


@pytest.mark.parametrize("folder", [CLIP_FOLDER, T5_FOLDER])
def test_no_warning_when_it_just_fits(folder):
    tokenizer = Tokenizer.from_folder(folder)
    marks = tokenizer.backend.num_special_tokens_to_add(is_pair=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a cat on a blue background"], 6 + marks)


@pytest.mark.parametrize("folder", [CLIP_FOLDER, T5_FOLDER])
def test_a_call_leaves_no_trace(folder):
    tokenizer, text = Tokenizer.from_folder(folder), ["a cat on a blue background"]
    before = tokenizer(text, 20)
    with pytest.warns(PromptTruncated):
        tokenizer(text, 4)
    np.testing.assert_array_equal(tokenizer(text, 20), before)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("bad", ["a cat", [None], ["a cat", 3], [b"a cat"], 7, None, ["\ud800"]])
def test_prompts_that_are_no_text(bad):
    with pytest.raises(ArgumentError, match=r"^prompts: "):
        Tokenizer.from_folder(CLIP_FOLDER)(bad, 8)


@pytest.mark.parametrize(("folder", "length"), [(CLIP_FOLDER, 1), (T5_FOLDER, 0), (T5_FOLDER, -1)])
def test_length_without_room(folder, length):
    with pytest.raises(ArgumentError, match=r"^length: "):
        Tokenizer.from_folder(folder)(["a cat"], length)


def test_vocabulary_must_fit_the_text_encoder():
    size = Tokenizer.from_folder(T5_FOLDER).vocab_size
    assert Tokenizer.from_folder(T5_FOLDER, vocab_size=size).vocab_size == size
    with pytest.raises(CheckpointError, match=f"reach {size - 1}; the text encoder has only {size - 1}"):
        Tokenizer.from_folder(T5_FOLDER, vocab_size=size - 1)


BREAKAGES = {
    "no folder": (None, "", "tokenizer.json: no such file"),
    "no tokenizer": ("tokenizer.json", None, "tokenizer.json: no such file"),
    "cut short": ("tokenizer.json", '{"version": "1.0", ', "tokenizer.json: expected JSON"),
    "not text": ("tokenizer.json", b"\xff\xfe", "tokenizer.json: expected JSON"),
    "no model in it": ("tokenizer.json", '{"version": "1.0"}', "tokenizer.json: is no tokenizer"),
    "no settings": ("tokenizer_config.json", None, "tokenizer_config.json: no such file"),
    "broken settings": ("tokenizer_config.json", "{", "tokenizer_config.json: expected JSON"),
    "settings of a wrong kind": ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object"),
    "no length": ("tokenizer_config.json", "{}", "tokenizer_config.json: model_max_length: expected a whole number"),
    "unknown pad": ("tokenizer_config.json", '{"pad_token": "~~"}', "pad token '~~' is not in the vocabulary"),
}


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
HOSTILE = {
    "a normaliser that doubles 40 times": {"type": "Sequence", "normalizers": [DOUBLE] * 40},
    "one that doubles 9 times": {"type": "Sequence", "normalizers": [DOUBLE] * 9},
    "one that puts in a long text": DOUBLE | {"content": "a" * 5},
    "one that puts a long text before": {"type": "Prepend", "prepend": "a" * 10**6},
    "a table that makes the library panic": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
}


@pytest.mark.parametrize("normalizer", HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_of_a_stranger_is_refused_before_a_text_can_grow_without_bound(tmp_path, normalizer):
    folder = shutil.copytree(T5_FOLDER, tmp_path / "tokenizer_2")
    settings = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(settings | {"normalizer": normalizer}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(("name", "content", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_broken_folder_is_named(tmp_path, name, content, message):
    folder = tmp_path / "tokenizer_2"
    if name is not None:
        shutil.copytree(T5_FOLDER, folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "{}"])
def test_broken_clip_vocabulary_is_named(tmp_path, content):
    make_bare_clip(tmp_path)
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"vocab\.json.*no CLIP vocabulary"):
        Tokenizer.from_folder(tmp_path)


# ------------------------------------------------------------------------------------------------- training


def contents(folder: Path) -> dict[str, bytes]:
    files = (f for sub in ("tokenizer", "tokenizer_2") for f in (folder / sub).iterdir())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def test_training_is_deterministic_and_is_what_ships(tmp_path):
    training.train_tokenizers(tmp_path / "once")
    command = [sys.executable, "-m", "minflux.world.tokenizers", str(tmp_path / "again")]
    subprocess.run(command, check=True, cwd=zoo.FOLDER.parents[1])
    assert contents(tmp_path / "once") == contents(tmp_path / "again") == contents(TINY)


def test_clip_folder_reads_the_same_without_tokenizer_json(tmp_path):
    shutil.copytree(CLIP_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    texts = [text for text in AWKWARD if len(text) < 100]
    whole, bare = Tokenizer.from_folder(CLIP_FOLDER), Tokenizer.from_folder(tmp_path)
    np.testing.assert_array_equal(whole(texts, 100), bare(texts, 100))
