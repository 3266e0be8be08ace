"""A small fork-join: pieces of one op, worked on by all cores at once.

NumPy computes most things on one core, but lets go of Python's lock while it does; so threads that each take a piece of
an array do run side by side. Matrix products bring threads of their own, which would be too many: inside `parallel_for`
every product runs on the core that asks for it.

There are as many threads as this process may use cores, or as OMP_NUM_THREADS says; MINFLUX_THREADS goes before both.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

from minflux.errors import BackendError

_forked = Lock()  # held while pieces are worked on: a piece does not fork again, nor do two threads of a program
_pool: ThreadPoolExecutor | None = None
_blas: Any = None


def thread_count() -> int:
    """Return how many threads to use; raises `BackendError` when a variable says something else than a number."""
    for variable in ("MINFLUX_THREADS", "OMP_NUM_THREADS"):
        wanted = os.environ.get(variable, "").partition(",")[0]
        if wanted:
            return checked_count(variable, wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def checked_count(variable: str, value: str) -> int:
    """Return an environment variable's value as a whole number; raises `BackendError` unless it is at least 1."""
    if not value.isdecimal() or int(value) < 1:
        raise BackendError(f"{variable} must be a whole number of at least 1, got {value!r}")
    return int(value)


def parallel_for(task: Callable[[Any], None], pieces: Iterable) -> None:
    """Call task(piece) for every piece, in any order, on all threads; return when the last call has ended.

    What a task raises is raised here, and the pieces not yet begun are given up.
    """
    pieces = deque(pieces)
    threads = min(thread_count(), len(pieces)) if len(pieces) > 1 else 1
    if threads == 1 or not _forked.acquire(blocking=False):
        for piece in pieces:
            task(piece)
        return
    try:
        with products_on_one_core():
            _work_together(task, pieces, threads)
    finally:
        _forked.release()


def _work_together(task: Callable[[Any], None], pieces: deque, threads: int) -> None:
    """Work on the pieces with threads - 1 helpers beside this thread; return when all have ended."""
    helpers = [_workers().submit(_work, task, pieces) for _ in range(threads - 1)]
    try:
        _work(task, pieces)
    finally:
        wait(helpers)
    for helper in helpers:
        helper.result()  # raises what the helper's task raised


def _work(task: Callable[[Any], None], pieces: deque) -> None:
    """Call the task for piece after piece until none is left; an error leaves none for the other threads."""
    try:
        for piece in _taken(pieces):
            task(piece)
    except BaseException:
        pieces.clear()
        raise


def _taken(pieces: deque) -> Iterator:
    """Take pieces off the left end, which other threads shorten as well, and yield them."""
    while True:
        try:
            piece = pieces.popleft()
        except IndexError:
            return
        yield piece


def products_on_one_core() -> Any:
    """Return a context in which each of NumPy's matrix products runs on the core that asks for it."""
    global _blas
    if _blas is None:
        from threadpoolctl import ThreadpoolController  # its search for libraries takes some milliseconds

        _blas = ThreadpoolController().select(user_api="blas")
    return _blas.limit(limits=1)


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix="minflux")
    return _pool


def _forget_threads() -> None:
    """Start anew in a process that was forked off: threads are not copied with it."""
    global _pool, _forked
    _pool, _forked = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
