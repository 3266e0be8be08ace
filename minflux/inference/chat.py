"""Prompts to token ids for the language models that FLUX.2 takes its text from: a prompt becomes a line of a chat.

Such a model was trained on chats, whose turns stand between marks, and each mark is one token. FLUX.2 was trained on
its states in this setting, so the marks belong to the prompt:

    Qwen3      <|im_start|>user⏎ … <|im_end|>⏎<|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎
    Mistral    <s>[SYSTEM_PROMPT] how to answer [/SYSTEM_PROMPT][INST] … [/INST]

What follows the prompt in Qwen3's says that it is the model's turn, and that it has done with thinking. These are the
lines that the models' own templates give for one prompt; a tokenizer's folder holds such a template, a small program,
which is not run. Sources: diffusers `pipeline_flux2_klein.py`, `pipeline_flux2.py`, `system_messages.py`; the templates
of Qwen3-4B and Mistral-Small-3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minflux.errors import CheckpointError, quoted
from minflux.inference.text import Tokenizer, check_prompts

TEXT_LENGTH = 512  # tokens that FLUX.2 reads

SYSTEM_MESSAGE = (  # what FLUX.2-dev was trained with; the line ends inside it
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)


@dataclass(frozen=True)
class Chat:
    """What stands before and after a prompt in a chat.

    marks: tokens that the tokenizer must have. starts: whether the text has its start token already, so that the
    tokenizer adds none. unread: what is taken out of prompts, for it would stand for something else than text.
    """

    before: str
    after: str
    marks: tuple[str, ...]
    starts: bool = False
    unread: tuple[str, ...] = ()

    def text(self, prompt: str) -> str:
        """Return what the model reads for a prompt.

        >>> QWEN3_CHAT.text("a cat")
        '<|im_start|>user\\na cat<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n'
        """
        for mark in self.unread:
            prompt = prompt.replace(mark, "")
        return self.before + prompt + self.after


QWEN3_CHAT = Chat(
    before="<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    marks=("<|im_start|>", "<|im_end|>"),
)
MISTRAL_CHAT = Chat(
    before=f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]",
    after="[/INST]",
    marks=("<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"),
    starts=True,
    unread=("[IMG]",),  # the mark of an image
)


class ChatTokenizer:
    """A tokenizer that turns prompts into a chat's padded token ids, exactly as diffusers' FLUX.2 pipelines do."""

    def __init__(self, tokenizer: Tokenizer, chat: Chat):
        self.tokenizer = tokenizer
        self.chat = chat

    @classmethod
    def from_folder(cls, folder: str | Path, chat: Chat, vocab_size: int | None = None) -> "ChatTokenizer":
        """Read a tokenizer from a folder in the layout of Hugging Face, which must hold `tokenizer.json`.

        vocab_size: how many embeddings the language model has. Raises `CheckpointError` naming the file that is missing
        or doesn't fit, and for a tokenizer without the chat's marks.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(f"{path}: no such file: expected the tokenizer of a language model")
        tokenizer = Tokenizer.from_folder(folder, vocab_size)
        for mark in chat.marks:
            if tokenizer.backend.token_to_id(mark) is None:
                raise CheckpointError(f"{path}: expected a token {quoted(mark)}, a mark of this model's chats")
        return cls(tokenizer, chat)

    @property
    def vocab_size(self) -> int:
        """The largest id that a prompt can get, plus one."""
        return self.tokenizer.vocab_size

    def __call__(self, prompts: Sequence[str], length: int = TEXT_LENGTH) -> tuple[np.ndarray, np.ndarray]:
        """Turn prompts into token ids and a mask, 1 for a token and 0 for padding: (B, T) int32 each, T = `length`.

        Too long a text is cut at its end, marks and all, with a `PromptTruncated` warning, as diffusers cuts it. Raises
        `ArgumentError` for prompts that aren't text.
        """
        check_prompts(prompts)
        texts = [self.chat.text(prompt) for prompt in prompts]
        encodings = self.tokenizer.encodings(texts, length, marks=not self.chat.starts)
        rows = [(encoding.ids, encoding.attention_mask) for encoding in encodings]
        both = np.array(rows, np.int32).reshape(len(prompts), 2, length)  # also for no prompt
        return both[:, 0], both[:, 1]
