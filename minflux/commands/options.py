"""Options that several commands share, and checks of files to write."""

import os
from pathlib import Path

import click
from tqdm import tqdm

from minflux.errors import ArgumentError

MODEL = click.option(
    "--model",
    default="tiny",
    show_default=True,
    help="A model that ships here, a folder, a .safetensors or .gguf file, or schnell, dev or OWNER/NAME on the Hub.",
)
BACKEND = click.option(
    "--backend",
    type=click.Choice(["auto", "numpy", "mlx"]),
    default="auto",
    show_default=True,
    help="What computes; auto: MLX on a GPU, else NumPy.",
)
LORA = click.option(
    "--lora", multiple=True, metavar="LORA[:SCALE]", help="Add FILE, FOLDER[:FILE] or OWNER/NAME[:FILE]; repeatable."
)
STEPS = click.option("--steps", type=int, help="Denoising steps; unless given, what suits the model.")
FILE = click.Path(path_type=Path, dir_okay=False)


def print_note(line: str) -> None:
    """Print a line that is good to know, beside what was asked for."""
    click.echo(line, err=True)


class ReadingBar:
    """A progress bar of reading weights, which appears when that takes more than a second."""

    def __init__(self):
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` weights are read."""
        if self.bar is None:
            self.bar = tqdm(total=total, desc="reading the transformer", unit="weight", delay=1, leave=False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()
            self.bar = None


def check_output(path: Path, option: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path if a file of one of these kinds can be written there; raise `ArgumentError` if not.

    Looked at before anything is computed, for an image may take minutes.
    """
    if path.suffix not in suffixes:
        raise ArgumentError(f"{option} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ArgumentError(f"{option}: the folder {str(path.parent)!r} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"{option}: the folder {str(path.parent)!r} can't be written to; choose another")
    return path
