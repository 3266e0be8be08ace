"""Classifier-free guidance: away from what the negative prompt would draw."""

from minflux.arrays import Array


def guided(v: Array, scale: float) -> Array:
    """Classifier-free guidance: v_neg + scale · (v_pos - v_neg), from a batch (2 B, ...) of positive then negative.

    Source: Ho & Salimans 2022 (arXiv 2207.12598).
    """
    half = v.shape[0] // 2
    positive, negative = v[:half], v[half:]
    return negative + scale * (positive - negative)
