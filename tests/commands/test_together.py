"""`minflux generate` in several processes, as `mlx.launch` starts them: shared images, and images drawn together."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minflux.backend.processes import Group
from minflux.commands.together import Part, all_tasks, prompts_of
from minflux.errors import ArgumentError
from tests.commands.runner import assert_refused, pixels, run
from tests.inference.test_split import folder  # noqa: F401  (a fixture)
from tests.many import LONG, free_ports, needs_mlx, start

LOST = "minflux: another process has ended, and this one can't go on without it"
STEPS = ("--steps", 2)
ENDS = """
import os, sys
from minflux.commands import generate, main

def follow(steps):
    next(steps)
    os._exit(3)

generate.follow = follow
main.main(sys.argv[1:])
"""


def ended(process: subprocess.Popen) -> tuple[str, str]:
    """Wait for a process, and return what it printed, and its errors."""
    try:
        return process.communicate(timeout=LONG)
    finally:
        process.kill()


@needs_mlx
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_image_drawn_together(here, folder, count):  # noqa: F811  (that fixture)
    """The image is one process's, up to rounding; the first process alone writes it, and tells of it."""
    model = {2: "tiny", 4: folder}[count]  # four have no equal shares of the six heads of tiny's T5
    args = "generate", "a cat", "--model", model, *STEPS, "--seed", 7
    processes = start(count, here / "hosts.json", "-m", "minflux", *args, "--split", "--out", "together.png")
    printed = [ended(process) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, printed
    assert [out for out, _ in printed] == ["together.png\n"] + [""] * (count - 1)
    assert [err for _, err in printed[1:]] == [""] * (count - 1)
    assert run(*args, "--out", "alone.png").exit_code == 0
    together, alone = (pixels(name).astype(int) for name in ("together.png", "alone.png"))
    assert np.abs(together - alone).max() <= 1  # a level here and there


@needs_mlx
def test_images_are_shared_out(here):
    """By `mlx.launch` itself: the files are those of a single run, to the bit, and each is drawn once."""
    (here / "prompts.txt").write_text("a cat\n\nan owl\na frog on a blue background\n")
    args = "generate", "--prompts", "prompts.txt", "--model", "tiny", *STEPS
    launch = Path(sys.executable).with_name("mlx.launch"), "-n", 2, "-p", free_ports(1)[0], "--", sys.executable
    command = [*launch, "-m", "minflux", *args, "--out", "shared.png"]
    result = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONG
    )
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == ["shared-1.png", "shared-2.png", "shared-3.png"]
    assert run(*args, "--out", "alone.png").stdout.split() == ["alone-1.png", "alone-2.png", "alone-3.png"]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(pixels(f"shared-{number}.png"), pixels(f"alone-{number}.png"))


@needs_mlx
def test_a_process_that_ends_ends_the_others(here):
    """After its first step; with one line of ours behind MLX's own of the connection, and not by waiting for ever."""
    generate = "generate", "a cat", "--model", "tiny", *STEPS, "--split"
    first, second = start(2, here / "hosts.json", "-m", "minflux", *generate, others=("-c", ENDS, *generate))
    (out, errors), _ = ended(first), ended(second)
    assert (first.returncode, second.returncode, out) == (2, 3, "")
    own = [line for line in errors.splitlines() if line.startswith("minflux:")]
    assert own == [LOST]
    assert errors.endswith(f"{LOST}\n")
    assert "Traceback" not in errors
    assert not [*here.glob("*.png")]


# -- without any process -------------------------------------------------------------------------------------


def test_who_draws_what():
    tasks = all_tasks(["a cat", "a dog"], [3, 4])
    assert Part(Group(1, 3)).tasks(["a cat", "a dog"], [3, 4]) == [tasks[1]]
    assert Part(Group(0, 3)).tasks(["a cat", "a dog"], [3, 4]) == [tasks[0], tasks[3]]
    assert Part(Group(1, 3), split=True).tasks(["a cat", "a dog"], [3, 4]) == tasks
    assert [task.mark for task in all_tasks(["a cat"] * 10, [0])][:2] == ["-01", "-02"]
    assert [task.mark for task in all_tasks(["a cat"], [0])] == [""]


def test_who_has_nothing_to_do(capsys):
    assert Part(Group(1, 2)).tasks(["a cat"], [0]) == []
    assert capsys.readouterr().err == ""
    Part(Group(0, 2)).tasks(["a cat"], [0])
    assert capsys.readouterr().err.startswith("1 of 2 processes have nothing to do: --prompts and --seed give more")


def test_who_writes_and_speaks():
    assert [(Part(Group(r, 2)).writes, Part(Group(r, 2)).speaks) for r in (0, 1)] == [(True, True), (True, False)]
    assert [Part(Group(r, 2), split=True).writes for r in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a cat", "--split"], "--split needs several processes: mlx.launch -n 2 -- minflux generate … --split"),
        (["a cat", "--prompts", "prompts.txt"], "give a prompt or --prompts, not both"),
        (["--prompts", "nothing.txt"], "--prompts: can't read the text file 'nothing.txt'"),
        (["--prompts", "empty.txt"], "--prompts: 'empty.txt' has no line with a prompt"),
        ([], "give a prompt, as in: minflux generate"),
    ],
)
def test_refused(here, args, words):
    (here / "prompts.txt").write_text("a cat\n")
    (here / "empty.txt").write_text("\n \n")
    assert_refused(run("generate", *args), words)


@pytest.mark.parametrize("how", [{"step_cache": "teacache"}, {"lora": ("x",)}, {"cache": True}])
def test_what_does_not_go_with_split(how):
    given = {"step_cache": None, "lora": (), "cache": False} | how
    with pytest.raises(ArgumentError, match=f"--split goes without --{next(iter(how)).replace('_', '-')}"):
        Part(Group(0, 2), split=True).check(**given)


def test_prompts_may_be_in_any_language(here):
    (here / "prompts.txt").write_text("ein Kätzchen\n猫\n", encoding="utf-8")
    assert prompts_of(None, here / "prompts.txt") == ["ein Kätzchen", "猫"]
