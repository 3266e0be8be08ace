"""The table of measured parity with PyTorch: what the last test run left in .parity.json, as Markdown.

    python -m tools.parity_table | python -m tools.insert parity docs/parity.md
    python -m tools.parity_table --short | python -m tools.insert parity README.md

Each figure is the worst relative error, |ours - PyTorch's| / |PyTorch's|, of all examples that the tests ran: on
NumPy, on MLX (fused kernels, readable definitions and this machine's own, the worst of the three), in bfloat16.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

RECORD = Path(__file__).parent.parent / ".parity.json"
SHORT = (  # the README's rows: each model whole, and what the pipeline makes of all of them
    "FLUX transformer",
    "T5 encoder",
    "CLIP pooled",
    "VAE encode",
    "VAE decode",
    "pipeline, each step's latents",
)
COLUMNS = {"NumPy": ("numpy", "float32"), "MLX": ("mlx", "float32"), "MLX, bfloat16": ("mlx", "bfloat16")}


def figure(errors: dict[str, float], backend: str, dtype: str) -> str:
    """Write the worst error of a backend's variants in one precision.

    >>> figure({"mlx-float32": 1.24e-7, "mlx-fused-float32": 3e-8, "numpy-float32": 0.0}, "mlx", "float32")
    '1.2e-07'
    """
    found = [e for name, e in errors.items() if name.startswith(backend) and name.endswith(dtype)]
    if not found:
        return "–"
    return f"{max(found):.1e}" if max(found) else "equal"


def table(record: dict[str, dict[str, float]], components: Iterable[str]) -> str:
    """Write the table, a row for each of the components."""
    lines = [["component", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for component in components:
        lines.append([component, *(figure(record[component], *column) for column in COLUMNS.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_order(components: Iterable[str]) -> list[str]:
    """Sort components and models before ops, whose names are in `code`.

    >>> in_order(["`exp`", "VAE decode", "attention"])
    ['attention', 'VAE decode', '`exp`']
    """
    return sorted(components, key=lambda name: ("`" in name, name.lower()))


def main(*arguments: str) -> None:
    """Print the whole table, or with --short the README's rows."""
    if not RECORD.exists():
        sys.exit("no .parity.json: run the tests first")
    record = json.loads(RECORD.read_text())
    print(table(record, SHORT if "--short" in arguments else in_order(record)))


if __name__ == "__main__":
    main(*sys.argv[1:])
