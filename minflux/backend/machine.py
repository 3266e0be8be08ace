"""What the system tells of this machine, and how much memory is free to use."""

import os
import subprocess
import sys
from pathlib import Path


def field(path: str | Path, name: str, separator: str = ":") -> str | None:
    """Return the value of the line "name : value" in a file, or None if there is no such file or line."""
    pairs = (line.partition(separator) for line in lines(path))
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)


def lines(path: str | Path) -> list[str]:
    """Return a text file's lines, or an empty list where it can't be read."""
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def sysctl(name: str) -> str | None:
    """Return what macOS's `sysctl` says for a name, or None on other systems."""
    if sys.platform != "darwin":
        return None
    answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


# -- memory --------------------------------------------------------------------------------------------------


def total_memory() -> int:
    """Return how many bytes of memory the machine has, or 0 where the system doesn't say."""
    return meminfo("MemTotal") or int(sysctl("hw.memsize") or 0)


def free_memory(proc: str | Path = "/proc", groups: str | Path = "/sys/fs/cgroup") -> int:
    """Return how many bytes of memory are free: Linux's own estimate, or less where a limit is nearer.

    A limit is a container's, or this process's own (`ulimit -v`). On other systems half of all memory is taken to be
    free.
    """
    free = meminfo("MemAvailable", proc) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *left_in_groups(proc, groups), *left_to_process(proc)])


def left_to_process(proc: str | Path) -> list[int]:
    """List what this process's limit of addresses leaves to it; nothing where there is no limit."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = " ".join(lines(Path(proc, "self", "statm"))).split()
    if limit == resource.RLIM_INFINITY or not pages:
        return []
    return [max(0, limit - int(pages[0]) * resource.getpagesize())]


def meminfo(name: str, proc: str | Path = "/proc") -> int:
    """Return an entry of /proc/meminfo in bytes, or 0 where it isn't there."""
    return 1024 * int((field(Path(proc, "meminfo"), name) or "0").split()[0])


def left_in_groups(proc: str | Path, groups: str | Path) -> list[int]:
    """List the bytes left to this process in each control group with a limit: its own group and those around it.

    /proc/self/cgroup names the group: "0::/a/b" for version 2, "4:memory:/a/b" for version 1. In a container the name
    may be the one outside, and only the topmost group may be visible. Source: Linux, `Documentation/admin-guide`,
    `cgroup-v2.rst` and `cgroup-v1/memory.rst`.
    """
    left = []
    for line in lines(Path(proc, "self", "cgroup")):
        _, controllers, name = line.split(":", 2)
        group = Path(name.lstrip("/"))
        if not controllers:
            root, files = Path(groups), ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            root, files = Path(groups, "memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        left += [left_in(root / folder, *files) for folder in (group, *group.parents)]
    return [size for size in left if size is not None]


def left_in(folder: Path, limit: str, used: str, prefix: str) -> int | None:
    """Return how many bytes a control group's limit leaves beside those in use, or None if the group has no limit.

    Files that the system keeps in memory count as used, but are given up when memory is needed.
    """
    numbers = [line for name in (limit, used) for line in lines(folder / name)]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None  # version 2 writes "max" where there is no limit
    files = [field(folder / "memory.stat", f"{prefix}{kind}", " ") for kind in ("active_file", "inactive_file")]
    return max(0, int(numbers[0]) - int(numbers[1]) + sum(int(size or 0) for size in files))


def readable(count: int) -> str:
    """Return a number of bytes as people read it.

    >>> readable(26_700_000), readable(512)
    ('26.7 MB', '512 bytes')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
