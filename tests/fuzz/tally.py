"""Draw cases, judge each, and count how they ended: of each kind of fault the shortest case is kept."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

from tests.fuzz.judge import Fault, judge

LAST = Path("runs/fuzz/last.txt").absolute()
QUIET = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}


@dataclass(frozen=True)
class Found:
    """A case that ended in a fault: its number among the cases, what it is, and what was wrong."""

    number: int
    shown: str
    fault: str


@dataclass
class Tally:
    """How cases ended, and of each kind of fault the shortest case; `only` is the number of a case to try alone."""

    name: str
    only: int | None
    bar: tqdm
    number: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Found] = field(default_factory=dict)

    def __call__(self, case) -> None:
        """Judge a case, and count how it ended."""
        self.number += 1
        self.bar.update()
        if self.only in (None, self.number):
            self.endings[self.judge(case)] += 1

    def judge(self, case) -> str:
        shown = repr(case)
        LAST.write_text(f"{self.name} {self.number}: {shown}\n")
        try:
            return judge(case)
        except Fault as fault:
            self.keep(where(fault), Found(self.number, shown, str(fault)))
            return "bad"

    def keep(self, kind: str, found: Found) -> None:
        if kind not in self.faults or len(found.shown) < len(self.faults[kind].shown):
            self.faults[kind] = found

    def report(self, again: str) -> str:
        """Return the counts, and each fault with the command to see it `again`."""
        counts = ", ".join(f"{count} {ending}" for ending, count in sorted(self.endings.items()))
        lines = [f"{self.name}: {self.endings.total()} tried: {counts}"]
        for kind, found in self.faults.items():
            lines += [f"  {kind}: {found.fault!a}", f"    {found.shown}"]
            lines += [f"    {again} --only {self.name} --case {found.number}"]
        return "\n".join(lines)


def where(fault: Fault) -> str:
    """Name a fault's kind: its error, and the last lines of minflux that it passed."""
    cause = fault.__cause__ or fault
    frames, trace = [], cause.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if f"{os.sep}minflux{os.sep}" in code.co_filename:
            frames.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(cause).__name__} at {' '.join(frames[-3:])}"


def fuzz(name: str, cases: st.SearchStrategy, count: int, number: int, only: int | None) -> Tally:
    """Draw and judge `count` cases of one kind."""
    LAST.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=count, desc=name, unit="case", disable=None, leave=False) as bar:
        tally = Tally(name, only, bar)
        settings(max_examples=count, **QUIET)(seed(number)(given(cases)(tally.__call__)))()
    return tally
