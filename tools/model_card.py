"""The figures of docs/tiny-model-card.md, as Markdown tables.

python -m tools.model_card              how large each part of the shipped model is
python -m tools.model_card runs/tiny    how a training run went, from the log.csv of each stage
"""

import math
import sys
from pathlib import Path

from minflux import zoo
from minflux.checkpoints.formats.safetensors import contents
from minflux.train.loop import LOG, read_log

PARTS = {
    "transformer": "transformer",
    "vae": "VAE",
    "text_encoder": "text encoder (CLIP)",
    "text_encoder_2": "text encoder (T5)",
}
LAST = 100  # steps whose mean is given as the loss at the end


def sizes(model: Path) -> list[list[str]]:
    """Count the weights of each part, and the megabytes of its file; the last row is their sum."""
    rows, counts, megabytes = [], [], []
    for folder, name in PARTS.items():
        (path,) = (model / folder).glob("*.safetensors")
        counts.append(sum(math.prod(stored.shape) for stored in contents(path).values()))
        megabytes.append(path.stat().st_size / 1e6)
        rows.append([name, f"{counts[-1]:,}", f"{megabytes[-1]:.1f}"])
    return [["part", "weights", "MB"], *rows, ["all", f"{sum(counts):,}", f"{sum(megabytes):.1f}"]]


def training(run: Path) -> list[list[str]]:
    """Sum up the logs of a run's stages, in the order they ended: steps, hours, and the loss at the end."""
    rows = [["training", "steps", "hours", f"loss, mean of the last {LAST} steps"]]
    logs = [path for stage in ("vae/*", "text", "flow/*") for path in run.glob(f"{stage}/{LOG}")]
    for path in sorted(logs, key=lambda path: path.stat().st_mtime):
        log = read_log(path.parent)
        stage, hours = str(path.parent.relative_to(run)), sum(row["seconds"] for row in log) / 3600
        losses = [row["loss"] for row in log[-LAST:]]
        rows.append([stage, f"{len(log):,}", f"{hours:.1f}", f"{sum(losses) / len(losses):.4f}"])
    return rows


def table(rows: list[list[str]]) -> str:
    """Write rows as a Markdown table, the first one its heading.

    >>> print(table([["a", "b"], ["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table(training(Path(sys.argv[1])) if len(sys.argv) > 1 else sizes(zoo.FOLDER / "tiny")))
