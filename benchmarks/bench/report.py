"""The tables."""

from statistics import median

from benchmarks.bench.race import Lap
from benchmarks.bench.works import Work
from benchmarks.model_card import table

HEADING = ["", "ms", "least to most", "GFLOP/s", "of the peak", "memory, GB", "time to {}'s", "error"]


def rows(work: Work, laps: list[Lap], reference: str, peak: float) -> list[list[str]]:
    """Make the table of one work; `peak` is in GFLOP/s."""
    base = next((median(lap.seconds) for lap in laps if lap.contender == reference and lap.seconds), 0.0)
    return [[cell.format(reference) for cell in HEADING], *(row(lap, work.flops, base, peak) for lap in laps)]


def row(lap: Lap, flops: float, base: float, peak: float) -> list[str]:
    """Make one contender's row."""
    if not lap.seconds:
        return [lap.contender, lap.failure or "–", *[""] * (len(HEADING) - 2)]
    middle = median(lap.seconds)
    speed = flops / middle / 1e9
    return [
        lap.contender,
        figures(1000 * middle),
        f"{figures(1000 * min(lap.seconds))} to {figures(1000 * max(lap.seconds))}",
        figures(speed) if flops else "–",
        f"{speed / peak:.0%}" if flops and peak else "–",
        f"{lap.peak / 1e9:.2f}",
        f"{middle / base:.2f}" if base else "–",
        "–" if lap.error is None else f"{lap.error:.1e}" if lap.error else "0",
    ]


def figures(x: float) -> str:
    """Write a number with three figures, larger ones whole.

    >>> [figures(x) for x in (0.01234, 1.234, 12.34, 123.4, 1234.5)]
    ['0.0123', '1.23', '12.3', '123', '1234']
    """
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def section(work: Work, laps: list[Lap], reference: str, peak: float) -> str:
    """Make a work's heading and table."""
    count = f": {figures(work.flops / 1e9)} GFLOP" if work.flops else ""
    return f"**{work.name}**, {work.title}{count}\n\n{table(rows(work, laps, reference, peak))}"
