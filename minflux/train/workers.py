"""Training on several cores: one process a worker, each with its share of every batch.

On a CPU, MLX runs most ops on one core. So a run with `workers = 2` starts itself once more; both processes hold the
same weights, differentiate one half of the batch each, and average their gradients over a socket of this machine
(MLX's "ring"), after which each takes the same step. The first process alone logs and saves.

    with assemble(2) as team:    # one team for all stages of a training; after it the first process goes on alone
        ...
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from minflux.arrays import Tree
from minflux.backend import Backend, blas
from minflux.checkpoints.tree import leaves, tree_map
from minflux.errors import MinfluxError

RANK, HOSTS = "MLX_RANK", "MLX_HOSTFILE"


@dataclass
class Team:
    """The processes that train together, as one of them sees it: its rank, and how many they are."""

    rank: int = 0
    size: int = 1
    others: list[subprocess.Popen] = field(default_factory=list)

    def share(self, x: Any) -> Any:
        """Return this process's part of a batch (B, ...) or list: every size-th row, from its rank on."""
        return x[self.rank :: self.size]

    def mean(self, nx: Backend, tree: Tree) -> Tree:
        """Average a tree of float32 arrays over all processes, as one message."""
        if self.size == 1:
            return tree
        total = nx.xp.distributed.all_sum(nx.concatenate([x.reshape(-1) for _, x in leaves(tree)]))
        place = 0

        def cut(x):
            nonlocal place
            place += x.size
            return (total[place - x.size : place] / self.size).reshape(x.shape)

        return tree_map(cut, tree)

    def wait(self, nx: Backend) -> None:
        """Return when all processes have come this far."""
        nx.eval(self.mean(nx, [nx.zeros(1, dtype=nx.float32)]))

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the other processes; one of the others ends here."""
        for other in self.others:
            other.kill()
            other.wait()
        if self.rank > 0 and kind is None:
            raise SystemExit


ALONE = Team()


def assemble(size: int) -> Team:
    """Start `size` - 1 copies of this very command, and return the team, connected; in a copy, join it.

    Raises `MinfluxError` the second time: MLX's ring is made once in a process.
    """
    if size == 1:
        return ALONE
    if os.environ.get(RANK) == "0":
        raise MinfluxError("workers: this process has already led a team; start a new one for each training")
    blas.set_threads(1)
    team = _join() if RANK in os.environ else Team(0, size, _start_others(size))
    _keep_to_one_core(team.rank)
    import mlx.core as mx

    mx.distributed.init(strict=True, backend="ring")
    return team


def _keep_to_one_core(rank: int) -> None:
    """Bind this process to a core of its own where the system can: two that share one would wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})


def _start_others(size: int) -> list[subprocess.Popen]:
    """Write the list of addresses, take rank 0, and start the rest under it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as hosts:  # kept: all read it
        json.dump([[f"127.0.0.1:{port}"] for port in _free_ports(size)], hosts)
    os.environ |= {HOSTS: hosts.name, RANK: "0"}
    command = [sys.executable, *sys.orig_argv[1:]]
    return [subprocess.Popen(command, env=os.environ | {RANK: str(rank)}) for rank in range(1, size)]


def _join() -> Team:
    """Be one of the others: leave Ctrl-C to the first process, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with open(os.environ[HOSTS]) as file:
        return Team(int(os.environ[RANK]), len(json.load(file)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
