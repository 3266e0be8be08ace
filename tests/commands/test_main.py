"""The command line as a whole: help for every command, and one clear line for whatever can't be done."""

import json
import os
import shutil
from pathlib import Path

import pytest

import minflux
from minflux.commands.vocabulary import listing
from minflux.inference.hints import Trained
from minflux.world.scenes import PLAIN, THINGS
from minflux.world.vocabulary import known_words
from tests.commands.runner import assert_refused, pixels, run

COMMANDS = ["", "generate", "vocabulary", "explain", "inspect", "convert", "evaluate", "train", "doctor"]
COMMANDS += [f"train {part}" for part in ("vae", "text", "flow", "lora", "finetune")]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("no-such-command", "No such command"),
        ("evaluate --prompts 0", "prompts must be at least 1, got 0"),
        ("evaluate --seed -30000", "seed must be a whole number from 0 to 2^64 - 1, got -30000"),
        ("evaluate --json figures.txt", "--json must end in .json"),
        ("train vae --recipe nonsense", "recipe 'nonsense' is no file, and none of the known ones: tiny, unet"),
        ("train flow --folder new", "new/model/vae: expected a trained autoencoder, found none"),
    ],
)
def test_other_commands_refuse_in_one_line_too(here, model, args, words):
    if "train" in args:
        pytest.importorskip("mlx.core")
    args = args.split()
    assert_refused(run(*args, *(["--model", model] if args[0] == "evaluate" else [])), words)
    assert os.listdir() == []


# -- the other commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command}".rstrip())
    assert result.stderr == ""


def test_version():
    assert minflux.__version__ in run("--version").stdout


def test_doctor(monkeypatch):
    monkeypatch.setattr("minflux.commands.doctor.gflops", lambda nx: 123.0)
    assert "numpy backend" in run("doctor").stdout


def test_vocabulary_of_the_model_in_the_box():
    shown = run("vocabulary").stdout
    assert shown == listing(minflux.load("tiny", "numpy").trained) + "\n"
    assert max(map(len, shown.splitlines())) <= 100


def test_vocabulary_of_the_world_is_by_what_words_are_for():
    shown = listing(Trained(words=tuple(known_words()), spelled=6))
    assert "things:\n  cat / kitty, dog / puppy," in shown
    assert "up to 6 letters" in shown
    assert all(name in shown for name in (*THINGS, *PLAIN))


def test_vocabulary_is_what_the_model_s_settings_say(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((copy / "minflux.json").read_text())
    (copy / "minflux.json").write_text(json.dumps(settings | {"trained": {"words": ["yak"]}}))
    assert run("vocabulary", "--model", copy).stdout == "words:\n  yak\n\n"
    (copy / "minflux.json").unlink()
    assert "captions of all kinds" in run("vocabulary", "--model", copy).stdout


def test_vocabulary_of_a_model_that_does_not_say():
    assert "captions of all kinds" in listing(Trained())


def test_evaluate_writes_what_it_prints(here, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "model")
    settings = json.loads((copy / "minflux.json").read_text())
    (copy / "minflux.json").write_text(json.dumps(settings | {"text_length": 48}))
    few = ["--prompts", 2, "--steps", 1, "--guidance", 1]
    result = run("evaluate", "--model", copy, *few, "--grid", "g.png", "--json", "f.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 held-out prompts of each kind\n")
    written = json.loads(Path("f.json").read_text())
    for size, share in written["ceiling"].items():
        assert f"| {size.replace('x', '×')} | 0.0% (0.0 to 65.8) | {100 * share:.1f}% |" in result.stdout
        assert len(written["prompts"][size]) == 2
    assert pixels("g.png").shape[:2] == (128, 8 * 128 + 7 * 4)
