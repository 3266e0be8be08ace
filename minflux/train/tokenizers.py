"""The first small model's own two tokenizers, trained on the captions of its emoji scenes.

The result is two folders in the layout of Hugging Face, `tokenizer/` (CLIP's form) and `tokenizer_2/` (T5's), and
transformers opens them.

    python -m minflux.train.tokenizers minflux/zoo/tiny
"""

from itertools import islice
from pathlib import Path

import click
from tokenizers.models import BPE

from minflux.inference.text import CLIP_END, CLIP_START, T5_END, T5_PAD, T5_UNKNOWN, clip_backend
from minflux.train import scenes
from minflux.world.tokenizing import (
    WORD_END,
    clip_vocabulary,
    clip_words,
    special,
    t5_backend,
    train_bpe,
    train_unigram,
    unigram_words,
    write_folder,
    write_json,
)

CAPTIONS = 10_000
MAX_LENGTH = 24  # tokens, marks included; the longest caption of the grammar has 19


def training_captions() -> list[str]:
    """Draw the captions that both tokenizers are trained on, always the same."""
    return [caption for _, caption in islice(scenes.stream(seed=0), CAPTIONS)]


def write_clip(captions: list[str], folder: Path) -> None:
    """Train and write `tokenizer/`: tokenizer.json, and for older readers vocab.json and merges.txt."""
    merges = train_bpe(clip_words(captions))
    vocabulary = clip_vocabulary(merges)
    model = BPE(vocabulary, merges, unk_token=CLIP_END, end_of_word_suffix=WORD_END)
    names = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": CLIP_END}
    write_folder(folder, clip_backend(model, special(CLIP_START, CLIP_END)), "CLIPTokenizer", names, MAX_LENGTH)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def write_t5(captions: list[str], folder: Path) -> None:
    """Train and write `tokenizer_2/`; `extra_ids` 0 says that it has none of T5's hundred sentinel tokens."""
    backend = t5_backend(train_unigram(unigram_words(captions)))
    names = {"eos_token": T5_END, "unk_token": T5_UNKNOWN, "pad_token": T5_PAD}
    write_folder(folder, backend, "T5Tokenizer", names, MAX_LENGTH, extra_ids=0)


def train_tokenizers(folder: Path) -> None:
    """Train both tokenizers and write them to `tokenizer/` and `tokenizer_2/` in a folder."""
    captions = training_captions()
    write_clip(captions, folder / "tokenizer")
    write_t5(captions, folder / "tokenizer_2")


@click.command()
@click.argument("out_folder", type=click.Path(file_okay=False, path_type=Path))
def main(out_folder: Path) -> None:
    """Train the tiny model's two tokenizers into OUT_FOLDER."""
    train_tokenizers(out_folder)


if __name__ == "__main__":
    main()
