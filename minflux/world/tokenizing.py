"""Train CLIP's and T5's kinds of tokenizer on the captions of a small world.

Such a world has some fifty words to a few hundred, so both trainings are short enough to be read here, and both end
with every word as one token. What matters as much is that any *other* prompt can be encoded: the byte-pair encoding
knows every byte, and the unigram model all of ASCII's signs and one token for the unknown.

- `train_bpe` merges the pair of neighbours that occurs most, again and again (Sennrich et al. 2016).
- `train_unigram` gives every piece the logarithm of its share of the text (Kudo 2018). Kudo finds pieces and shares
  together, by expectation-maximisation, for a vocabulary too small to hold every word. Ours holds them all, so the
  pieces are the words, and their shares are counted.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase, digits, punctuation

import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from minflux.inference.text import CLIP_END, CLIP_START, T5_END, T5_PAD, T5_UNKNOWN, clip_backend

WORD_END = "</w>"  # on a symbol: a word ends here (CLIP)
WORD_START = "▁"  # on a piece: a word starts here (T5)
UNSEEN = 0.1  # the count given to a character that no caption has
Word = tuple[str, ...]  # a word as the symbols it's made of so far
Pair = tuple[str, str]


def byte_characters() -> list[str]:
    """Map each of the 256 bytes to a visible character: its own in Latin-1 if it has one, else one from 256 on.

    Source: GPT-2's `bytes_to_unicode`, which CLIP's vocabulary files use too.

    >>> table = byte_characters()
    >>> table[ord("a")], table[ord(" ")], len(set(table))
    ('a', 'Ġ', 256)
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(spare)) for byte in range(256)]


def clip_words(captions: Iterable[str]) -> Counter[str]:
    """Count words as CLIP cuts them, in byte characters."""
    parts = clip_backend(BPE({CLIP_START: 0, CLIP_END: 1}, []), [])
    lowered = (parts.normalizer.normalize_str(caption) for caption in captions)
    return Counter(word for text in lowered for word, _ in parts.pre_tokenizer.pre_tokenize_str(text))


def train_bpe(counts: Counter[str]) -> list[Pair]:
    """Learn merges from words and their counts, until every word is one symbol; ties go by the alphabet.

    >>> train_bpe(Counter({"hat": 3, "cat": 2}))
    [('a', 't</w>'), ('h', 'at</w>'), ('c', 'at</w>')]
    """
    words: dict[Word, int] = {(*word[:-1], word[-1] + WORD_END): n for word, n in counts.items()}
    merges: list[Pair] = []
    while pairs := count_pairs(words):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = {merge(word, merges[-1]): n for word, n in words.items()}
    return merges


def count_pairs(words: dict[Word, int]) -> Counter[Pair]:
    """Count how often two symbols are neighbours."""
    pairs: Counter[Pair] = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            pairs[pair] += n
    return pairs


def merge(word: Word, pair: Pair) -> Word:
    """Join a pair of neighbouring symbols wherever it occurs, from left to right.

    >>> merge(("b", "a", "n", "a", "n", "a"), ("a", "n"))
    ('b', 'an', 'an', 'a')
    """
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def clip_vocabulary(merges: list[Pair]) -> dict[str, int]:
    """Number all tokens in CLIP's order: bytes, bytes that end a word, merges, start, and end last of all."""
    symbols = byte_characters()
    ending = [symbol + WORD_END for symbol in symbols]
    tokens = [*symbols, *ending, *map("".join, merges), CLIP_START, CLIP_END]
    return {token: i for i, token in enumerate(tokens)}


def special(*tokens: str) -> list[AddedToken]:
    """Mark tokens as special: found whole in a prompt, as written, before it is lowered."""
    return [AddedToken(token, normalized=False, special=True) for token in tokens]


def train_unigram(counts: Counter[str]) -> list[tuple[str, float]]:
    """Score each piece with log(count / total): special tokens, pieces by count, then all other characters.

    >>> train_unigram(Counter({"▁cat": 3, "▁hat": 1}))[2:6]
    [('<unk>', 0.0), ('▁cat', -0.287682), ('▁hat', -1.386294), ('▁', -3.688879)]
    """
    alphabet = WORD_START + ascii_lowercase + digits + punctuation
    unseen = {character: UNSEEN for character in alphabet if character not in counts}
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total = counts.total()
    scores = [(piece, round(math.log(n / total), 6)) for piece, n in (*ranked, *unseen.items())]
    return [(T5_PAD, 0.0), (T5_END, 0.0), (T5_UNKNOWN, 0.0), *scores]


def t5_backend(pieces: list[tuple[str, float]]) -> tokenizers.Tokenizer:
    """Put T5's parts around a unigram model: words that begin with ▁, capitals kept, and </s> at the end."""
    backend = tokenizers.Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    marks = pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks])
    backend.decoder = decoders.Metaspace(replacement=WORD_START, prepend_scheme="always", split=True)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {T5_END}", pair=f"$A {T5_END} $B {T5_END}", special_tokens=[(T5_END, 1)]
    )
    backend.add_special_tokens(special(T5_PAD, T5_END, T5_UNKNOWN))
    return backend


def write_folder(
    folder: Path, backend: tokenizers.Tokenizer, kind: str, names: dict, max_length: int, **settings
) -> None:
    """Write a backend and its settings, as the JSON files that transformers' class `kind` looks for."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    ids = backend.get_vocab()
    tokens = sorted(set(names.values()), key=ids.__getitem__)
    decoder = {str(ids[token]): {"content": token, **flags} for token in tokens}
    config = {"tokenizer_class": kind, "model_max_length": max_length, **names, **settings}
    backend.save(str(folder / "tokenizer.json"), pretty=True)
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "tokenizer_config.json", {**config, "added_tokens_decoder": decoder})


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON, the same bytes for the same content."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
