"""What a stack of blocks does after each of them unless it is told otherwise."""

from minflux.arrays import Array


def nothing(*x: Array) -> None:
    """Do nothing after a block."""
