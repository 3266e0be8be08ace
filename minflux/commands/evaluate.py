"""`minflux evaluate`: how often a model's images show what their prompts say, and four other measures."""

from pathlib import Path

import click

from minflux.commands.options import BACKEND, FILE, MODEL, STEPS, check_output, print_note
from minflux.inference.arguments import check_steps, check_strength
from minflux.inference.load import load
from minflux.sampling.noise import check_seed
from minflux.train import report


@click.command("evaluate", short_help="Measure how often a model's images show what prompts say.")
@MODEL
@BACKEND
@click.option("--prompts", type=int, default=500, show_default=True, help="How many held-out prompts.")
@STEPS
@click.option("--guidance", type=float, help="Guidance scale; unless given, what suits the model.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts and of the noise.")
@click.option("--grid", type=FILE, help="Write the first images, uncurated, as a .png.")
@click.option("--json", "json_path", type=FILE, help="Write the figures as a .json.")
def command(model, backend, prompts, steps, guidance, seed, grid, json_path):
    """Measure how often the model generates what held-out prompts say.

    Five measures: what is right at each of four sizes, words written, how varied images are, and how fine.

    \b
    minflux evaluate --prompts 100 --grid images.png
    """
    check_outputs(grid, json_path)
    check_arguments(prompts, steps, guidance, seed)
    pipe = load(model, backend, report=print_note)
    measured = report.measure(pipe, prompts, seed, steps=steps, guidance=guidance)
    click.echo(report.table(measured))
    if grid is not None:
        report.save_grid(measured, grid)
    if json_path is not None:
        report.save_json(measured, json_path)


def check_outputs(grid: Path | None, json_path: Path | None) -> None:
    """Raise `ArgumentError` unless the files that were asked for can be written."""
    for path, option, suffix in ((grid, "--grid", ".png"), (json_path, "--json", ".json")):
        if path is not None:
            check_output(path, option, (suffix,))


def check_arguments(prompts: int, steps: int | None, guidance: float | None, seed: int) -> None:
    """Raise `ArgumentError` for a setting that no model can honour."""
    report.check_count(prompts)
    check_seed(seed)
    if steps is not None:
        check_steps(steps)
    if guidance is not None:
        check_strength("guidance", guidance)
