"""One image by several processes: the same as by one, for what they say to each other, and no more than that."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minflux.backend import get_backend
from minflux.backend.processes import ALONE, Group
from minflux.checkpoints.components.t5 import t5_shapes
from minflux.checkpoints.open import open_model
from minflux.errors import ArgumentError, MinfluxError
from minflux.inference.flux1 import Flux1
from minflux.inference.load import joined_group, load_checkpoint, save_model
from tests import tiny_model
from tests.many import Played, needs_mlx, played
from tools.large_models import numbers_summed

pytestmark = needs_mlx
STEPS, TEXT, SIZE = 2, tiny_model.DEFAULTS.text_length, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of four heads, in T5 too, with guidance built in."""
    folder = tmp_path_factory.mktemp("split") / "model"
    cfg = replace(tiny_model.T5, num_heads=4)
    pipe = tiny_model.pipeline(guidance=True, hidden_size=64, num_heads=4)
    t5 = tiny_model.random_tree(t5_shapes(cfg), np.random.default_rng(1))
    save_model(replace(pipe, t5=(cfg, t5)), folder)
    for name, source in tiny_model.TOKENIZERS.items():
        shutil.copytree(source, folder / name)
    return folder


def load(folder: Path, group: Group = ALONE, backend: str = "numpy", memory: str = "resident", **how) -> Flux1:
    nx = get_backend(backend)
    return load_checkpoint(open_model(folder), nx, str(folder), memory=memory, group=group, **how)


def latents(pipe: Flux1, **settings) -> np.ndarray:
    text = pipe.encode("a cat", **settings)
    *_, last = pipe.sample(text, 7, STEPS, width=SIZE, height=SIZE)
    return pipe.nx.to_numpy(last.x)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("memory", ["resident", "staged", "streamed"])
def test_the_latents_are_those_of_one_process(monkeypatch, folder, size, memory):
    expected = latents(load(folder))
    team = played(monkeypatch, size)
    for found in team.run(lambda group: latents(load(folder, group, memory=memory))):
        assert difference(found, expected) <= 1e-5


def test_on_mlx(monkeypatch, folder):
    expected = latents(load(folder, backend="mlx"))
    team = played(monkeypatch, 2)
    for found in team.run(lambda group: latents(load(folder, group, backend="mlx"))):
        assert difference(found, expected) <= 1e-5


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_said(monkeypatch, folder, size):
    """As many numbers as docs/large-models.md says, in four sums a double block, one a single block, two a T5 block."""
    team = played(monkeypatch, size)
    team.run(lambda group: latents(load(folder, group)))
    cfg, t5 = load(folder).flux[0], load(folder).t5[0]
    tokens, width = TEXT + (SIZE // 16) ** 2, cfg.hidden_size
    in_a_step = [(1, n, width) for n in (tokens - TEXT, tokens - TEXT, TEXT, TEXT)] * cfg.depth
    in_a_step += [(1, tokens, width)] * cfg.depth_single_blocks
    of_text = [(1, TEXT, t5.d_model)] * (2 * t5.num_layers)
    assert all(said == team.said[0] for said in team.said)
    assert sorted(sums(team)) == sorted(of_text + STEPS * in_a_step)
    assert numbers(in_a_step) == numbers_summed(cfg, tokens)
    modulations = (12 * cfg.depth + 3 * cfg.depth_single_blocks) * width * STEPS
    assert numbers(gatherings(team)) == modulations // size


def sums(team: Played) -> list[tuple[int, ...]]:
    return [shape for op, shape in team.said[0] if op == "sum"]


def gatherings(team: Played) -> list[tuple[int, ...]]:
    """What was gathered of modulations; the first gathering compares the processes."""
    return [shape for op, shape in team.said[0] if op == "gather"][1:]


def numbers(shapes: list[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


# -- what does not go with it --------------------------------------------------------------------------------


def test_alone():
    with pytest.raises(ArgumentError, match=r"split: this is the only process; start several, as in: mlx.launch -n 2"):
        joined_group(True)
    assert joined_group(False).size == 1


@pytest.mark.parametrize(
    ("how", "words"),
    [({"lora": ["x.safetensors"]}, "split goes without lora"), ({"cache": "somewhere"}, "split goes without cache")],
)
def test_what_is_refused(folder, how, words):
    with pytest.raises(ArgumentError, match=words):
        load(folder, Group(0, 2), **how)


def test_a_step_cache_is_refused(monkeypatch, folder):
    team = played(monkeypatch, 2)
    with pytest.raises(ArgumentError, match="step_cache goes without split"):
        team.run(lambda group: load(folder, group)("a cat", steps=STEPS, step_cache="teacache"))


def test_a_share_is_not_saved(monkeypatch, folder, tmp_path):
    team = played(monkeypatch, 2)
    with pytest.raises(ArgumentError, match="pipe is split over several processes"):
        team.run(lambda group: save_model(load(folder, group), tmp_path / "model"))


def test_processes_that_differ(monkeypatch, folder, model):
    team = played(monkeypatch, 2)
    with pytest.raises(
        MinfluxError, match=r"the processes differ: process \d has minflux .*, model .*; process \d has minflux"
    ):
        team.run(lambda group: load(folder if group.rank else model, group))
