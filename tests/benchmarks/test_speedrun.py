"""Time to 95%: phases run once, time adds up over stops, and the report has every stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import speedrun
from minflux.train.recipe import read_recipe, stages
from minflux.world.evaluate import Drawn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch):
    """The phases that were started: `minflux train` leaves logs of two steps, of half an hour each."""
    phases, recipe = [], read_recipe("tiny")

    def run(command):
        phase, folder = command[4], command[command.index("--folder") + 1]
        phases.append(phase)
        for _, where, _, _ in speedrun.stages_of(recipe, Path(folder), phase):
            where.mkdir(parents=True, exist_ok=True)
            where.joinpath("log.csv").write_text("step,loss,seconds\n1,0.5,1800\n2,0.4,1800\n")

    monkeypatch.setattr(speedrun, "run", run)
    return phases


def test_a_phase_that_is_done_is_not_done_again(started, tmp_path):
    for _ in range(2):
        for phase in speedrun.PHASES:
            speedrun.train(phase, "tiny", tmp_path)
    assert started == ["vae", "text", "flow"]


def test_time_adds_up_over_a_stop(monkeypatch, tmp_path):
    def stop(command):
        clock.append(clock[-1] + 100)
        if len(clock) == 2:
            raise KeyboardInterrupt

    clock = [0.0]
    monkeypatch.setattr(speedrun.time, "monotonic", lambda: clock[-1])
    monkeypatch.setattr(speedrun, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        speedrun.train("vae", "tiny", tmp_path)
    assert json.loads((tmp_path / speedrun.SPENT).read_text()) == {"done": [], "seconds": {"vae": 100}}
    speedrun.train("vae", "tiny", tmp_path)
    assert speedrun.read_spent(tmp_path) == {"done": ["vae"], "seconds": {"vae": 200}}


SLOW_TO_END = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # longer than `subprocess.run` waits
    pathlib.Path(sys.argv[2]).touch()
"""


def test_after_ctrl_c_a_phase_writes_down_where_it_is(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    code = (
        f"from benchmarks.speedrun import run; import sys; run([sys.executable, '-c', {SLOW_TO_END!r}, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", code, str(begun), str(ended)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    assert process.returncode != 0
    assert ended.exists()


def test_a_phase_that_fails_ends_the_run_with_its_code(tmp_path):
    with pytest.raises(SystemExit) as ended:
        speedrun.run([sys.executable, "-c", "raise SystemExit(3)"])
    assert ended.value.code == 3


@pytest.mark.parametrize(("right", "code"), [(9, 0), (7, 1)])
def test_the_report_has_every_stage_and_the_share(started, monkeypatch, tmp_path, right, code):
    marks = [{"all": i < right} for i in range(10)]
    monkeypatch.setattr(speedrun.minflux, "load", lambda folder: folder)
    monkeypatch.setattr(speedrun, "follow", lambda pipe, size, count: Drawn([], [], np.zeros(0), marks))
    given = ["--folder", str(tmp_path), "--target", "0.8", "--prompts", "10"]
    result = CliRunner().invoke(speedrun.main, given)
    assert result.exit_code == code
    recipe = read_recipe("tiny")
    names = [f"{phase}, {stage}" for phase in ("vae", "flow") for stage in stages(recipe, phase)]
    for name in [*names, "text"]:
        cores = 1 if name == "text" else 2
        assert f"| {name} | 1.00 | " in result.output
        assert f" | {cores:.2f} |" in result.output
    assert f"{10 * right}.0% (" in result.output
    assert f"| all | {len(names) + 1}.00 |" in result.output
