"""The two tokenizers of models of this world, trained on its captions.

Every word of the grammar is one token, and any other text can be encoded too. Words to write on signs can be any
letters: T5's pieces hold no such word, but every letter by itself. Capital letters stay capital, so STAR on a sign is
spelled S T A R, and "star" is a thing. A word in quotes is spelled too, in either case, for it doesn't follow a space.
The first word of a sentence may be capitalised, so each word is there twice: ▁star and ▁Star.

    python -m minflux.world.tokenizers FOLDER
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from string import ascii_letters, digits, punctuation

import click
from tokenizers.models import BPE

from minflux.inference.text import CLIP_END, CLIP_START, T5_END, T5_PAD, T5_UNKNOWN, clip_backend
from minflux.world.captions import stream
from minflux.world.tokenizing import (
    WORD_END,
    WORD_START,
    clip_vocabulary,
    clip_words,
    special,
    t5_backend,
    train_bpe,
    train_unigram,
    write_folder,
    write_json,
)
from minflux.world.vocabulary import known_words

CAPTIONS = 10_000
CLIP_LENGTH, T5_LENGTH = 77, 512  # what FLUX.1's pipelines pad to
QUOTED = re.compile(r"\"\w+\"|'\w+'")


def training_captions() -> list[str]:
    """Draw the captions that both tokenizers are trained on, always the same."""
    return [caption for _, caption in islice(stream(seed=0), CAPTIONS)]


def t5_pieces(captions: Iterable[str]) -> Counter[str]:
    """Count pieces: words with the mark of their start, in lower case and capitalised; signs; letters of spelled words.

    >>> sorted(t5_pieces(["A cat"]))
    ['A', '▁', '▁Cat', '▁cat']
    """
    text = "\n".join(captions)
    counts: Counter[str] = Counter()
    for word in QUOTED.findall(text):
        counts.update([WORD_START, *word])
    for word in re.findall(r"\w+", QUOTED.sub(" ", text)):
        counts.update(
            [WORD_START, *word] if word.isupper() else {WORD_START + word.lower(), WORD_START + capital(word)}
        )
    counts.update(re.findall(r"[^\w\s]", QUOTED.sub(" ", text)))
    return counts


def capital(word: str) -> str:
    """Begin a word with a capital letter; a word of one letter stays, for that would be a letter to spell."""
    return word.capitalize() if len(word) > 1 else word


def write_clip(captions: list[str], folder: Path) -> None:
    """Train and write `tokenizer/`: tokenizer.json, and for older readers vocab.json and merges.txt."""
    counts = clip_words(captions)
    merges = train_bpe(Counter({w: n for w, n in counts.items() if w in known_words() or not w.isalpha()}))
    vocabulary = clip_vocabulary(merges)
    model = BPE(vocabulary, merges, unk_token=CLIP_END, end_of_word_suffix=WORD_END)
    names = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": CLIP_END}
    backend = clip_backend(model, special(CLIP_START, CLIP_END))
    write_folder(folder, backend, "CLIPTokenizer", names, CLIP_LENGTH)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def write_t5(captions: list[str], folder: Path) -> None:
    """Train and write `tokenizer_2/`: pieces of whole words, and of every letter, digit and sign."""
    pieces = train_unigram(t5_pieces(captions))
    missing = set(ascii_letters + digits + punctuation) - {piece for piece, _ in pieces}
    least = min(score for _, score in pieces)
    backend = t5_backend([*pieces, *((character, least) for character in sorted(missing))])
    names = {"eos_token": T5_END, "unk_token": T5_UNKNOWN, "pad_token": T5_PAD}
    write_folder(folder, backend, "T5Tokenizer", names, T5_LENGTH, extra_ids=0)


def train_tokenizers(folder: Path) -> None:
    """Train both tokenizers and write them to `tokenizer/` and `tokenizer_2/` in a folder."""
    captions = training_captions()
    write_clip(captions, folder / "tokenizer")
    write_t5(captions, folder / "tokenizer_2")


@click.command()
@click.argument("out_folder", type=click.Path(file_okay=False, path_type=Path))
def main(out_folder: Path) -> None:
    """Train the world's two tokenizers into OUT_FOLDER."""
    train_tokenizers(out_folder)


if __name__ == "__main__":
    main()
