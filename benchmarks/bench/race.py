"""Runs one work on all contenders: starts their workers, compares the results, and goes round them."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.bench.job import Contender
from benchmarks.bench.worker import Task
from benchmarks.bench.works import Work
from tools.synthetic_checkpoint import make_component

COMPILING = 60  # seconds that a compiled contender may take until it is warm
FEWEST = 3  # rounds
FOREVER = threading.TIMEOUT_MAX
ROOT = Path(__file__).parent.parent.parent

Say = Callable[[str], None]


@dataclass
class Lap:
    """What was found out about one contender: the seconds of its runs, or a reason why there are none."""

    contender: str
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    error: float | None = None
    failure: str = ""
    wrong: bool = False


class Worker:
    """The other end of a worker's pipes; its processes stand still but in their turn.

    Otherwise threads that wait for work, of a BLAS or of MLX's ring, would go on turning on the others' cores.
    """

    def __init__(self, task: Task):
        self.task = task
        self.lap = Lap(task.contender.name)
        path = task.folder / f"{task.contender.name}.task"
        path.write_bytes(pickle.dumps(task))
        command = [sys.executable, "-m", "benchmarks.bench.worker", str(path)]
        self.log = path.with_suffix(".log").open("w+")
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, bufsize=1, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip

    def signal(self, what: signal.Signals) -> None:
        """Send a signal to all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, what)

    def answer(self, timeout: float = FOREVER) -> dict:
        """Wait for a line; raises `RaceError` when the worker fails, or takes longer than `timeout` seconds."""
        began, too_late = time.monotonic(), threading.Timer(timeout, self.signal, [signal.SIGKILL])
        too_late.start()
        try:
            line = self.process.stdout.readline()
        finally:
            too_late.cancel()
        if not line and time.monotonic() - began > timeout:
            raise RaceError(f"not ready after {timeout:.0f} s")
        if not line:
            raise RaceError(f"ended with exit code {self.process.wait()}: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RaceError(answer["error"])
        return answer

    def last_words(self) -> str:
        """The last line it wrote on standard error."""
        self.log.seek(0)
        return (self.log.read().strip().splitlines() or [""])[-1]

    def get_ready(self) -> None:
        """Wait until it has loaded, and is warm."""
        self.answer()
        self.answer(COMPILING if self.task.contender.compiled else FOREVER)
        self.signal(signal.SIGSTOP)

    def run(self) -> None:
        """Have it take a turn."""
        self.signal(signal.SIGCONT)
        self.process.stdin.write("go\n")
        answer = self.answer()
        self.signal(signal.SIGSTOP)
        self.lap.seconds.append(answer["seconds"])
        self.lap.peak = answer["peak"]

    def end(self) -> None:
        """End its processes."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class RaceError(Exception):
    """Why a contender has no times."""


def race(
    work: Work, contenders: list[Contender], reference: str, device: str, rounds: int, seconds: float, say: Say
) -> list[Lap]:
    """Measure a work; the laps are filled as it goes, so that an interrupted race leaves what it has.

    Every contender runs `rounds` times, or fewer if all runs together take more than `seconds`, but `FEWEST` at least.
    """
    with TemporaryDirectory(prefix="minflux-bench-") as temporary:
        folder = Path(temporary)
        workers: list[Worker] = []
        laps: list[Lap] = []
        try:
            for part, cfg in work.parts.items():
                make_component(folder, part, cfg, "bf16" if device == "gpu" else "f32")
            for contender in contenders:
                say(f"{work.name}: {contender.name} loads and warms up")
                workers.append(Worker(Task(contender, work, folder, device)))
                laps.append(workers[-1].lap)
                attempt(workers[-1], workers[-1].get_ready)
            agree(workers, reference)
            go_round(
                [w for w in workers if not w.lap.failure], rounds, seconds, lambda what: say(f"{work.name}: {what}")
            )
        except KeyboardInterrupt:
            raise Interrupted(laps) from None
        finally:
            for worker in workers:
                worker.end()
    return laps


def stop_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does, once: workers that stand still would outlive this process."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


class Interrupted(Exception):
    """Ctrl-C, with the laps that were run."""

    def __init__(self, laps: list[Lap]):
        self.laps = laps


def attempt(worker: Worker, what: Callable[[], None]) -> None:
    """Have a worker do something; write down why it can't."""
    try:
        what()
    except (RaceError, BrokenPipeError) as error:
        worker.lap.failure = str(error)


def agree(workers: list[Worker], reference: str) -> None:
    """Compare every result with the reference's; who is wrong is not timed."""
    results = {w.task.contender.name: np.load(w.task.result) for w in workers if not w.lap.failure}
    if reference not in results:
        return
    for worker in workers:
        if worker.lap.failure:
            continue
        lap, tolerance = worker.lap, worker.task.contender.tolerance
        lap.error = relative_error(results[lap.contender], results[reference])
        if not lap.error <= tolerance:
            lap.failure = f"WRONG: {lap.error:.1e} from {reference}, allowed {tolerance:.0e}"
            lap.wrong = True


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """|got - expected| / |expected|, in float64; infinite where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def go_round(workers: list[Worker], rounds: int, seconds: float, say: Say) -> None:
    """Let each run in turn."""
    for i in range(rounds):
        if i >= FEWEST and sum(sum(w.lap.seconds) for w in workers) > seconds:
            break
        say(f"round {i + 1} of {rounds}")
        for worker in workers:
            attempt(worker, worker.run)
