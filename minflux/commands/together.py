"""What each of several processes does of a command's work, and which of them speaks (see `backend/processes.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minflux.backend.processes import ALONE, Group
from minflux.checkpoints.lazy import Progress, no_progress
from minflux.commands.options import ReadingBar, print_note
from minflux.errors import ArgumentError
from minflux.inference.arguments import check_prompts


class Task(NamedTuple):
    """An image to draw; `mark` tells its file from those of the others."""

    prompt: str
    seed: int
    mark: str = ""


@dataclass(frozen=True)
class Part:
    """One process's part: each draws images of its own, or, with `split`, all of them draw each image together."""

    group: Group = ALONE
    split: bool = False

    @property
    def sharers(self) -> Group:
        """Return the processes among which the model is shared."""
        return self.group if self.split else ALONE

    @property
    def writes(self) -> bool:
        """Return whether this process writes what it draws: of those that draw together, the first."""
        return self.sharers.is_first

    @property
    def speaks(self) -> bool:
        """Return whether this process shows its progress, and tells what is good to know."""
        return self.group.is_first

    def tell(self, line: str) -> None:
        """Print a line that is good to know, once for all processes."""
        if self.speaks:
            print_note(line)

    def reading(self) -> Progress:
        """Return what shows how far weights are read, to one process's reader."""
        return ReadingBar() if self.speaks else no_progress

    def tasks(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Task]:
        """Return the images that this process draws, of all prompts with all seeds."""
        tasks = all_tasks(prompts, seeds)
        if self.split:
            return tasks
        if len(tasks) < self.group.size:
            idle = f"{self.group.size - len(tasks)} of {self.group.size} processes have nothing to do"
            self.tell(f"{idle}: --prompts and --seed give more images, --split shares each one")
        return self.group.share(tasks)

    def check(self, step_cache: str | None, lora: Sequence[str], cache: bool) -> None:
        """Raise `ArgumentError` for --split in a single process, and for what doesn't go with it."""
        if not self.split:
            return
        if self.group.size == 1:
            raise ArgumentError("--split needs several processes: mlx.launch -n 2 -- minflux generate … --split")
        given = {"--step-cache": step_cache, "--lora": lora, "--cache": cache}
        for option in (option for option, value in given.items() if value):
            raise ArgumentError(f"--split goes without {option} (docs/large-models.md says why)")


def all_tasks(prompts: Sequence[str], seeds: Sequence[int]) -> list[Task]:
    """Return an image for each prompt and seed; of several prompts each adds its number to a file's name, as seeds do.

    >>> [task.mark for task in all_tasks(["a cat", "a dog"], [3, 4])]
    ['-1-3', '-1-4', '-2-3', '-2-4']
    """
    digits = len(str(len(prompts)))
    numbers = [f"-{number:0{digits}}" if len(prompts) > 1 else "" for number in range(1, len(prompts) + 1)]
    marks = [f"-{seed}" if len(seeds) > 1 else "" for seed in seeds]
    return [
        Task(prompt, seed, number + mark)
        for prompt, number in zip(prompts, numbers, strict=True)
        for seed, mark in zip(seeds, marks, strict=True)
    ]


def prompts_of(prompt: str | None, path: Path | None) -> list[str]:
    """Return the prompts: the one that was given, or the lines of a file; raises `ArgumentError` for both or none."""
    if (prompt is None) == (path is None):
        if path is not None:
            raise ArgumentError("give a prompt or --prompts, not both")
        raise ArgumentError('give a prompt, as in: minflux generate "a cat on a blue background"')
    return [str(prompt)] if path is None else read_prompts(path)


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file, without those that are empty; raises `ArgumentError` for no such file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--prompts: can't read the text file {str(path)!r} ({error})") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ArgumentError(f"--prompts: {str(path)!r} has no line with a prompt")
    return check_prompts(prompts)
