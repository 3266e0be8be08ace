"""The autoencoder's own figures: perfect for one that changes nothing, poor for one that blurs."""

import numpy as np
import pytest
from click.testing import CliRunner

from minflux.backend import get_backend
from minflux.train import ceiling
from minflux.world.scenes import Scene, Sign, Thing
from tests import tiny_model


def measured(monkeypatch, redraw, count=12):
    monkeypatch.setattr(ceiling, "reconstruct", lambda cfg, p, nx, images: redraw(images))
    return ceiling.measure((None, None), get_backend("numpy"), (96, 64), count)


def test_an_autoencoder_that_changes_nothing(monkeypatch):
    found = measured(monkeypatch, lambda images: images)
    assert found["psnr"] == pytest.approx(100)
    assert [found[key] for key in ("ssim", "sharpness", "all", "letters")] == pytest.approx([1, 1, 1, 1])


def test_an_autoencoder_that_draws_backgrounds_alone(monkeypatch):
    def empty(images):
        return np.broadcast_to(images[:, :1, :1], images.shape).copy()

    found = measured(monkeypatch, empty)
    assert found["psnr"] < 25
    assert found["sharpness"] < 0.1
    assert found["all"] == found["letters"] == 0


def test_signs_are_told():
    assert ceiling.has_sign(Scene("blue", (Thing("cat"), Sign("HI")), "vertical"))
    assert not ceiling.has_sign(Scene("blue", (Thing("cat"),)))


def test_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "SIZES", ((64, 64),))
    result = CliRunner().invoke(ceiling.main, [str(tiny_model.make(tmp_path)), "--count", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].startswith("| size | PSNR, dB |")
    assert result.output.splitlines()[2].startswith("| 64×64 | ")
