"""Where LoRAs lie: files, folders and repositories, with PEFT's settings beside them."""

import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from minflux.checkpoints import hub, lora_files
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.lora import add_loras, read_lora, read_loras
from minflux.checkpoints.lora_files import locate_lora, parse
from minflux.checkpoints.lora_settings import fits
from minflux.errors import ArgumentError, CheckpointError
from tests import loopback_hub, tiny_model
from tests.checkpoints.test_hub import generate, run
from tests.checkpoints.test_lora import PAIR
from tests.loopback_hub import NAME

CONFIGS = {"transformer": tiny_model.FLUX}


@pytest.fixture
def folder(tmp_path):
    """A folder of two LoRAs, one of them further down."""
    (tmp_path / "loras" / "sub").mkdir(parents=True)
    for name in ("a.safetensors", "sub/b.safetensors"):
        write_safetensors(tmp_path / "loras" / name, PAIR)
    return tmp_path / "loras"


@pytest.mark.parametrize("text", ["x.safetensors:nan", "x:inf"])
def test_a_scale_that_is_not_finite(text):
    with pytest.raises(ArgumentError, match="expected a finite scale"):
        parse(text)


def test_the_scale_is_the_number_after_the_last_colon(tmp_path):
    file = tmp_path / "a:2"
    file.touch()
    assert [scale for _, scale in map(parse, ["a:b.safetensors:-0.5", "b", str(file)])] == [-0.5, 1.0, 1.0]


@pytest.mark.parametrize("text", ["x.safetensors", "x.safetensors:", "x.safetensors:much", "schnell", ""])
def test_a_lora_that_is_nowhere(text):
    with pytest.raises(ArgumentError, match=r"lora: found no .*; expected FILE, FOLDER"):
        locate_lora(text)


def test_a_folder_s_only_file_is_taken(folder):
    assert locate_lora(f"{folder / 'sub'}:0.5") == (folder / "sub" / "b.safetensors", 0.5)
    assert locate_lora(f"{folder}:sub/b.safetensors:2") == (folder / "sub" / "b.safetensors", 2.0)


@pytest.mark.parametrize(
    ("file", "words"),
    [("", "holds several files; name one, as in"), (":c.safetensors", "holds no 'c.safetensors'; it has a")],
)
def test_of_several_files_one_is_named(folder, file, words):
    with pytest.raises(ArgumentError, match=f"{words}.*sub/b.safetensors"):
        locate_lora(f"{folder}{file}")


def test_a_folder_without_a_lora(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file"):
        locate_lora(str(tmp_path))


# -- the Hub -------------------------------------------------------------------------------------------------


def test_a_lora_is_fetched_by_name(folder, model, tmp_path):
    """Once, and only the file that is named; without a network it is then taken from the cache."""
    file = f"{NAME}:sub/b.safetensors"
    with loopback_hub.serving(folder) as served:
        assert generate(str(model), tmp_path, HF_ENDPOINT=served.url).returncode == 0
        done = run(tmp_path, *draw(model, f"{file}:0.5"), HF_ENDPOINT=served.url)
        assert done.returncode == 0, done.stderr
        assert served.fetched() == ["sub/b.safetensors"]
        several = run(tmp_path, *draw(model, NAME), HF_ENDPOINT=served.url)
    assert several.stderr.splitlines()[-1].endswith("a.safetensors, sub/b.safetensors")
    offline = run(tmp_path, *draw(model, file), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    other = run(tmp_path, *draw(model, "someone/else"), HF_HUB_OFFLINE="1")
    assert "someone/else: is not in the cache" in other.stderr


def draw(model, lora: str) -> list[str]:
    """The arguments that draw one step with a LoRA."""
    return ["generate", "a cat", "--model", str(model), "--steps", "1", "--lora", lora]


def test_a_png_s_lora_is_not_fetched_unasked(folder, model, tmp_path):
    with loopback_hub.serving(folder) as served:
        first = run(tmp_path, *draw(model, f"{NAME}:a.safetensors"), HF_ENDPOINT=served.url)
        assert first.returncode == 0, first.stderr
        elsewhere = str(tmp_path / "empty")
        done = run(tmp_path, "generate", "--from", "minflux.png", HF_ENDPOINT=served.url, HF_HOME=elsewhere)
    assert done.returncode == 2
    assert f"names the LoRA '{NAME}', which is not here; with --yes it is fetched" in done.stderr


def test_a_listing_that_fails_is_told_as_a_model_s_is(monkeypatch):
    """Gated, private, no network: one message for models and LoRAs."""

    def fail(name, files):
        raise CheckpointError(f"{name}: is gated")

    monkeypatch.setattr("huggingface_hub.model_info", lambda name, revision: 1 / 0)
    monkeypatch.setattr(hub, "fetch", fail)
    with pytest.raises(CheckpointError, match="someone/style: is gated"):
        lora_files.in_repository("someone/style", None)


# -- PEFT's settings -----------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    """Two of the small model's matrices, under BFL's names."""

    def __init__(self):
        super().__init__()
        self.img_in = torch.nn.Linear(16, 32)
        self.txt_in = torch.nn.Linear(tiny_model.FLUX.context_in_dim, 32)


@pytest.mark.parametrize("rooted", [False, True])
def test_a_folder_that_peft_saved_adds_what_peft_adds(tmp_path, rooted):
    torch.manual_seed(1)
    settings = {"alpha_pattern": {"txt_in": 7}, "rank_pattern": {"^txt_in": 3}, "use_rslora": rooted}
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["img_in", "txt_in"], init_lora_weights=False, **settings)
    theirs = get_peft_model(Small(), config)
    theirs.save_pretrained(tmp_path)
    changes = read_loras([f"{tmp_path}:0.5"], CONFIGS)
    zeros = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes().items()}
    got = add_loras(zeros, changes)
    for name in shapes():
        expected = 0.5 * getattr(theirs.base_model.model, name).get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(got[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape) for name, layer in Small().named_children()}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 4}, "img_in: expected rank 4, as its settings say, found 2"),
        ({"lora_alpha": "5"}, "lora_alpha: expected numbers, found '5'"),
        ({"alpha_pattern": {"(a+)+": 1}}, "'(a+)+': expected a plain name"),
        ({"alpha_pattern": {"a*b*c*d*e*": 1}}, "expected a plain name"),
        ({"alpha_pattern": {"[": 1}}, "'[': expected a regular expression"),
    ],
)
def test_settings_that_can_not_be_honoured(tmp_path, settings, words):
    write_safetensors(tmp_path / "adapter_model.safetensors", PAIR)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_lora(tmp_path / "adapter_model.safetensors", CONFIGS)


def test_patterns_fit_as_peft_s_do():
    assert fits("^x.to_q", "base_model.model.x.to_q")
    assert not fits("^to_q", "transformer.x.to_q")
    assert fits(r"blocks\.\d+\.to_q", "transformer.blocks.12.to_q")
