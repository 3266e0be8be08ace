"""The report of five measures: what is drawn, laid out, and written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import minflux
from minflux.errors import ArgumentError
from minflux.inference.hints import Trained
from minflux.train import report
from minflux.world import reader
from minflux.world.evaluate import SIZES


@pytest.fixture(scope="module")
def measured(model) -> report.Report:
    """A random model, measured on two prompts of each size, which its tokenizer has no words for."""
    pipe = minflux.load(model, "numpy")
    pipe = replace(pipe, defaults=replace(pipe.defaults, text_length=256), trained=Trained())
    return report.measure(pipe, 2, steps=1, guidance=1.0)


def test_a_random_model_draws_nothing_right_and_its_vae_keeps_nothing(measured):
    assert list(measured.drawn) == list(SIZES)
    assert [of.share("all") for of in measured.drawn.values()] == [0] * len(SIZES)
    assert set(measured.ceiling.values()) == {0}
    assert measured.letters == 0
    assert np.isnan(measured.quality).all()


def test_the_tables_have_each_measure_once(measured):
    text = report.table(measured)
    assert text.startswith("2 held-out prompts of each kind\n\n| size |")
    assert "| 96×160 | 0.0% (0.0 to 65.8) | 0.0% |" in text
    assert f"| {' | '.join(reader.CHECKS)} |" in text
    for name in ("typography", "diversity", "quality"):
        assert name in text
    assert "nan" not in text


def test_figures_and_images_are_written(measured, tmp_path):
    report.save_json(measured, tmp_path / "figures.json")
    report.save_grid(measured, tmp_path / "grid.png", columns=2)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["quality"] == [None, None]
    assert [row["prompt"] for row in written["prompts"]["64x64"]] == measured.drawn[64, 64].prompts
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 128 + 4, 128)


@pytest.mark.parametrize(
    ("share", "trials", "expected"), [(0.95, 500, (0.927, 0.966)), (0, 3, (0, 0.561)), (1, 3, (0.439, 1))]
)
def test_wilson_s_interval(share, trials, expected):
    """The middle one and its mirror image are in closed form: z²/(n + z²)."""
    assert report.confidence_interval(round(share * trials), trials) == pytest.approx(expected, abs=5e-4)


def test_no_prompts_are_refused(model):
    with pytest.raises(ArgumentError, match="prompts must be at least 1, got 0"):
        report.measure(minflux.load(model, "numpy"), 0)
