"""How memory and time grow with tokens and batch, and a formula for both.

    python -m benchmarks.bench.growth                         into docs/benchmarks.md and docs/benchmarks/KIND.json
    python -m benchmarks.bench.growth --backend numpy --tokens 256 1024 --batch 1 4

One step of the model M (width 1024, 8 heads, 2 + 4 blocks, 256 text tokens) for each count of image tokens and each
batch, every one in a process of its own.
"""

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.bench import works
from benchmarks.bench.__main__ import note
from benchmarks.bench.contenders import CONTENDERS
from benchmarks.bench.kinds import kind_of
from benchmarks.bench.race import FEWEST, Worker, stop_on_sigterm
from benchmarks.bench.records import part, read_all, write
from benchmarks.bench.report import PAGE, figures
from benchmarks.bench.worker import LONG, Task
from benchmarks.bench.works import Work
from minflux.checkpoints.components.flux import flux_shapes
from tools.insert import insert
from tools.model_card import table
from tools.synthetic_checkpoint import make_component

CFG, TEXT = works.sized(1024, 8, 2, 4), 256
TOKENS, BATCHES = (256, 512, 1024, 2048, 4096), (1, 2, 4, 8)
NAMES = {"numpy": "NumPy", "mlx": "MLX"}
WEIGHTS = 4 * sum(map(math.prod, flux_shapes(CFG).values()))
BARE = works.step("bare", works.sized(64, 2, 1, 1), 1, 1)  # a step so small that its process is all it takes


@dataclass(frozen=True)
class Point:
    """One measurement: peak memory in bytes, seconds."""

    image: int
    batch: int
    memory: int
    seconds: float

    @property
    def rows(self) -> int:
        """Tokens of all pictures together."""
        return self.batch * (TEXT + self.image)

    @property
    def logits(self) -> int:
        """Attention logits of a step, in all blocks and heads."""
        return self.rows * (TEXT + self.image) * CFG.num_heads * (CFG.depth + CFG.depth_single_blocks)

    @property
    def flops(self) -> float:
        """Operations of the step."""
        return works.step("", CFG, TEXT, self.image, self.batch).flops


def measure(library: str, work: Work) -> tuple[int, float]:
    """Run one step in a process of its own; return its peak of memory and the least of its times."""
    contender = next(c for c in CONTENDERS["cpu"] if c.library == library)
    with TemporaryDirectory(prefix="minflux-bench-") as folder:
        make_component(Path(folder), "transformer", work.cfg, "f32")
        worker = Worker(Task(contender, work, Path(folder), "cpu"))
        try:
            worker.get_ready()
            while len(worker.lap.seconds) < FEWEST and sum(worker.lap.seconds) < LONG:
                worker.run()
        finally:
            worker.end()
    return worker.lap.peak, min(worker.lap.seconds)


def sweep(library: str, tokens: tuple[int, ...], batches: tuple[int, ...]) -> dict[str, Any]:
    """Measure all sizes on a backend."""
    points = []
    for image, batch in dict.fromkeys([*((n, 1) for n in tokens), *((min(tokens), b) for b in batches)]):
        note(f"{NAMES[library]}: {image} image tokens, batch {batch}")
        points.append(Point(image, batch, *measure(library, works.step("growth", CFG, TEXT, image, batch))))
    return {"process": measure(library, BARE)[0], "points": [asdict(point) for point in points]}


# -- the formula -------------------------------------------------------------------------------------------------


def fitted(terms: np.ndarray, values: np.ndarray, fixed: float = 0.0) -> np.ndarray:
    """Find c >= 0 that brings fixed + terms (N, K) · c nearest to `values` (N,): least squares of relative errors.

    A factor that comes out negative is left out, and the others are fitted anew.
    """
    kept = list(range(terms.shape[1]))
    while True:
        found = np.linalg.lstsq(terms[:, kept] / values[:, None], 1 - fixed / values, rcond=None)[0]
        if (found >= 0).all():
            break
        del kept[int(found.argmin())]
    factors = np.zeros(terms.shape[1])
    factors[kept] = found
    return factors


def memory_terms(points: list[Point]) -> np.ndarray:
    """(N, 2): bytes of one array (B, L, D), and 1 for what a BLAS and caches keep; logits are never all there."""
    return np.array([[4 * p.rows * CFG.hidden_size, 1] for p in points], float)


def time_terms(points: list[Point]) -> np.ndarray:
    """(N, 2): operations of the products, and logits."""
    return np.array([[p.flops, p.logits] for p in points], float)


def explain(library: str, found: dict[str, Any]) -> str:
    """Write a backend's table and formulas."""
    points = [Point(**point) for point in found["points"]]
    memory, seconds = np.array([p.memory for p in points], float), np.array([p.seconds for p in points])
    fixed = found["process"] + WEIGHTS
    grown, terms = memory_terms(points), time_terms(points)
    a, kept = fitted(grown, memory, fixed)
    c, d = fitted(terms, seconds)
    predicted, expected = fixed + grown @ [a, kept], terms @ [c, d]
    rows = [["image tokens", "batch", "GB", "formula", "off by", "seconds", "formula", "off by"]]
    for p, m, s in zip(points, predicted, expected, strict=True):
        rows.append([
            str(p.image), str(p.batch), f"{p.memory / 1e9:.2f}", f"{m / 1e9:.2f}", f"{m / p.memory - 1:+.0%}",
            figures(p.seconds), figures(s), f"{s / p.seconds - 1:+.0%}",
        ])  # fmt: skip
    held = (
        f"{found['process'] / 1e6:.0f} MB (the process) + {WEIGHTS / 1e6:.0f} MB (weights) + {kept / 1e6:.0f} MB (kept)"
    )
    return (
        f"**{NAMES[library]}**: memory = {held} + {a:.1f} · (B·L·D · 4 bytes);"
        f" time = products at {1e-9 / c:.0f} GFLOP/s + {1e9 * d:.2f} ns for each logit of each block.\n\n{table(rows)}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.bench.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="image tokens, at batch 1")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES, help="images, of the fewest tokens")
    args = parser.parse_args(arguments)
    stop_on_sigterm()
    found = {name: sweep(name, tuple(args.tokens), tuple(args.batch)) for name in args.backend}
    print("\n\n".join(explain(name, of) for name, of in found.items()))
    if (tuple(args.tokens), tuple(args.batch)) == (TOKENS, BATCHES):
        keep(kind_of("cpu"), found)


def keep(kind: str, found: dict[str, Any], page: Path = PAGE) -> None:
    """Put the figures into a kind's record, and all kinds' tables on the page; those of another backend stay."""
    folder = page.with_suffix("")
    before = part(read_all(folder), "growth").get(kind, {})
    write(kind, "growth", before | found, folder)
    page.write_text(insert(page.read_text(), "growth", side_by_side(part(read_all(folder), "growth"))))


def side_by_side(records: dict[str, dict[str, Any]]) -> str:
    """Write every kind's tables and formulas."""
    tables = [
        f"On {kind}, {explain(name, record[name])}"
        for kind, record in records.items()
        for name in NAMES
        if name in record
    ]
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
