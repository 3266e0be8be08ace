"""What a small model is trained on, for the hints of its `minflux.json`: words, sizes and lengths of text."""

from typing import Any

from minflux.inference.hints import Trained
from minflux.train.recipe import part, section, stages
from minflux.train.velocity import Mixture, counts_of
from minflux.world.scenes import LONGEST_WORD
from minflux.world.vocabulary import known_words


def trained_on(recipe: dict[str, Any]) -> Trained:
    """Return what a recipe's model sees in any stage: its words, what signs say, sizes, lengths of text."""
    mixtures = [section(Mixture, part(recipe, f"flow.{stage}.mixture")) for stage in stages(recipe, "flow")]
    return Trained(
        words=tuple(sorted(known_words())),
        spelled=LONGEST_WORD,
        sizes=tuple(sorted({size for mixture in mixtures for size in counts_of(mixture, scenes=1)})),
        text_lengths=tuple(sorted({length for mixture in mixtures for length, _ in mixture.text})),
    )
