"""The parts of `make laptop`, on a model of the same layout that is small."""

import doctest
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks import laptop
from benchmarks.block_by_block import Reference, step_errors
from minflux.checkpoints.open import open_component
from minflux.commands.inspect import inspect
from minflux.errors import CheckpointError
from minflux.model.flux import SCHNELL
from tests import tiny_model

SIZES = {
    "transformer": replace(
        SCHNELL, hidden_size=256, num_heads=2, depth=2, depth_single_blocks=3, vec_in_dim=16, context_in_dim=24
    ),
    "vae": replace(tiny_model.VAE, z_channels=16),
    "text_encoder": tiny_model.CLIP,
    "text_encoder_2": tiny_model.T5,
}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laptop") / "model"
    laptop.build(folder, SIZES)
    return folder


# -- building ------------------------------------------------------------------------------------------------


def test_what_is_built_is_whole_and_what_is_there_is_left(model):
    assert inspect(str(model)).ok
    files = {path: path.stat().st_mtime_ns for path in model.rglob("*.safetensors")}
    laptop.build(model, SIZES)
    assert {path: path.stat().st_mtime_ns for path in model.rglob("*.safetensors")} == files


def test_bytes_are_counted_before_they_are_written(model):
    for kind, cfg in SIZES.items():
        stored = sum(weight.size for weight in open_component(model, kind).tensors.values())
        assert laptop.bytes_of(kind, cfg) == stored


def test_a_folder_of_other_sizes_is_left_alone(model):
    other = SIZES | {"transformer": replace(SIZES["transformer"], depth=1)}
    with pytest.raises(CheckpointError, match="name another --folder"):
        laptop.build(model, other)


def test_a_full_disk_is_found_before_the_first_weight(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="only 1,000 are free"):
        laptop.build(tmp_path, SIZES)
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_the_full_size_is_flux_1_schnell():
    sizes = laptop.configs()
    assert sizes["transformer"] == SCHNELL
    assert 33.5e9 < sum(laptop.bytes_of(*item) for item in sizes.items()) < 34e9
    assert laptop.configs((1, 2))["text_encoder_2"].num_layers == 3


# -- measuring -----------------------------------------------------------------------------------------------


@linux
def test_drawing_is_measured(model):
    run = laptop.watched([sys.executable, "-m", "benchmarks.laptop", "--only", "draw", "--folder", str(model)])
    assert len(run["steps"]) == laptop.STEPS
    assert 10 << 20 < run["RssAnon"] <= run["VmHWM"] < 1 << 30
    assert run["rchar"] > laptop.STEPS * laptop.bytes_of("transformer", SIZES["transformer"]) / 2  # some are read once
    assert (model / "picture.png").exists()
    assert laptop.measured(model, SIZES, run)[1] == ["weights: transformer", "0.01 billion"]


def test_a_step_is_diffusers_step(model):
    found = step_errors(model, side=64, text_length=8)
    assert [name for name in found if "." in name] == [
        *(f"double_blocks.{i}" for i in range(2)), *(f"single_blocks.{i}" for i in range(3))
    ]  # fmt: skip
    assert 0 < max(found.values()) < 1e-5
    assert laptop.check({"RssAnon": 0, "VmHWM": 0}, found) is None


def test_a_weight_that_differs_is_seen(model, monkeypatch):
    """One that diffusers reads otherwise than we do; only its own block and the whole step are wrong."""
    read = Reference.read
    wrong = "single_transformer_blocks.1.proj_out.bias"
    monkeypatch.setattr(Reference, "read", lambda self, name: read(self, name) * (2 if name == wrong else 1))
    found = step_errors(model, side=64, text_length=8)
    assert [name for name, error in found.items() if error > 1e-4] == ["single_blocks.1", "the whole step"]
    assert "single_blocks.1" in laptop.check({"RssAnon": 0, "VmHWM": 0}, found)


def test_too_much_memory_is_said():
    said = laptop.check({"RssAnon": 3 << 30, "VmHWM": 5 << 30}, {"the whole step": 0.0})
    assert said == "memory: expected at most 4.00 GiB, found 5.00 GiB"


def test_examples():
    assert doctest.testmod(laptop).attempted > 0
