"""Checkpoints of random weights: whole, of sane values, and rounded as PyTorch rounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.tree import leaves
from minflux.commands.inspect import inspect
from minflux.model.flux import SCHNELL
from tools import synthetic_checkpoint as synthetic

SMALL = replace(SCHNELL, hidden_size=256, num_heads=2, context_in_dim=32, vec_in_dim=16, depth=1, depth_single_blocks=1)


@pytest.mark.parametrize("format_", synthetic.NAMINGS)
@pytest.mark.parametrize("dtype", synthetic.TAGS)
def test_synthetic_checkpoints_are_whole_and_sane(tmp_path, nx, format_, dtype):
    out = tmp_path / ("model" if format_ == "diffusers" else "model.safetensors")
    synthetic.make(out, SMALL, format_, dtype, shard=2_000_000)
    report = inspect(out)
    (stored,) = report.checkpoint.found
    assert report.ok, report.text()
    assert stored.config == SMALL
    assert {tensor.dtype for tensor in stored.tensors.values()} == {synthetic.TAGS[dtype]}
    p = read_tree(stored, nx, "float32")
    assert {name: x.shape for name, x in leaves(p)} == flux_shapes(SMALL)
    matrix = nx.to_numpy(p["single_blocks"][0]["linear2"]["weight"])
    assert matrix.std() == pytest.approx(1280**-0.5, rel=0.05)
    if format_ == "diffusers":
        assert len(list((out / "transformer").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("dtype", ["f8_e4m3", "f8_e5m2"])
def test_synthetic_float8_is_rounded_as_torch_rounds_it(dtype):
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    kinds = {"f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2}
    expected = torch.from_numpy(x).float().to(kinds[dtype]).view(torch.uint8).numpy().tobytes()
    assert synthetic.encoded(x.astype(np.float32), synthetic.TAGS[dtype]) == expected
