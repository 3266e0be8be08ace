"""Prompts to token ids, which are all that a text encoder reads.

FLUX.1 reads each prompt twice. CLIP's tokenizer is a byte-pair encoding: it starts from bytes and applies a
list of learned merges; its ids look like `<|startoftext|> a cat <|endoftext|> <|endoftext|> …`, the last one
repeated as padding. T5's is a unigram model: among all ways to cut the text into known pieces it takes the
likeliest; its ids look like `a cat </s> <pad> <pad> …`.

Both run on the `tokenizers` library, from the folders that Hugging Face models have (`tokenizer/` and
`tokenizer_2/`). Such a folder holds the whole tokenizer in `tokenizer.json` or, as FLUX.1's CLIP folder does,
only CLIP's vocabulary and merges, and `clip_backend` puts the parts around them.

Source: Sennrich et al. 2016 (arXiv 1508.07909), Kudo 2018 (arXiv 1804.10959); transformers'
`tokenization_clip.py`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Encoding, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from minflux.checkpoints.formats.json_files import read_json
from minflux.errors import ArgumentError, CheckpointError, quoted
from minflux.inference.tokenizer_files import check_tokenizer, errors_named

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
T5_PAD, T5_END, T5_UNKNOWN = "<pad>", "</s>", "<unk>"

SETTINGS = "tokenizer_config.json"
NAMED, BY_ID = ("bos_token", "eos_token", "unk_token", "pad_token"), "added_tokens_decoder"  # the tokens in it
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # of a token

# What CLIP never merges across: special tokens, English contractions, words, single digits, runs of signs.
CLIP_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class PromptTruncated(UserWarning):
    """A prompt had more tokens than fit; the message shows the text that was dropped."""


class Tokenizer:
    """A tokenizer that turns prompts into padded token ids, exactly as transformers does from the same folder.

    max_length: the length that its text encoder was trained for. padding_side: where a short prompt is padded, "right"
    or "left".
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_token: str, max_length: int, padding_side: str = "right"):
        self.backend = backend
        self.pad_token = pad_token
        self.max_length = max_length
        self.padding_side = padding_side

    @classmethod
    def from_folder(cls, folder: str | Path, vocab_size: int | None = None) -> "Tokenizer":
        """Read a tokenizer from a folder in the layout of Hugging Face.

        vocab_size: how many embeddings the text encoder has. A tokenizer with larger ids is refused here, where MLX
        would look up zeros later. Raises `CheckpointError` naming the file that is missing or doesn't fit.
        """
        folder = Path(folder)
        backend = _read_backend(folder)
        config = read_tokenizer_config(folder)
        pad_token, max_length = _padding(config, backend, folder)
        tokenizer = cls(backend, pad_token, max_length, _padding_side(config, folder))
        if vocab_size is not None and tokenizer.vocab_size > vocab_size:
            largest = tokenizer.vocab_size - 1
            raise CheckpointError(f"{folder}: token ids reach {largest}; the text encoder has only {vocab_size}")
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """The largest id that a prompt can get, plus one."""
        ids = self.backend.get_vocab(with_added_tokens=True).values()
        return max(ids) + 1

    def __call__(self, prompts: Sequence[str], length: int | None = None) -> np.ndarray:
        """Turn prompts into token ids of one length: (B, T) int32, T being `length`, or `max_length` without one.

        A longer prompt is cut before its end token, with a `PromptTruncated` warning. Raises `ArgumentError` for
        prompts that aren't text, and for a length that has no room for the start and end tokens.
        """
        length = self.max_length if length is None else length
        ids = [encoding.ids for encoding in self.encodings(prompts, length)]
        return np.array(ids, np.int32).reshape(len(prompts), length)  # also for no prompt

    def encodings(self, texts: Sequence[str], length: int, marks: bool = True) -> list[Encoding]:
        """Return what the `tokenizers` library knows of each text, as `__call__` cuts and pads it.

        marks: whether the tokenizer puts its own tokens around a text, those for start and end.
        """
        check_prompts(texts)
        self._set_length(length)
        with errors_named("the tokenizer fails on this prompt: its file is damaged"):
            encodings = [self.backend.encode(text, add_special_tokens=marks) for text in texts]
        for text, encoding in zip(texts, encodings, strict=True):
            _warn_if_cut(text, encoding, length)
        return encodings

    def _set_length(self, length: int) -> None:
        marks = self.backend.num_special_tokens_to_add(is_pair=False)
        if length < marks:
            raise ArgumentError(f"length: {length} has no room for the {marks} tokens that mark start and end")
        self.backend.enable_truncation(length)
        pad_id = self.backend.token_to_id(self.pad_token)
        side = self.padding_side
        self.backend.enable_padding(direction=side, length=length, pad_id=pad_id, pad_token=self.pad_token)


