"""What this machine has: facts that the system tells, and how much memory is free to use."""

import os
import subprocess
import sys
from pathlib import Path


def field(path: str | Path, name: str, separator: str = ":") -> str | None:
    """Return what follows "name :" in a file of such lines, None if there is no such file or line."""
    pairs = (line.partition(separator) for line in lines(path))
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)


def lines(path: str | Path) -> list[str]:
    """Read a text file's lines; none where it can't be read."""
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def sysctl(name: str) -> str | None:
    """Ask macOS for one of its facts; None on other systems."""
    if sys.platform != "darwin":
        return None
    answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


# -- memory --------------------------------------------------------------------------------------------------


def total() -> int:
    """Tell how many bytes of memory there are; 0 where the system doesn't say."""
    return meminfo("MemTotal") or int(sysctl("hw.memsize") or 0)


def available(proc: str | Path = "/proc", groups: str | Path = "/sys/fs/cgroup") -> int:
    """Tell how many bytes of memory are free to use: Linux's own estimate, or less where a container's limit is nearer.

    On other systems it is half of all there is.
    """
    free = meminfo("MemAvailable", proc) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *left_in_groups(proc, groups)])


def meminfo(name: str, proc: str | Path = "/proc") -> int:
    """Read an entry of /proc/meminfo, in bytes; 0 where it isn't there."""
    return 1024 * int((field(Path(proc, "meminfo"), name) or "0").split()[0])


def left_in_groups(proc: str | Path, groups: str | Path) -> list[int]:
    """List what is left to this process in each control group that limits it: its own, and those that hold it.

    /proc/self/cgroup names the group: "0::/a/b" for version 2, "4:memory:/a/b" for version 1. In a container only the
    topmost may be there to be seen, and the name be the outside's. Source: Linux, `Documentation/admin-guide`,
    `cgroup-v2.rst` and `cgroup-v1/memory.rst`.
    """
    left = []
    for line in lines(Path(proc, "self", "cgroup")):
        _, controllers, name = line.split(":", 2)
        group = Path(name.lstrip("/"))
        for folder in (group, *group.parents):
            if not controllers:
                left.append(left_in(Path(groups, folder), "memory.max", "memory.current", ""))
            elif "memory" in controllers.split(","):
                folder = Path(groups, "memory", folder)
                left.append(left_in(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
    return [count for count in left if count is not None]


def left_in(folder: Path, limit: str, used: str, prefix: str) -> int | None:
    """Tell how many bytes a control group's limit leaves, None if it has none: what it uses can't be taken again.

    Files that the system has read count as used, but are given up when memory is needed.
    """
    numbers = [line for name in (limit, used) for line in lines(folder / name)]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None
    kept = [field(folder / "memory.stat", f"{prefix}{kind}", " ") for kind in ("active_file", "inactive_file")]
    return max(0, int(numbers[0]) - int(numbers[1]) + sum(int(count or 0) for count in kept))
