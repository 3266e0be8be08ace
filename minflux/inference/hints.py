"""Hints: what was asked for is done, though the model was not trained for it, and it shows in the image.

A model says what it was trained on in its `minflux.json`, under "trained", as far as it wants to:

    {"trained": {"words": ["a", "cat", …], "sizes": [[64, 64]], "text_lengths": [20], "references": true}}
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minflux.errors import CheckpointError
from minflux.sampling.guidance import Guidance

Report = Callable[[str], None]

WORD = re.compile(r"\w+")
SPELLED = re.compile(r"\"([^\"]+)\"|'([^\W\d_]+)'|\b([A-Z]{2,}|[B-Z])\b")  # a word to write: in quotes, or in capitals
SHOWN = 5  # words listed in a hint


class Hint(UserWarning):
    """Something was asked for that the model was not trained for; the message says what, and what it knows."""


def tell(line: str, report: Report | None) -> None:
    """Report a line that is good to know; without anybody to report to, warn."""
    if report is None:
        warnings.warn(line, Hint, stacklevel=3)
    else:
        report(line)


@dataclass(frozen=True)
class Trained:
    """What a model was trained on, as far as it says: nothing is told of what is left empty.

    words: all that its prompts had, in lower case. spelled: how many letters the words had that it was trained to
    write, which prompts have in capitals or in quotes. sizes: of images in pixels, (width, height). megapixels: the
    least and the most that an image had. text_lengths: how many tokens T5 was given. references: whether reference
    images were shown, as to Kontext.
    """

    words: tuple[str, ...] = ()
    spelled: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    megapixels: tuple[float, ...] = ()
    text_lengths: tuple[int, ...] = ()
    references: bool = False

    def unknown_words(self, prompt: str) -> list[str]:
        """List a prompt's words that the model was not trained on, each once, in their order.

        >>> Trained(words=("a", "cat", "sign", "says"), spelled=5).unknown_words('A cat, a yak, a sign says "HELLO"')
        ['yak']
        """
        if not self.words:
            return []
        written = ["".join(groups) for groups in SPELLED.findall(prompt)] if self.spelled else []
        rest = SPELLED.sub(" ", prompt) if self.spelled else prompt
        strange = [word for word in WORD.findall(rest) if word.lower() not in self.words]
        return list(dict.fromkeys(strange + [word for word in written if not self.can_write(word)]))

    def can_write(self, word: str) -> bool:
        """Return whether a word to write is no longer than those that the model was trained to write."""
        return word.isascii() and word.isalpha() and len(word) <= self.spelled


# Sources: megapixels are README.md's of black-forest-labs/flux. Texts are padded to 256 tokens there for FLUX.1-schnell
# and by ComfyUI for both models, to 512 there for FLUX.1-dev and by diffusers for both.
FLUX1_TRAINED = Trained(megapixels=(0.1, 2.0), text_lengths=(256, 512))


# -- what is hinted at ---------------------------------------------------------------------------------------


def hint_at_words(trained: Trained, prompts: Sequence[str]) -> None:
    """Warn of words in prompts that the model was not trained on."""
    words = list(dict.fromkeys(word for prompt in prompts for word in trained.unknown_words(prompt)))
    if words:
        shown = ", ".join(map(repr, words[:SHOWN])) + (", …" if len(words) > SHOWN else "")
        known = f"`minflux vocabulary` lists the {len(trained.words)} words that it knows"
        warn(f"prompt: the model was not trained on {shown}; {known}")


def hint_at_text_length(trained: Trained, length: int) -> None:
    """Warn of a length of T5's text that the model was not trained on."""
    if trained.text_lengths and length not in trained.text_lengths:
        known = " or ".join(map(str, trained.text_lengths))
        warn(f"text_length {length}: the model was trained on {known} tokens; the image may be wrong")


def hint_at_size(trained: Trained, width: int, height: int) -> None:
    """Warn of an image's size that the model was not trained on."""
    if trained.sizes and (width, height) not in trained.sizes:
        warn(f"size {width}x{height}: the model was trained on {listed(trained.sizes)}; the image may be wrong")
    if trained.megapixels:
        least, most, asked = *trained.megapixels, width * height / 1e6
        if not 0.9 * least <= asked <= 1.1 * most:
            warn(
                f"size {width}x{height}: the model was trained on {least:g} to {most:g} megapixels, this is "
                f"{asked:.2g}; the image may be wrong"
            )


def hint_at_references(trained: Trained) -> None:
    """Warn of references on a model that was not trained with any, as far as can be told."""
    if not trained.references:
        warn(
            "reference: neither the model's name nor its minflux.json says that it was trained with references, as "
            "FLUX.1 Kontext was, whose weights look like dev's; others take little note of them"
        )


def listed(sizes: Sequence[tuple[int, int]]) -> str:
    """List sizes: each, or of many the least and the most."""
    texts = [f"{width}x{height}" for width, height in sorted(sizes)]
    return f"{len(texts)} sizes from {texts[0]} to {texts[-1]}" if len(texts) > SHOWN else " or ".join(texts)


def hint_at_guidance(guidance: Guidance, prompts: Sequence[str], negative: str | None) -> None:
    """Warn of guidance under which the prompt counts less than without any, or not at all."""
    if 0 < guidance.scale < 1:
        warn(
            f"guidance {guidance.scale:g}: below 1 the image follows the negative prompt more than with none; 1 is no "
            "guidance, above 1 it follows the prompt"
        )
    if guidance.needs_negative and negative and negative in prompts:
        warn("negative_prompt is the prompt itself: guidance has no effect")


def warn(line: str) -> None:
    """Give a hint."""
    warnings.warn(line, Hint, stacklevel=4)


# -- files ---------------------------------------------------------------------------------------------------


def parse_trained(values: Any, path: Path) -> Trained:
    """Make a `Trained` of what `minflux.json` has under "trained"; raises `CheckpointError` for what is no such."""
    try:
        given = {field.name: values.get(field.name, field.default) for field in fields(Trained)}
        trained = Trained(**{name: frozen(value) for name, value in given.items()})
        check_trained(trained)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: trained: expected words, spelled, sizes, megapixels, text_lengths and references as in the model "
            f"that ships; can't read it ({error})"
        ) from None
    return trained


def check_trained(trained: Trained) -> None:
    """Raise `ValueError` unless every value has the type and the length of its kind."""
    numbers = [trained.spelled, *trained.text_lengths, *(side for size in trained.sizes for side in size)]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a length or a size is no whole number")
    if isinstance(trained.words, str) or not all(isinstance(word, str) for word in trained.words):
        raise ValueError("words are no list of texts")
    if any(len(size) != 2 for size in trained.sizes) or len(trained.megapixels) not in (0, 2):
        raise ValueError("a size is no pair")
    if not all(type(number) in (int, float) for number in trained.megapixels):
        raise ValueError("megapixels are no numbers")
    if type(trained.references) is not bool:
        raise ValueError("references is neither true nor false")


def frozen(value: Any) -> Any:
    """Return a JSON value with tuples for its lists."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def trained_content(trained: Trained) -> dict[str, Any]:
    """Return what is written under "trained": what the model says, without what it leaves empty."""
    return {name: value for name, value in asdict(trained).items() if value}
