"""Time to 95%: train the small model from nothing, and measure what share of held-out prompts it then draws right.

    python -m benchmarks.speedrun --folder runs/speedrun

Each phase is a command of `minflux train`, in a process of its own, so that nothing of one slows the next. Ctrl-C stops
where it is, and the same command goes on; only time spent at work is counted. The one dial is the recipe. What it ends
with is drawn and read as `minflux evaluate` does, at 128×128 pixels; below the target the exit code is 1, and the table
says how far it came.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import minflux
from benchmarks.bench.kinds import kind_of
from minflux.checkpoints.formats.atomic import written_whole
from minflux.train.loop import read_log
from minflux.train.recipe import part, read_recipe, stages, workers
from minflux.world.evaluate import SIZES, confidence_interval, follow
from tools.model_card import table

PHASES = ("vae", "text", "flow")
HEADING = ["training", "hours", "samples", "core-hours"]
SPENT = "speedrun.json"  # seconds spent in each phase so far, and which phases are done


@dataclass(frozen=True)
class Row:
    """A line of the report: what was trained, the hours it took, the samples it saw, and the cores it had."""

    name: str
    hours: float
    samples: int
    cores: int


# -- training --------------------------------------------------------------------------------------------------


def train(phase: str, recipe: str, folder: Path) -> None:
    """Run a phase to its end, or on to it; add the seconds that it takes to those spent, though it be stopped."""
    spent = read_spent(folder)
    if phase in spent["done"]:
        return
    began, command = time.monotonic(), [sys.executable, "-m", "minflux", "train", phase]
    try:
        run([*command, "--recipe", recipe, "--folder", str(folder)])
        spent["done"].append(phase)
    finally:
        spent["seconds"][phase] = spent["seconds"].get(phase, 0.0) + time.monotonic() - began
        write_spent(folder, spent)


def run(command: list[str]) -> None:
    """Run a command to its end; exit as it does if it fails.

    Ctrl-C reaches it as well, and it is left the time to write down where it is: `subprocess.run` would kill it.
    """
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    if code:
        sys.exit(code)


def read_spent(folder: Path) -> dict[str, Any]:
    """Return what earlier runs in this folder have spent."""
    path = folder / SPENT
    return json.loads(path.read_text()) if path.exists() else {"done": [], "seconds": {}}


def write_spent(folder: Path, spent: dict[str, Any]) -> None:
    """Write down what has been spent."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / SPENT) as file:
        file.write(json.dumps(spent, indent=1).encode())


# -- the report ------------------------------------------------------------------------------------------------


def rows(recipe: dict[str, Any], folder: Path) -> list[Row]:
    """List the stages of each phase, and after each phase what its steps did not take: encoding, compiling, drawing."""
    seconds, lines = read_spent(folder)["seconds"], []
    for phase in PHASES:
        stepping = 0.0
        for name, where, batch, cores in stages_of(recipe, folder, phase):
            took, steps = logged(where)
            stepping += took
            lines.append(Row(name, took / 3600, steps * batch, cores))
        rest = max(0.0, seconds.get(phase, 0.0) - stepping)
        lines.append(Row(f"{phase}: encoding, compiling, samples on the way", rest / 3600, 0, lines[-1].cores))
    return lines


def stages_of(recipe: dict[str, Any], folder: Path, phase: str) -> Iterator[tuple[str, Path, int, int]]:
    """Yield a phase's stages: the name, where its log is, samples a step (of the usual size) and processes."""
    if phase == "text":
        yield phase, folder / phase, part(recipe, "text.training")["batch"], 1
        return
    for stage in stages(recipe, phase):
        batch = part(recipe, f"{phase}.{stage}.training")["batch"]
        yield f"{phase}, {stage}", folder / phase / stage, batch, workers(recipe, phase)


def logged(folder: Path) -> tuple[float, int]:
    """Sum up a stage's log: its seconds and its steps."""
    rows = read_log(folder)
    return sum(row["seconds"] for row in rows), len(rows)


def report(lines: list[Row], right: int, count: int) -> str:
    """Lay out the rows, their sum, and the share of prompts that came out all right."""
    cells = [[x.name, f"{x.hours:.2f}", f"{x.samples:,}", f"{x.hours * x.cores:.2f}"] for x in lines]
    hours, core_hours = sum(x.hours for x in lines), sum(x.hours * x.cores for x in lines)
    total = ["all", f"{hours:.2f}", f"{sum(x.samples for x in lines):,}", f"{core_hours:.2f}"]
    low, high = (100 * x for x in confidence_interval(right, count))
    share = f"{100 * right / count:.1f}% ({low:.1f} to {high:.1f}) of {count} held-out prompts all right at 128×128"
    return "\n\n".join([table([HEADING, *cells, total]), f"{share}, on {kind_of('cpu')}."])


@click.command()
@click.option("--recipe", default="tiny", show_default=True, help="A known recipe, or a .toml file.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default="runs/speedrun", show_default=True)
@click.option("--target", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="Share of prompts.")
@click.option(
    "--prompts", type=click.IntRange(1), default=200, show_default=True, help="Held-out prompts to measure by."
)
def main(recipe: str, folder: Path, target: float, prompts: int) -> None:
    """Train the small model from nothing, and report the time by phase, and how much of what is asked for it draws."""
    for phase in PHASES:
        train(phase, recipe, folder)
    drawn = follow(minflux.load(folder / "model"), SIZES[0], prompts)
    right = sum(mark["all"] for mark in drawn.marks)
    click.echo(report(rows(read_recipe(recipe), folder), right, prompts))
    if right < target * prompts:
        sys.exit(f"below the target of {target:.0%}")


if __name__ == "__main__":
    main()
