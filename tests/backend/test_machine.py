"""What the system tells of itself: fields of its files, and how much memory is free, in a container too."""

from pathlib import Path

import pytest

from minflux.backend import machine
from tests.fuzz.judge import room

FREE = 8000 * 1024
STAT = "anon 7\nactive_file 30\ninactive_file 12\ntotal_active_file 300\ntotal_inactive_file 120\n"


@pytest.fixture
def system(tmp_path):
    """A system of files, given by what its control groups hold: name -> text, and the lines that name this one."""

    def make(named, files):
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "meminfo").write_text("MemTotal:  24000 kB\nMemAvailable:   8000 kB\n")
        (tmp_path / "proc" / "self" / "cgroup").write_text(named)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "proc", tmp_path / "groups"

    return make


def test_without_a_limit_it_is_what_the_system_says(system):
    assert machine.free_memory(*system("0::/\n", {})) == FREE


@pytest.mark.parametrize(
    ("named", "files", "free"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "5000\n", "a/b/memory.current": "4000\n"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "5000\n", "a/memory.current": "4000\n", "a/memory.stat": STAT}, 1042),
        ("0::/\n", {"memory.max": "5000\n", "memory.current": "4000\n"}, 1000),
        ("0::/of/the/outside\n", {"memory.max": "5000\n", "memory.current": "4000\n"}, 1000),
        ("0::/a\n", {"a/memory.max": "max\n", "a/memory.current": "4000\n"}, FREE),
        ("0::/a\n", {"a/memory.max": "5000\n", "a/memory.current": "6000\n"}, 0),
        ("0::/a\n", {"a/memory.max": "5000\n"}, FREE),
        (
            "5:cpu:/x\n4:hugetlb,memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "5000\n", "memory/a/memory.usage_in_bytes": "4000\n",
             "memory/a/memory.stat": STAT},
            1420,
        ),
        (
            "4:memory:/docker/123\n",
            {"memory/memory.limit_in_bytes": "5000\n", "memory/memory.usage_in_bytes": "4000\n"},
            1000,
        ),
        (
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "4000\n"},
            FREE,
        ),
    ],
    ids=["own", "above, with files", "top", "container", "none", "full", "unread", "v1", "v1 container", "v1 none"],
)  # fmt: skip
def test_a_container_s_limit_counts(system, named, files, free):
    assert machine.free_memory(*system(named, files)) == free


def test_the_memory_that_is_free_here_is_less_than_a_petabyte():
    assert 1 << 20 < machine.free_memory() < 1 << 50
    assert machine.free_memory() <= machine.total_memory()


def test_a_field_of_a_file_of_lines(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24 kB\nMemFree:  3 kB\n\nno colon\n")
    assert machine.field(path, "MemFree") == "3 kB"
    assert machine.field(path, "Swap") is None
    assert machine.field(tmp_path / "none", "MemFree") is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts memory by /proc")
def test_a_process_s_own_limit_counts():
    with room(50 << 20):
        assert 0 < machine.free_memory() <= 50 << 20
