"""Processes that share a model, played by threads of this one, or really started on this machine."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minflux.backend import available, backend_of, processes
from minflux.backend.processes import Group

PATIENCE = 60  # seconds until a played process has surely been left waiting
LONG = 600  # and a real one, on a busy machine

needs_mlx = pytest.mark.skipif("mlx" not in available(), reason="processes talk through MLX, which isn't here")


class Played:
    """`size` processes in one: `run` calls a function once for each of them, and what they say to each other is kept.

    said: for each process the (op, shape) of what it gave, in order.
    """

    def __init__(self, size: int):
        self.size = size
        self.said: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(size)]
        self.given: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.mine = threading.local()

    def run(self, function: Callable[[Group], Any]) -> list[Any]:
        """Return what `function` returns in each process; raises what it raises."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def work(rank: int) -> None:
            self.mine.rank = rank
            try:
                results[rank] = function(Group(rank, self.size))
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return results

    def sum_of_all(self, x):
        return backend_of(x).array(np.sum(self._exchanged("sum", x), axis=0, dtype=np.float32), x.dtype)

    def rows_of_all(self, x):
        return backend_of(x).array(np.concatenate(self._exchanged("gather", x)), x.dtype)

    def _exchanged(self, op: str, x) -> list[np.ndarray]:
        rank = self.mine.rank
        self.said[rank].append((op, tuple(x.shape)))
        self.given[rank] = backend_of(x).to_numpy(x)
        self.barrier.wait(PATIENCE)
        everything = list(self.given)
        self.barrier.wait(PATIENCE)
        return everything


def played(monkeypatch, size: int) -> Played:
    """Let the ops between processes be those of `size` played ones."""
    team = Played(size)
    monkeypatch.setattr(processes, "sum_of_all", team.sum_of_all)
    monkeypatch.setattr(processes, "rows_of_all", team.rows_of_all)
    return team


# -- really started --------------------------------------------------------------------------------------------


def start(count: int, hosts: Path, *command: object, others: tuple = ()) -> list[subprocess.Popen]:
    """Start Python with these arguments in `count` processes of a ring on this machine, as `mlx.launch` does.

    others: the arguments of all but the first process, where they are not the same.
    """
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    env = os.environ | {"MLX_HOSTFILE": str(hosts), "MINFLUX_THREADS": "1"}
    given = [command, *[others or command] * (count - 1)]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)], env=env | {"MLX_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank, arguments in enumerate(given)
    ]  # fmt: skip


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
