"""The kinds of change that LoRA files hold: how a kind's arrays make the matrix D in W + scale · (α / r) · D.

    LoRA                D = B A                       B = lora.up (out, r), A = lora.down (r, in)
    a full difference   D                             as it is, without α / r
    LoHa                D = (B₁ A₁) ∘ (B₂ A₂)         the product of each two numbers
    LoKr                D = C₁ ⊗ C₂                   Kronecker's product, of matrices that are whole or each B A

DoRA is none of them, but what may be beside each: a magnitude m for every row of W + D, or for every column.

Sources: Hu et al. 2021 (arXiv 2106.09685), Hyeon-Woo et al. 2021 (2108.06098), Yeh et al. 2023 (2309.14859), Liu et al.
2024 (2402.09353); LyCORIS `modules/`, PEFT `tuners/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]  # by role
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of change: what its one or two matrices are called, and how they make one."""

    title: str
    factors: tuple[str, ...]
    combine: Callable[..., np.ndarray] = lambda whole: whole
    combine_shapes: Callable[..., Shape | None] = lambda whole: whole

    def matrix(self, arrays: Arrays) -> np.ndarray:
        """Return D."""
        return self.combine(*(product(arrays, factor) for factor in self.factors))

    def shape(self, arrays: Arrays) -> Shape | None:
        """Return D's shape without computing it; None where the arrays don't go together."""
        shapes = [product_shape(arrays, factor) for factor in self.factors]
        return None if None in shapes else self.combine_shapes(*shapes)

    def is_complete(self, arrays: Arrays) -> bool:
        """Return whether each matrix is there once: whole, or as a pair."""
        found = [{role for role in arrays if factor_of(role) == factor} for factor in self.factors]
        forms = [({factor}, {f"{factor}.up", f"{factor}.down"}) for factor in self.factors]
        return all(roles in form for roles, form in zip(found, forms, strict=True))

    def rank(self, arrays: Arrays) -> int | None:
        """Return the rank of the pairs, the last one's where there are two; None where no matrix is a pair."""
        pairs = [factor for factor in self.factors if f"{factor}.down" in arrays]
        return len(arrays[f"{pairs[-1]}.down"]) if pairs else None


def factor_of(role: str) -> str:
    """Return which matrix an array is, or is half of.

    >>> factor_of("hada_w1.up"), factor_of("diff")
    ('hada_w1', 'diff')
    """
    return role.partition(".")[0]


def product(arrays: Arrays, factor: str) -> np.ndarray:
    """Return a matrix that is whole, or the product of its halves."""
    return arrays[factor] if factor in arrays else arrays[f"{factor}.up"] @ arrays[f"{factor}.down"]


def product_shape(arrays: Arrays, factor: str) -> Shape | None:
    """Return the shape of a matrix that is whole or in halves; None for halves that can't be multiplied."""
    if factor in arrays:
        return arrays[factor].shape
    up, down = arrays[f"{factor}.up"].shape, arrays[f"{factor}.down"].shape
    return (up[0], down[1]) if len(up) == len(down) == 2 and up[1] == down[0] else None


def same_shape(one: Shape, other: Shape) -> Shape | None:
    """Return the shape of two that are one, None for others."""
    return one if one == other else None


def kronecker_shape(one: Shape, other: Shape) -> Shape | None:
    """Return the shape of Kronecker's product of two matrices."""
    return tuple(a * b for a, b in zip(one, other, strict=True)) if len(one) == len(other) == 2 else None


LORA = Kind("a LoRA", ("lora",))
DIFFERENCE = Kind("a full difference", ("diff",))
LOHA = Kind("LoHa", ("hada_w1", "hada_w2"), np.multiply, same_shape)
NORM = Kind("a norm in place of ours", ("norm",))  # whatever the scale, as diffusers and BFL have it
LOKR = Kind("LoKr", ("lokr_w1", "lokr_w2"), np.kron, kronecker_shape)
KINDS = (LORA, DIFFERENCE, LOHA, LOKR, NORM)


def kinds_of(arrays: Arrays) -> list[Kind]:
    """Return every kind that arrays of one module belong to."""
    factors = {factor_of(role) for role in arrays}
    return [kind for kind in KINDS if factors.intersection(kind.factors)]


def with_magnitude(changed: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Return W + D with each row, or each column, brought to its magnitude: DoRA's m · (W + D) / ‖W + D‖.

    magnitude: (rows, 1) or (1, columns).
    """
    axis = 1 if magnitude.shape[1] == 1 else 0
    return magnitude / np.linalg.norm(changed, axis=axis, keepdims=True) * changed
