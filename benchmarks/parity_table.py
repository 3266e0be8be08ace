"""The table of measured parity with PyTorch: what the last test run left in .parity.json, as Markdown.

    python -m benchmarks.parity_table              print it
    python -m benchmarks.parity_table README.md    put it between the two parity marks of a file

Each figure is the worst relative error, |ours - PyTorch's| / |PyTorch's|, of all examples that the tests ran: on
NumPy, on MLX (fused kernels, readable definitions and this machine's own, the worst of the three), in bfloat16.
"""

import json
import sys
from pathlib import Path

RECORD = Path(__file__).parent.parent / ".parity.json"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
COLUMNS = {"NumPy": ("numpy", "float32"), "MLX": ("mlx", "float32"), "MLX, bfloat16": ("mlx", "bfloat16")}


def figure(errors: dict[str, float], backend: str, dtype: str) -> str:
    """Write the worst error of a backend's variants in one precision."""
    found = [e for name, e in errors.items() if name.startswith(backend) and name.endswith(dtype)]
    if not found:
        return "–"
    return f"{max(found):.1e}" if max(found) else "equal"


def table(record: dict[str, dict[str, float]]) -> str:
    """Write the table: components and models first, then ops, whose names are in `code`."""
    lines = [["component", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for component in sorted(record, key=lambda name: ("`" in name, name.lower())):
        lines.append([component, *(figure(record[component], *column) for column in COLUMNS.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def insert(path: Path, text: str) -> None:
    """Put `text` between the two marks of a file."""
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{path}: expected the marks {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    if not RECORD.exists():
        raise SystemExit("no .parity.json: run the tests first")
    made = table(json.loads(RECORD.read_text()))
    if len(sys.argv) > 1:
        insert(Path(sys.argv[1]), made)
    else:
        print(made)
