"""Tables of what was measured, from the records that docs/benchmarks/ keeps of each kind of processor."""

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bench.race import Lap
from benchmarks.bench.works import Work
from tools.model_card import table

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BRIEFLY = {
    "S": "width 256", "M": "width 1024", "L": "width 3072, FLUX.1's", "VAE256": "decode 256²", "VAE512": "decode 512²",
}  # fmt: skip
HEADING = ["", "ms", "least to most", "GFLOP/s", "of the peak", "memory, GB", "against {}", "error"]
Record = dict[str, Any]


def entry(work: Work, laps: list[Lap]) -> Record:
    """Record one work."""
    return {"name": work.name, "title": work.title, "flop": work.flops, "batch": work.sizes.get("batch", 1),
            "laps": [vars(lap) for lap in laps]}  # fmt: skip


def side_by_side(records: dict[str, Record]) -> str:
    """Write the ratios of all kinds of processors, one below the other for each contender, then each kind's works."""
    details = [f"### On {kind}\n\n{facts(record)}\n\n{sections(record)}" for kind, record in records.items()]
    return "\n\n".join([table(compared(records)), *details])


def compared(records: dict[str, Record]) -> list[list[str]]:
    """Put every contender's time against the reference's, a row a kind, one column a work; the reference has none."""
    tables = {kind: ratios(record["works"], record["reference"]) for kind, record in records.items()}
    references = {record["reference"] for record in records.values()}
    names = list(dict.fromkeys(name for (_, *names), *_ in tables.values() for name in names))
    contenders = dict.fromkeys(row[0] for _, *rows in tables.values() for row in rows if row[0] not in references)
    heading = [f"time against {' or '.join(sorted(references))}'s", "processor", *names]
    return [heading, *(row for who in contenders for kind in tables for row in row_of(who, kind, tables[kind], names))]


def row_of(contender: str, kind: str, ratios: list[list[str]], names: list[str]) -> list[list[str]]:
    """Return a contender's row of a kind's table, in columns of these names; none where it wasn't there."""
    (_, *own), *rows = ratios
    found = [dict(zip(own, row[1:], strict=True)) for row in rows if row[0] == contender]
    return [[contender, kind, *(cells.get(name, "–") for name in names)] for cells in found]


def markdown(record: Record) -> str:
    """Write one record: the machine, who is absent, all ratios, then each work."""
    return "\n\n".join([facts(record), table(ratios(record["works"], record["reference"])), sections(record)])


def facts(record: Record) -> str:
    """Write what the machine is, and who is absent."""
    machine = "; ".join(f"{label}: {value}" for label, value in record["machine"]) + "."
    absent = [f"Not here: {name}, for want of {', '.join(modules)}." for name, modules in record["absent"].items()]
    return "\n\n".join([machine, *absent])


def sections(record: Record) -> str:
    """Write each work."""
    return "\n\n".join(section(work, record["reference"], record["peak"]) for work in record["works"])


def ratios(works: list[Record], reference: str) -> list[list[str]]:
    """Put every contender's time against the reference's, one column a work."""
    works = [work for work in works if base_of(work, reference)]
    names = list(dict.fromkeys(lap["contender"] for work in works for lap in work["laps"]))
    heading = [f"time against {reference}'s", *(work["name"] for work in works)]
    return [heading, *([name, *(ratio(work, name, reference) for work in works)] for name in names)]


def ratio(work: Record, name: str, reference: str) -> str:
    """Write one contender's time against the reference's."""
    found = [lap for lap in work["laps"] if lap["contender"] == name and lap["seconds"]]
    return f"{median(found[0]['seconds']) / base_of(work, reference):.2f}" if found else "–"


def base_of(work: Record, reference: str) -> float:
    """The reference's median in seconds; 0 where it has none."""
    return next((median(x["seconds"]) for x in work["laps"] if x["contender"] == reference and x["seconds"]), 0.0)


def section(work: Record, reference: str, peak: float) -> str:
    """Write a work's heading and table; `peak` in FLOP/s."""
    count = f": {figures(work['flop'] / 1e9)} GFLOP" if work["flop"] else ""
    heading = [cell.format(reference) for cell in HEADING]
    rows = [row(work, lap, reference, peak) for lap in work["laps"]]
    text = f"**{work['name']}**, {work['title']}{count}.\n\n{table([heading, *rows])}"
    return text + samples(work) if work["name"] == "train" else text


def samples(work: Record) -> str:
    """Write how many samples a second each trains on."""
    speeds = [f"{x['contender']} {work['batch'] / median(x['seconds']):.0f}" for x in work["laps"] if x["seconds"]]
    return f"\n\nSamples a second: {', '.join(speeds)}."


def row(work: Record, lap: Record, reference: str, peak: float) -> list[str]:
    """Write one contender's row; without times, the reason."""
    times = [1000 * seconds for seconds in lap["seconds"]]
    if not times:
        return [lap["contender"], lap["failure"] or "–", *[""] * (len(HEADING) - 2)]
    speed = 1000 * work["flop"] / median(times)
    return [
        lap["contender"],
        figures(median(times)),
        f"{figures(min(times))} to {figures(max(times))}",
        figures(speed / 1e9) if speed else "–",
        f"{speed / peak:.0%}" if speed and peak else "–",
        f"{lap['peak'] / 1e9:.2f}",
        ratio(work, lap["contender"], reference) if base_of(work, reference) else "–",
        "–" if lap["error"] is None else f"{lap['error']:.1e}" if lap["error"] else "0",
    ]


def figures(x: float) -> str:
    """Write a number with three figures, larger ones whole.

    >>> [figures(x) for x in (0.01234, 1.234, 12.34, 123.4, 1234.5)]
    ['0.0123', '1.23', '12.3', '123', '1234']
    """
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def briefly(records: dict[str, Record]) -> list[list[str]]:
    """Make the README's table: the ratios of the steps and of decoding, the works under plainer names."""

    def named(record: Record) -> Record:
        works = [work | {"name": BRIEFLY[work["name"]]} for work in record["works"] if work["name"] in BRIEFLY]
        return record | {"works": works}

    (_, *heading), *rows = compared({kind: named(record) for kind, record in records.items()})
    return [["", *heading], *rows]
