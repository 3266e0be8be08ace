"""The processes that work together, on one machine or several: MLX's own `mx.distributed`, as `mlx.launch` starts it.

    mlx.launch -n 2 -- minflux generate "a cat" --split

Each process has a rank, and runs the same command. What they say to each other is two ops, a sum and a gathering
(`Backend.all_sum`, `Backend.all_gather`). MLX sends NumPy's arrays too, so either backend computes. A sum is the same
in every process, to the bit.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from minflux.arrays import Array
from minflux.errors import MinfluxError

Item = TypeVar("Item")

RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # set by mlx.launch: its own backends', and MPI's
HOSTS = "MLX_HOSTFILE"  # the ring's addresses; an empty file for a single process
LONGEST = 256  # bytes that processes are compared by
LOST = "connection to a peer was lost"  # of MLX's message, when another process has ended


@dataclass(frozen=True)
class Group:
    """The processes that were started together, as one of them sees it: its rank, and how many they are."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of a list: every size-th item, from its rank on.

        >>> Group(rank=1, size=3).share("abcdefg")
        'be'
        """
        return items[self.rank :: self.size]


ALONE = Group()


def was_launched() -> bool:
    """Return whether this process was started together with others."""
    hosts = os.environ.get(HOSTS)
    is_single = hosts is not None and not Path(hosts).read_text().strip()
    return any(rank in os.environ for rank in RANKS) and not is_single


def connect() -> Group:
    """Join the processes that were started with this one, and return their group; `ALONE` where there are none.

    Raises `MinfluxError` when they can't be reached, `BackendError` where MLX is not installed.
    """
    if not was_launched():
        return ALONE
    try:
        group = library().distributed.init(strict=True)
    except RuntimeError as error:
        raise MinfluxError(f"the processes could not be connected: {error}") from error
    return Group(group.rank(), group.size())


@contextmanager
def together() -> Iterator[Group]:
    """Join the processes that were started with this one; after the `with` block, wait until all have come that far.

    A process that ended earlier would take from the others what it has yet to pass on. Where the block raises, nobody
    is waited for: the others find out that this process is lost.
    """
    group = connect()
    yield group
    if group.size > 1:
        wait_for_all()


def wait_for_all() -> None:
    """Return when all processes have called this, or are gone."""
    mx = library()
    try:
        mx.eval(sum_of_all(mx.zeros(1)))
    except RuntimeError as error:  # one went on before its answer arrived here, so all have come this far
        if not is_loss(error):
            raise


def check_alike(group: Group, what: str) -> None:
    """Raise `MinfluxError` unless every process of a group says the same of itself, in at most `LONGEST` bytes.

    MLX's version is compared too, for it says in which order sums are taken.
    """
    mx = library()
    what = f"{what}, MLX {mx.__version__}"
    own = list(what.encode()[:LONGEST].ljust(LONGEST))
    said = rows_of_all(mx.array([own]))
    mx.eval(said)
    for rank, other in enumerate(said.tolist()):
        if other != own:
            found = bytes(other).decode(errors="replace").strip()
            raise MinfluxError(f"the processes differ: process {group.rank} has {what}; process {rank} has {found}")


def is_loss(error: BaseException) -> bool:
    """Return whether an error of MLX's says that another process has ended."""
    return isinstance(error, RuntimeError) and LOST in str(error)


def sum_of_all(x: Array) -> Array:
    """Return the sum of the arrays that all processes give, as MLX's."""
    return answered(x, library().distributed.all_sum)


def rows_of_all(x: Array) -> Array:
    """Return the rows of the arrays that all processes give, one process after the other, as MLX's."""
    return answered(x, library().distributed.all_gather)


def answered(x: Array, op: Callable[[Array], Array]) -> Array:
    """Return what comes of an array that is given to the others; of a NumPy array, once they have answered.

    If one is lost, MLX says so when it computes the answer. NumPy, which copies it, would not hear that.
    """
    mx = library()
    answer = op(mx.array(x))
    if not isinstance(x, mx.array):
        mx.eval(answer)
    return answer


def library() -> Any:
    """Return MLX's module; raises `BackendError` where it is not installed.

    It is imported when it is needed, by the backend's own file, which knows how.
    """
    return import_module("minflux.backend.mlx").mx
