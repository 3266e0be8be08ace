"""How much memory a process took at most."""

import contextlib
import resource
import sys
from pathlib import Path


def forget_peak() -> None:
    """Let this process's peak begin anew at what it holds now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(*others: int) -> int:
    """Bytes that this process, and `others` by their ids, had in memory at most: VmHWM; elsewhere this one's alone."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return sum(map(high_water, ("self", *others)))


def high_water(pid: int | str) -> int:
    """Read one process's VmHWM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_of_children() -> int:
    """Bytes of the largest process that this one has waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
