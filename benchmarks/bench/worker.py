"""A process with one contender in it: loads, computes once for the check, warms up, then computes when told to.

    python -m benchmarks.bench.worker TASK        TASK: a pickled `Task`

It is told by a line on standard input, and answers with a line of JSON.
"""

import ctypes
import json
import os
import pickle
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.bench.contenders import prepare
from benchmarks.bench.job import Contender
from benchmarks.bench.peak import forget_peak
from benchmarks.bench.works import Work

TURN = 0.4  # seconds that a contender may use when its turn comes
PR_SET_PDEATHSIG = 1  # of sys/prctl.h
LONG = 5.0  # seconds: a work that takes so long is warm after the one run whose result is compared


@dataclass(frozen=True)
class Task:
    """What a worker is given: the folder holds the weights, and takes its result."""

    contender: Contender
    work: Work
    folder: Path
    device: str

    @property
    def result(self) -> Path:
        """Where the result goes."""
        return self.folder / f"{self.contender.name}.npy"


def main(path: str) -> None:
    """Serve until standard input ends."""
    end_with_parent()
    answers = quiet_stdout()
    task = pickle.loads(Path(path).read_bytes())
    try:
        serve(task, answers)
    except Exception as error:
        say(answers, error=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        raise


def serve(task: Task, answers: TextIO) -> None:
    """Load, warm up, and take a turn for each line that comes."""
    warnings.simplefilter("ignore")
    job = prepare(task.contender, task.work, task.folder, task.device)
    say(answers, stage="loaded")
    forget_peak()
    began = time.perf_counter()
    np.save(task.result, job.result())
    if time.perf_counter() - began < LONG:
        job.run()
    say(answers, stage="ready")
    for _ in sys.stdin:
        say(answers, seconds=turn(job.run), peak=job.peak())


def turn(run: Callable[[], Any], least: float = TURN) -> float:
    """Time one run in seconds; of a short one as many as `least` seconds take, and their median.

    Idle threads are asleep and caches hold others' data, which a step that follows another doesn't meet: where there
    is time for many runs, the first is not counted.
    """
    times: list[float] = []
    while not times or sum(times) < least:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:] or times)


def end_with_parent() -> None:
    """Have Linux end this process when its parent ends, even one that stands still."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def quiet_stdout() -> TextIO:
    """Keep standard output for the answers: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def say(answers: TextIO, **what: object) -> None:
    """Answer."""
    print(json.dumps(what), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
