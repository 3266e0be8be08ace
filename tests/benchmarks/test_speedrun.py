"""Time to 95%: phases run once, time adds up over stops, and the report has every stage."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import speedrun
from minflux.train.recipe import read_recipe, stages
from minflux.world.evaluate import Drawn


@pytest.fixture
def started(monkeypatch):
    """The phases that were started: `minflux train` leaves logs of two steps, of half an hour each."""
    phases, recipe = [], read_recipe("second")

    def run(command, check):
        phase, folder = command[4], command[command.index("--folder") + 1]
        phases.append(phase)
        for _, where, _, _ in speedrun.stages_of(recipe, Path(folder), phase):
            where.mkdir(parents=True, exist_ok=True)
            where.joinpath("log.csv").write_text("step,loss,seconds\n1,0.5,1800\n2,0.4,1800\n")

    monkeypatch.setattr(subprocess, "run", run)
    return phases


def test_a_phase_that_is_done_is_not_done_again(started, tmp_path):
    for _ in range(2):
        for phase in speedrun.PHASES:
            speedrun.train(phase, "second", tmp_path)
    assert started == ["vae", "text", "flow"]


def test_time_adds_up_over_a_stop(monkeypatch, tmp_path):
    def stop(command, check):
        clock.append(clock[-1] + 100)
        if len(clock) == 2:
            raise KeyboardInterrupt

    clock = [0.0]
    monkeypatch.setattr(speedrun.time, "monotonic", lambda: clock[-1])
    monkeypatch.setattr(subprocess, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        speedrun.train("vae", "second", tmp_path)
    assert json.loads((tmp_path / speedrun.SPENT).read_text()) == {"done": [], "seconds": {"vae": 100}}
    speedrun.train("vae", "second", tmp_path)
    assert speedrun.read_spent(tmp_path) == {"done": ["vae"], "seconds": {"vae": 200}}


@pytest.mark.parametrize(("right", "code"), [(9, 0), (7, 1)])
def test_the_report_has_every_stage_and_the_share(started, monkeypatch, tmp_path, right, code):
    marks = [{"all": i < right} for i in range(10)]
    monkeypatch.setattr(speedrun.minflux, "load", lambda folder: folder)
    monkeypatch.setattr(speedrun, "follow", lambda pipe, size, count: Drawn([], [], np.zeros(0), marks))
    given = ["--folder", str(tmp_path), "--target", "0.8", "--prompts", "10"]
    result = CliRunner().invoke(speedrun.main, given)
    assert result.exit_code == code
    recipe = read_recipe("second")
    names = [f"{phase}, {stage}" for phase in ("vae", "flow") for stage in stages(recipe, phase)]
    for name in [*names, "text"]:
        cores = 1 if name == "text" else 2
        assert f"| {name} | 1.00 | " in result.output
        assert f" | {cores:.2f} |" in result.output
    assert f"{10 * right}.0% (" in result.output
    assert f"| all | {len(names) + 1}.00 |" in result.output
