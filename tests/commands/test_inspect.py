"""`minflux inspect`: what a file or folder holds, and every weight in it that is not right."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from minflux.commands.inspect import inspect
from minflux.errors import ArgumentError, CheckpointError
from minflux.model.flux import SCHNELL
from tests.commands.runner import run
from tools import synthetic_checkpoint as synthetic

SMALL = replace(SCHNELL, hidden_size=256, num_heads=2, context_in_dim=32, vec_in_dim=16, depth=1, depth_single_blocks=1)


@pytest.mark.weights
def test_the_shipped_model_is_whole():
    result = run("inspect", "tiny")
    assert result.exit_code == 0, result.output
    for said in ("transformer: 6,269,056 numbers", "of its own size", "T5: ", "CLIP: ", "MB resident"):
        assert said in result.output


def test_inspect_says_what_is_wrong(tmp_path):
    path = tmp_path / "x.safetensors"
    synthetic.make(path, SMALL, dtype="f16")
    flat = safetensors.torch.load_file(path)
    del flat["img_in.bias"]
    safetensors.torch.save_file({**flat, "more": torch.zeros(2)}, path)
    result = run("inspect", path)
    assert result.exit_code == 1
    assert "img_in.bias: expected shape (256,), found no such weight" in result.output
    assert "more: expected no such weight, found (2,)" in result.output


@pytest.mark.parametrize(
    ("held", "complaint"), [({"a": torch.zeros(1)}, "holds no part of FLUX.1; its first names are a")]
)
def test_inspect_refuses_other_files(tmp_path, held, complaint):
    safetensors.torch.save_file(held, tmp_path / "x.safetensors")
    result = run("inspect", tmp_path / "x.safetensors")
    assert result.exit_code == 2
    assert complaint in result.output


def test_inspect_finds_nothing(tmp_path):
    with pytest.raises(ArgumentError, match="neither a folder nor a file"):
        inspect(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no part"):
        inspect(tmp_path)
