"""Compiled blocks, as a GPU gets them: the same latents however weights are held, and one trace a kind of block."""

from dataclasses import replace

import numpy as np
import pytest

import minflux
from minflux.backend import get_backend, serving
from minflux.backend.polynomial import can_compile
from minflux.inference.compiled import block_runner, compiled_runner
from minflux.model.hooks import run

pytestmark = pytest.mark.skipif(not can_compile(), reason="on a CPU, mx.compile needs g++")


@pytest.fixture
def gpu(monkeypatch):
    """A backend that takes this CPU for a GPU."""
    compiled_runner.cache_clear()
    with serving("mlx-fused") as nx:
        monkeypatch.setattr(nx, "on_gpu", True)
        yield nx
    compiled_runner.cache_clear()


def latents(pipe, nx, **settings):
    text = pipe.encode("a red house")
    *_, last = replace(pipe, nx=nx).sample(text, steps=2, guidance=1, **settings)
    return nx.to_numpy(last.x)


def counting(monkeypatch, nx) -> list:
    """List the blocks that are compiled, each as often as it is traced."""
    traced, compile = [], nx.compile

    def compiled(block):
        def noted(*arguments):
            traced.append(block.__name__)
            return block(*arguments)

        return compile(noted)

    monkeypatch.setattr(nx, "compile", compiled)
    return traced


def test_where_there_is_no_gpu_blocks_run_as_they_are():
    assert block_runner(get_backend("numpy")) is run


@pytest.mark.parametrize("memory", ["resident", "streamed"])
def test_compiled_blocks_give_the_same_latents(model, gpu, monkeypatch, memory):
    pipe = minflux.load(model, backend="mlx", memory=memory)
    traced = counting(monkeypatch, gpu)
    compiled = latents(pipe, gpu)
    assert sorted(traced) == ["double_block", "single_block"]  # not once for each block and step
    monkeypatch.setattr(gpu, "on_gpu", False)
    np.testing.assert_allclose(compiled, latents(pipe, gpu), atol=2e-5)
    assert sorted(traced) == ["double_block", "single_block"]


def test_a_block_that_is_listened_to_runs_as_it_is(model, gpu, monkeypatch):
    traced, seen = counting(monkeypatch, gpu), []
    pipe = minflux.load(model, backend="mlx")
    latents(pipe, gpu, on_block=lambda name, arrays: seen.append((name, "q" in arrays)))
    assert traced == []
    assert ("double_blocks.0", True) in seen


def test_matrices_of_modulation_are_not_read_again(model, gpu, monkeypatch):
    pipe = minflux.load(model, backend="mlx", memory="streamed")
    read = []
    leaf = type(pipe.flux[1].nodes["img_in"].nodes["weight"])
    original = leaf.read
    monkeypatch.setattr(leaf, "read", lambda self: read.append(self.name) or original(self))
    latents(pipe, gpu)
    assert read.count("double_blocks.0.img_mod.lin.weight") == 1  # before the steps
    assert read.count("double_blocks.0.img_attn.qkv.weight") == 2  # at each of two steps
