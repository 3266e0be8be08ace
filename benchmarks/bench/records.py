"""What was measured on each kind of processor: docs/benchmarks/KIND.json, and a page that shows all of them.

The README's table is made of them too:

python -m benchmarks.bench.records | python -m tools.insert speed README.md
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.bench.report import PAGE, briefly, side_by_side
from tools.insert import insert
from tools.model_card import table

FOLDER = PAGE.with_suffix("")


def read_all(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return the record of every kind, by its name; each has "cpu", "gpu" or "growth", or several of them."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def part(records: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Return one part of the kinds' records, of those that have it."""
    return {kind: record[name] for kind, record in records.items() if name in record}


def write(kind: str, name: str, found: Any, folder: Path = FOLDER) -> None:
    """Put a part into a kind's record; its other parts stay."""
    path = folder / f"{kind}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    folder.mkdir(exist_ok=True)
    path.write_text(as_json(before | {name: found}))


def as_json(record: dict[str, Any]) -> str:
    """Write a record down."""
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def keep(kind: str, record: dict[str, Any], page: Path = PAGE) -> None:
    """Put what was measured on a device into its kind's record, and all kinds' tables of such devices on the page."""
    folder, device = page.with_suffix(""), record["device"]
    write(kind, device, record, folder)
    page.write_text(insert(page.read_text(), device, side_by_side(part(read_all(folder), device))))


if __name__ == "__main__":  # the README's table
    print(table(briefly(part(read_all(), "cpu"))))
