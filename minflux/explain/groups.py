"""A drawing's tokens as a reader sees them: words, the padding as one, and cells of the image; attention between those.

A group takes of another the sum of what its tokens take, and the mean over its own tokens is shown. Where each token
is a group of its own, that is attention itself.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from minflux.arrays import Array, Float, shaped
from minflux.backend import backend_of
from minflux.model.attention import attention_weights

WORDS = 64  # tokens of the text that have a group of their own
QUERIES = 1024  # rows of attention at a time


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of a joint sequence, text first: their labels, the group of each token (L,), and the image's grid.

    The image's cells come after the groups of the text, which `labels` has in order, row by row.
    """

    labels: tuple[str, ...]
    members: np.ndarray
    grid: tuple[int, int]

    @property
    def count(self) -> int:
        """Number of groups, M."""
        rows, columns = self.grid
        return len(self.labels) + rows * columns

    @property
    def sums(self) -> np.ndarray:
        """Return the matrix (L, M) that adds up what belongs to a group."""
        return (self.members[:, None] == np.arange(self.count)).astype(np.float32)

    @property
    def means(self) -> np.ndarray:
        """Return the matrix (M, L) that takes the mean of a group."""
        sums = self.sums.T
        return sums / sums.sum(axis=1, keepdims=True)


def text_groups(tokenizer: Any, prompt: str, length: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels of a prompt's groups, and the group of each of its `length` tokens."""
    with warnings.catch_warnings(action="ignore"):  # of a prompt that is cut: encoding it for the model says so
        tokenizer([prompt], length)  # so that the next line cuts and pads as the model's text was
    encoding = tokenizer.backend.encode(prompt)
    labels = [label(prompt, *pair) for pair in zip(encoding.tokens, encoding.offsets, strict=True)]
    real = sum(encoding.attention_mask)
    alone, rest, padding = labels[: min(real, WORDS)], max(0, real - WORDS), length - real
    groups = alone + [f"{rest} more"] * (rest > 0) + [f"padding × {padding}"] * (padding > 0)
    members = [*range(len(alone)), *[len(alone)] * rest, *[len(groups) - 1] * padding]
    return tuple(groups), np.array(members)


def label(prompt: str, token: str, place: tuple[int, int]) -> str:
    """Return a token as the prompt spells it, or by its own name where it stands for no letters."""
    return prompt[slice(*place)] or token.replace("▁", "␣")


def image_groups(rows: int, columns: int, grid: tuple[int, int]) -> np.ndarray:
    """Return the cell of each of the image's tokens, row by row, cells being numbered row by row too.

    >>> image_groups(2, 4, (1, 2))
    array([0, 0, 1, 1, 0, 0, 1, 1])
    """
    row = np.arange(rows) * grid[0] // rows
    column = np.arange(columns) * grid[1] // columns
    return (row[:, None] * grid[1] + column).ravel()


def groups_of(tokenizer: Any, prompt: str, length: int, size: tuple[int, int], grid: tuple[int, int]) -> Groups:
    """Return the groups of a prompt of `length` tokens and of an image of `size` tokens, its rows and columns."""
    labels, text = text_groups(tokenizer, prompt, length)
    return Groups(labels, np.concatenate([text, len(labels) + image_groups(*size, grid)]), grid)


@shaped
def between(groups: Groups, q: Float[Array, "1 1 L K"], k: Float[Array, "1 1 L K"]) -> Float[np.ndarray, "M M"]:
    """Return what each group takes of each other one, of one head: rows sum to 1.

    Some queries at a time, so that a long sequence's L² weights are never held.
    """
    nx, sums = backend_of(q), groups.sums
    rows = []
    for start in range(0, q.shape[2], QUERIES):
        weights = attention_weights(q[:, :, start : start + QUERIES], k)
        rows.append(nx.to_numpy(nx.as_float32(weights))[0, 0] @ sums)
    return groups.means @ np.concatenate(rows)
