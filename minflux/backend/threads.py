"""A small fork-join: pieces of one op, worked on by all cores at once.

NumPy computes most things on one core, but lets go of Python's lock while it does; so threads that each take a piece of
an array do run side by side. Matrix products bring threads of their own, which would be too many: inside `each` every
product runs on the core that asks for it.

There are as many threads as this process may use cores, or as OMP_NUM_THREADS says; MINFLUX_THREADS goes before both.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

from minflux.errors import BackendError

_forked = Lock()  # held while pieces are worked on: a piece does not fork again, nor do two threads of a program
_pool: ThreadPoolExecutor | None = None
_blas: Any = None


def count() -> int:
    """Tell how many threads there are; raises `BackendError` when a variable says something else than a number."""
    for variable in ("MINFLUX_THREADS", "OMP_NUM_THREADS"):
        if wanted := os.environ.get(variable, "").partition(",")[0]:
            if not wanted.isdecimal() or int(wanted) < 1:
                raise BackendError(f"{variable} must be a whole number of at least 1, got {wanted!r}")
            return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(task: Callable[[int], None], pieces: int) -> None:
    """Call task(0), …, task(pieces - 1), in any order, on all threads; return when the last is done.

    What a task raises is raised here, and the pieces not yet begun are given up.
    """
    threads = min(count(), pieces)
    if threads < 2 or not _forked.acquire(blocking=False):
        for i in range(pieces):
            task(i)
        return
    todo = deque(range(pieces))
    try:
        with products_on_one_core():
            helpers = [_workers().submit(_work, task, todo) for _ in range(threads - 1)]
            try:
                _work(task, todo)
            finally:
                wait(helpers)
        for helper in helpers:
            helper.result()
    finally:
        _forked.release()


def _work(task: Callable[[int], None], todo: deque[int]) -> None:
    """Work off what is to do; an error leaves nothing to do for the others."""
    try:
        while (piece := _next(todo)) is not None:
            task(piece)
    except BaseException:
        todo.clear()
        raise


def _next(todo: deque[int]) -> int | None:
    try:
        return todo.popleft()
    except IndexError:
        return None


def products_on_one_core() -> Any:
    """Make a context in which each of NumPy's matrix products runs on the core that asks for it."""
    global _blas
    if _blas is None:
        from threadpoolctl import ThreadpoolController  # its search for libraries takes some milliseconds

        _blas = ThreadpoolController().select(user_api="blas")
    return _blas.limit(limits=1)


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, count() - 1), thread_name_prefix="minflux")
    return _pool


def _forget() -> None:
    """Start anew in a process that was forked off: threads are not copied with it."""
    global _pool, _forked
    _pool, _forked = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
