"""What the small models are trained on, for the hints of their `minflux.json`: words, sizes and lengths of text."""

import re
from typing import Any

from minflux.inference.hints import Trained
from minflux.train import scenes
from minflux.train.recipe import part, section
from minflux.train.tokenizers import training_captions
from minflux.train.velocity import Mixture
from minflux.world.scenes import LONGEST_WORD
from minflux.world.vocabulary import known_words


def trained_on_first_world(recipe: dict[str, Any]) -> Trained:
    """Return what the first world's model sees: the words of its captions, one size, one length of text."""
    words = set(re.findall(r"\w+", " ".join(training_captions()).lower()))
    length = part(recipe, "defaults")["text_length"]
    return Trained(words=tuple(sorted(words)), sizes=((scenes.SIDE, scenes.SIDE),), text_lengths=(length,))


def trained_on_second_world(recipe: dict[str, Any]) -> Trained:
    """Return what the second world's model sees: its words and what signs say, every size, the recipe's lengths."""
    mixture = section(Mixture, part(recipe, "flow.mixture"))
    return Trained(
        words=tuple(sorted(known_words())),
        spelled=LONGEST_WORD,
        sizes=tuple(sorted(mixture.size_shares())),
        text_lengths=tuple(length for length, _ in mixture.text),
    )
