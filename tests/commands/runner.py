"""Running commands in this process, and looking at what they did."""

import re

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from minflux.commands import main as cli


def run(*args: object) -> Result:
    """Run `minflux ARGS` in this process."""
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def assert_refused(result: Result, words: str) -> None:
    """Exit code 2, one line on stderr (and before it perhaps how the weights are held), nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"(memory: .*\n)?minflux: .*\n", result.stderr), result.stderr
    assert words in result.stderr
