"""Fuzz for long, and count: `make fuzz`, or `python -m tests.fuzz --only settings --count 2000 --seed 1`.

Hypothesis draws the cases, the same ones for the same count and seed. Each fault is printed once a kind, with the
shortest case of that kind and the command that tries this case alone. What ends the whole process (a crash of a library
in C) is the last line of runs/fuzz/last.txt. The exit code is 1 when there is a fault.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "MINFLUX_CACHE": tempfile.mkdtemp(), "RUST_BACKTRACE": "0"}

import click

from tests.fuzz.tally import fuzz
from tests.fuzz.targets import NAMES, targets


@click.command(help=__doc__)
@click.option("--count", default=500, show_default=True, help="Cases of each kind.")
@click.option("--seed", "number", default=0, show_default=True, help="Another seed, other cases.")
@click.option("--only", type=click.Choice(NAMES), help="One kind of cases.")
@click.option("--case", "only_case", type=int, help="One case of them, by its number.")
def main(count: int, number: int, only: str | None, only_case: int | None):
    bad = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # some cases name folders to write
        for name, cases in targets(Path(folder)).items():
            if only in (None, name):
                tally = fuzz(name, cases, count, number, only_case)
                click.echo(tally.report(f"python -m tests.fuzz --count {count} --seed {number}"))
                bad += tally.endings["bad"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