# ------------------------------------------------------------------------------------------------- prompts


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise `ArgumentError` unless the prompts are a list of whole strings."""
    if isinstance(prompts, str) or not isinstance(prompts, (list, tuple)):
        raise ArgumentError(f"prompts: pass a list of strings, not {type(prompts).__name__}")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ArgumentError(f"prompts: {quoted(prompt)} is not a string")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ArgumentError(f"prompts: {quoted(prompt)} has half a character (a lone surrogate); remove it")


def _warn_if_cut(prompt: str, encoding: Encoding, length: int) -> None:
    """Warn of a prompt that was cut, with its own characters from the first dropped token on."""
    if not encoding.overflowing:
        return
    rest = encoding.overflowing[0]
    first = rest.special_tokens_mask.index(0)  # the first token that is no start or end mark
    begin, _ = rest.offsets[first]
    dropped = prompt[begin:].strip()
    warnings.warn(f"prompt cut to {length} tokens; dropped: {quoted(dropped)}", PromptTruncated, stacklevel=4)


# ------------------------------------------------------------------------------------------------- folders


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    """Read `tokenizer.json`; where there is none, build CLIP's tokenizer from `vocab.json` and `merges.txt`."""
    path = folder / "tokenizer.json"
    if not path.exists() and (folder / "vocab.json").exists():
        return _read_clip(folder)
    check_tokenizer(path)
    with errors_named(f"{path}: is no tokenizer"):
        return tokenizers.Tokenizer.from_str(path.read_text("utf-8"))


def _read_clip(folder: Path) -> tokenizers.Tokenizer:
    """Build CLIP's tokenizer from `vocab.json` and `merges.txt`."""
    config = read_tokenizer_config(folder)
    unknown = _content(config.get("unk_token") or CLIP_END)
    vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
    with errors_named(f"{vocab}, {merges}: are no CLIP vocabulary"):
        model = BPE.from_file(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>")
        return clip_backend(model, _special_tokens(config))


def read_tokenizer_config(folder: Path) -> dict:
    """Read `special_tokens_map.json`, if it is there, and `tokenizer_config.json`, which overrides it."""
    special, settings = folder / "special_tokens_map.json", folder / SETTINGS
    found: dict = {}
    for path in (special, settings) if special.exists() else (settings,):
        config = read_json(path)
        check_tokens(path, config)
        found |= config
    return found


def check_tokens(path: Path, config: dict) -> None:
    """Raise `CheckpointError` where a tokenizer's settings have anything but a token in a token's place."""
    by_id = config.get(BY_ID, {})
    if not isinstance(by_id, dict):
        raise CheckpointError(f"{path}: {BY_ID}: expected a JSON object, found {quoted(by_id)}")
    named = {name: config[name] for name in NAMED if config.get(name) is not None}
    for name, token in (named | by_id).items():
        if not is_token(token):
            raise CheckpointError(f"{path}: {name}: expected a token's text or an object of it, found {quoted(token)}")


def is_token(token: Any) -> bool:
    """Return whether a JSON value names a token, or describes one."""
    if isinstance(token, dict):
        flags = (token.get(name, False) for name in FLAGS)
        return isinstance(token.get("content"), str) and all(isinstance(flag, bool) for flag in flags)
    return isinstance(token, str)


def _padding(config: dict, backend: tokenizers.Tokenizer, folder: Path) -> tuple[str, int]:
    """Return the pad token and the longest length; unless the config names it, the pad is T5's or CLIP's usual one."""
    usual = T5_PAD if backend.token_to_id(T5_PAD) is not None else CLIP_END
    pad_token = _content(config.get("pad_token") or usual)
    max_length = config.get("model_max_length")
    if backend.token_to_id(pad_token) is None:
        raise CheckpointError(f"{folder}: the pad token {quoted(pad_token)} is not in the vocabulary")
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
        found = quoted(max_length)
        raise CheckpointError(
            f"{folder / SETTINGS}: model_max_length: expected a whole number from 1 on, found {found}"
        )
    return pad_token, max_length


def _padding_side(config: dict, folder: Path) -> str:
    """Return where a tokenizer pads, on the right unless its config says otherwise."""
    side = config.get("padding_side", "right")
    if side not in ("left", "right"):
        raise CheckpointError(f"{folder / SETTINGS}: padding_side: expected 'left' or 'right', found {quoted(side)}")
    return side


# -------------------------------------------------------------------------------------------- CLIP's parts


def clip_backend(model: BPE, special_tokens: list[AddedToken]) -> tokenizers.Tokenizer:
    """Put CLIP's steps around a byte-pair encoding: lower case, words, bytes; start and end tokens."""
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORD), behavior="removed", invert=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    backend.decoder = decoders.ByteLevel()
    ids = backend.get_vocab(with_added_tokens=False)
    end, start = (CLIP_END, ids[CLIP_END]), (CLIP_START, ids[CLIP_START])
    backend.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    backend.add_special_tokens(special_tokens)
    return backend


def _special_tokens(config: dict) -> list[AddedToken]:
    """List the tokens that are found whole in a prompt, wherever the folder's config names them."""
    named = [config.get(name) for name in NAMED]
    by_id = config.get(BY_ID, {}).values()
    tokens = [CLIP_START, CLIP_END, *filter(None, named), *by_id]
    by_name = {_content(token): _added_token(token) for token in tokens}  # of two with one name, the later holds
    return list(by_name.values())


def _added_token(token: str | dict) -> AddedToken:
    """Make a special token of its name, or of the object that describes it in a config."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    flags = {name: token[name] for name in FLAGS if name in token}
    return AddedToken(token["content"], special=True, **flags)


def _content(token: str | dict) -> str:
    """Return a token's text, from its name or from the object that describes it in a config."""
    return token if isinstance(token, str) else token["content"]
