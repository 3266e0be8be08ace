"""Count what a double and a single block of FLUX.1 ask of a GPU, at its width in bfloat16, 1024² and 512 text tokens.

    python -m benchmarks.counts                            # into docs/benchmarks.md and docs/counts.json
    python -m benchmarks.counts --mlx-examples CLONE       # mlx-examples' too; mflux's wherever it is installed
    python -m benchmarks.counts --print                    # as JSON, and into no file

Nothing is computed, so it needs neither a GPU nor the memory, and takes seconds. It is to be a process of its own: it
replaces `mx.compile` before anything that is compiled is imported. Peers that are not here keep the figures they have.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.bench.report import PAGE
from benchmarks.counts.graph import Tracer
from tools.insert import insert
from tools.model_card import table

LIMIT = "the limit"
RECORD = PAGE.with_name("counts.json")
HEADING = [
    "block",
    "",
    "kernels",
    "of them copies",
    "bytes read",
    "written",
    "against the limit",
    "wide float32 arrays",
]
Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Count what is here, and put it on the page beside what others have counted."""
    parser = argparse.ArgumentParser("python -m benchmarks.counts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mlx-examples", type=Path, metavar="FOLDER", help="a clone of mlx-examples")
    parser.add_argument("--print", action="store_true", help="print the counts as JSON, and keep them nowhere")
    args = parser.parse_args(arguments)
    rows = counted(args.mlx_examples)
    if args.print:
        print(json.dumps(rows))
        return
    keep(rows)


def counted(clone: Path | None = None) -> list[Row]:
    """Count all blocks that are here, and the limit of each."""
    tracer = Tracer()
    mx.compile = tracer.compile
    from benchmarks.counts.blocks import ours
    from benchmarks.counts.limit import limits
    from benchmarks.counts.peers import peers

    rows = [row(block) for block in [*ours(tracer), *peers(tracer, clone)]]
    least = [
        {"block": kind, "who": LIMIT, "kernels": len(ops), "copies": 0, "float32": 0,
         "read": sum(op.read for op in ops), "written": sum(op.written for op in ops)}
        for kind, ops in limits().items()
    ]  # fmt: skip
    return [*rows, *least]


def row(block: Any) -> Row:
    """Count a block; a copy is a kernel that computes nothing: for order in memory, for joining or for a dtype."""
    from benchmarks.counts.blocks import CONFIG, TEXT
    from benchmarks.counts.kernels import count

    counts = count(block.graph)
    copies = sum(counts.kinds[kind] for kind in ("copy", "join", "cast"))
    return {
        "block": block.kind, "who": block.who, "kernels": len(counts.kernels), "copies": copies,
        "read": counts.read, "written": counts.written, "float32": counts.wide(TEXT * CONFIG.hidden_size),
    }  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """Write the table, the double block's rows first."""
    limit = {row["block"]: row["read"] + row["written"] for row in rows if row["who"] == LIMIT}

    def cells(row: Row) -> list[str]:
        share = (row["read"] + row["written"]) / limit[row["block"]]
        gigabytes = [f"{row[way] / 1e9:.2f} GB" for way in ("read", "written")]
        counts = [str(row["kernels"]), str(row["copies"]), *gigabytes, f"{share:.2f}", str(row["float32"])]
        return [row["block"], row["who"], *counts]

    return table([HEADING, *(cells(row) for row in sorted(rows, key=lambda row: row["block"]))])


def keep(rows: list[Row], page: Path = PAGE, record: Path = RECORD) -> None:
    """Put the table on the page and the figures beside it; rows of peers that are not here stay."""
    before = json.loads(record.read_text()) if record.exists() else []
    every = {(row["who"], row["block"]): row for row in [*before, *rows]}
    kept = list(every.values())
    record.write_text(json.dumps(kept, indent=1) + "\n")
    page.write_text(insert(page.read_text(), "counts", markdown(kept)))
    absent = {who for who, _ in every} - {row["who"] for row in rows}
    if absent:
        print(f"not here, and left as they were: {', '.join(sorted(absent))}", file=sys.stderr)


if __name__ == "__main__":
    main()
