"""Guidance: how strongly an image follows its prompt."""

from dataclasses import dataclass

from minflux.arrays import Array


@dataclass(frozen=True)
class Guidance:
    """The two ways to follow a prompt more strongly.

    embedded: an input of models that were distilled with guidance (FLUX.1-dev and its kin), None for others. scale: of
    classifier-free guidance, which needs a second pass with a negative prompt at every step; 1 for none.
    """

    embedded: float | None = None
    scale: float = 1.0

    @property
    def needs_negative(self) -> bool:
        """Whether a negative prompt has an effect, and a second pass is needed."""
        return self.scale != 1.0


def guided(v: Array, scale: float) -> Array:
    """Apply classifier-free guidance: v_neg + scale · (v_pos - v_neg), from a batch (2 B, ...), positive first.

    Source: Ho & Salimans 2022 (arXiv 2207.12598).
    """
    half = v.shape[0] // 2
    positive, negative = v[:half], v[half:]
    return negative + scale * (positive - negative)
