"""Judge one case: it ends in minflux's own error, in one printable line, or in what was asked for, soon and in bounds.

Anything else is a fault: another error, a line with control characters, more than `SECONDS`, or more than `ROOM` bytes
beside what the process had. The room is a limit of the system's, so asking for more is a MemoryError, not a dead
process; minflux sees it as it sees any limit of memory.
"""

import contextlib
import signal
import threading
import warnings
from collections.abc import Callable, Iterator

from minflux.errors import MinfluxError

SECONDS, ROOM = 10, 3 << 29
RIGHT, REFUSED = "right", "refused"


class Fault(AssertionError):
    """A case did not end as it should."""


class TooSlow(BaseException):
    """A case took too long; no Exception, so that no code takes it for one of its own."""


def judge(act: Callable[[], object]) -> str:
    """Do what a case says; return how it ended, `RIGHT` or `REFUSED`, or raise `Fault` that says what was wrong."""
    with warnings.catch_warnings(record=True) as told, limited():
        warnings.simplefilter("always")
        try:
            act()
            ending = RIGHT
        except MinfluxError as error:
            check_line(str(error))
            ending = REFUSED
        except Fault:
            raise
        except TooSlow as error:
            raise Fault(f"more than {SECONDS} s") from error
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error}"[:300]) from error
    for warning in told:
        check_line(str(warning.message))
    return ending


def check_line(text: str) -> None:
    """Raise `Fault` unless a message is one line of characters that can be shown."""
    if not text.isprintable():
        raise Fault(f"can't be shown in one line: {text!a}"[:300])
    if len(text) > 3000:
        raise Fault(f"a message of {len(text)} characters: {text[:100]}")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limit time and memory, where the system can, until the block ends."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    with room(ROOM):
        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def stop(*_) -> None:
    raise TooSlow


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Limit this process's memory to `size` bytes more than it has, where the system counts them."""
    import resource

    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not on macOS
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
