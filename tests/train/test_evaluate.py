"""Measuring: a random model gets nothing right, and the figures say so, beside what could be reached at all."""

import json

import numpy as np
import pytest
from PIL import Image

import minflux
from minflux.train import evaluate as evaluation
from minflux.train import reader, scenes


@pytest.fixture(scope="module")
def measured(model) -> evaluation.Result:
    return evaluation.evaluate(minflux.load(model), 3, steps=1, guidance=1.0)


def test_a_random_model_draws_nothing_right(measured):
    figures = evaluation.figures(measured)
    assert list(figures) == list(reader.CHECKS)
    assert figures["all"]["drawn"][0] == figures["all"]["reconstructed"][0] == 0
    assert figures["all"]["rendered"][0] == 1


def test_prompts_are_held_out_and_the_same_each_time(model, measured, monkeypatch):
    """Nor do the images depend on how many are drawn at once."""
    assert all(scenes.is_held_out(scenes.parse(prompt)) for prompt in measured.prompts)
    monkeypatch.setattr(evaluation, "BATCH", 2)
    again = evaluation.evaluate(minflux.load(model), 3, steps=1, guidance=1.0)
    assert again.prompts == measured.prompts
    assert np.abs(again.images.astype(int) - measured.images).max() <= 1
    assert again.rendered == measured.rendered


def test_the_table_of_figures(measured):
    title, _, header, _, *rows = evaluation.table(measured).splitlines()
    assert title == "3 held-out prompts"
    assert [len(row.split("|")) for row in [header, *rows]] == [6] * (1 + len(reader.CHECKS))
    assert rows[-1] == "| all | 0.0% (0.0 to 56.1) | 0.0% | 100.0% |"


def test_figures_and_images_are_written(measured, tmp_path):
    evaluation.save_json(measured, tmp_path / "figures.json")
    evaluation.save_grid(measured, tmp_path / "grid.png", columns=2)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["figures"]["all"]["rendered"][0] == 1
    assert [row["prompt"] for row in written["prompts"]] == measured.prompts
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 128 + 4, 2 * 128 + 4)
