"""The language models of FLUX.2 in files: what of them is read, from folders that transformers wrote."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3ForCausalLM
from transformers import Qwen3Config as TheirQwen3Config

from minflux.backend import get_backend
from minflux.checkpoints.components import MISTRAL, QWEN3
from minflux.checkpoints.components import decoder as decoder_files
from minflux.checkpoints.components.shapes import Sizes
from minflux.checkpoints.formats.safetensors import contents, read_safetensors, write_safetensors
from minflux.checkpoints.lazy import stream
from minflux.checkpoints.open import read_component
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.tree import flatten
from minflux.commands.inspect import component_lines
from minflux.errors import CheckpointError
from minflux.model.decoder import MISTRAL_SMALL, QWEN3_4B, QWEN3_8B, MistralConfig, Qwen3Config, decoder_hidden_states
from tests.compare import MODEL, assert_close

NX = get_backend("numpy")
SIZES = {
    "vocab_size": 30, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 5e4,
}  # fmt: skip
CONFIGS = {"qwen3": Qwen3Config(**SIZES), "mistral": MistralConfig(**SIZES)}
RECORDS = {"qwen3": QWEN3, "mistral": MISTRAL}
KINDS = pytest.mark.parametrize("kind", RECORDS)
VISION = {
    "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "head_dim": 8, "image_size": 28, "patch_size": 14,
}  # fmt: skip
IDS, MASK = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])


def oracle(kind: str, tied: bool = True) -> torch.nn.Module:
    """transformers' model, with random weights."""
    torch.manual_seed(0)
    content = RECORDS[kind].write_config(CONFIGS[kind]) | {"tie_word_embeddings": tied}
    if kind == "qwen3":
        model = Qwen3ForCausalLM(TheirQwen3Config(**content))
    else:
        model = Mistral3ForConditionalGeneration(Mistral3Config(**content | {"vision_config": VISION}))
    for weight in model.parameters():
        spread = 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5
        weight.data = torch.randn(weight.shape) * spread + (weight.ndim == 1)
    return model.eval()


def expected(model: torch.nn.Module) -> torch.Tensor:
    """Return the states after the layers 1, 2 and 3, side by side."""
    states = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    return torch.cat([states[count] for count in (1, 2, 3)], dim=-1)


def states(p, cfg, nx=NX):
    """Return what FLUX.2 takes of the same tokens."""
    return decoder_hidden_states(p, cfg, nx.array(IDS.numpy()), nx.array(MASK.numpy()), cfg.state_layers)


def opened(folder: Path, kind: str):
    """Open a folder, with all its weights right."""
    stored, others = read_component(folder, RECORDS[kind])
    stored.check()
    assert others == []
    return stored


# -- what is read ----------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_that_transformers_wrote_in_shards(tmp_path, kind, tied):
    model = oracle(kind, tied)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    stored = opened(tmp_path, kind)
    assert stored.config == CONFIGS[kind]
    p = read_tree(stored, NX)
    assert {name: w.shape for name, w in flatten(p).items()} == decoder_files.decoder_shapes(stored.config)
    assert_close(NX, states(p, stored.config), expected(model), MODEL)


@KINDS
def test_what_is_left_in_the_file_is_said(tmp_path, kind):
    oracle(kind, tied=False).save_pretrained(tmp_path)
    stored = opened(tmp_path, kind)
    everything = contents(tmp_path / "model.safetensors").keys()
    assert everything == stored.tensors.keys() | set(stored.left_out)
    ends = {"norm.weight", "lm_head.weight"}
    names = {re.sub(r"^(language_model\.)?(model\.)?", "", name) for name in stored.left_out}
    rest = {name for name in names if not name.startswith(("vision_tower.", "multi_modal_projector."))}
    assert {name for name in rest if not name.startswith(("layers.3.", "layers.4."))} == ends
    assert (rest < names) == (kind == "mistral")
    text = "\n".join(component_lines(stored))
    assert "5 layers, of which the first 3 are run" in text
    assert f"{len(names)} more weights are not read, nor needed: " in text


@KINDS
def test_streamed_from_its_file(tmp_path, kind, nx):
    model = oracle(kind)
    model.save_pretrained(tmp_path)
    stored = opened(tmp_path, kind)
    assert_close(nx, states(stream(stored, nx, "float32"), stored.config, nx), expected(model), MODEL)


@KINDS
def test_bfloat16(tmp_path, kind):
    model = oracle(kind)
    for weight in model.parameters():
        weight.data = weight.bfloat16().float()
    right = expected(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    stored = opened(tmp_path, kind)
    assert {tensor.dtype for tensor in stored.tensors.values()} == {"BF16"}
    assert_close(NX, states(read_tree(stored, NX, "float32"), stored.config), right, MODEL)


def test_names_that_some_versions_of_transformers_have(tmp_path):
    model = oracle("mistral")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    flat = read_safetensors(path, NX)
    assert any(name.startswith("language_model.model.") for name in flat)
    write_safetensors(
        path, {name.replace("language_model.model.", "model.language_model."): w for name, w in flat.items()}
    )
    stored = opened(tmp_path, "mistral")
    assert_close(NX, states(read_tree(stored, NX), stored.config), expected(model), MODEL)


@KINDS
def test_what_minflux_saves_transformers_opens(tmp_path, kind):
    model = oracle(kind)
    model.save_pretrained(tmp_path / "theirs")
    stored = opened(tmp_path / "theirs", kind)
    flat = RECORDS[kind].folder_naming.store(flatten(read_tree(stored, NX)), stored.config)
    (tmp_path / "ours").mkdir()
    write_safetensors(tmp_path / "ours/model.safetensors", flat)
    config = RECORDS[kind].write_config(stored.config) | ({"vision_config": VISION} if kind == "mistral" else {})
    (tmp_path / "ours/config.json").write_text(json.dumps(config))
    again = type(model).from_pretrained(tmp_path / "ours").eval()  # the layers that aren't there are random
    torch.testing.assert_close(expected(again), expected(model), rtol=0, atol=0)
    assert opened(tmp_path / "ours", kind).config == stored.config


# -- what is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda flat: flat.pop("model.layers.2.mlp.up_proj.weight"), "layers.2.mlp.up_proj.weight: expected shape"),
        (lambda flat: flat.update({"model.layers.5.x": np.ones(2)}), "layers.5.x: expected no such weight"),
        (lambda flat: flat.update({"model.layers.0.self_attn.q_proj.bias": np.ones(64)}), "bias: expected no such"),
    ],
)
def test_a_weight_that_is_missing_or_strange(tmp_path, change, complaint):
    oracle("qwen3").save_pretrained(tmp_path)
    flat = read_safetensors(tmp_path / "model.safetensors", NX)
    change(flat)
    write_safetensors(tmp_path / "model.safetensors", {name: np.float32(w) for name, w in flat.items()})
    with pytest.raises(CheckpointError, match=complaint):
        opened(tmp_path, "qwen3")


@pytest.mark.parametrize(
    ("kind", "wrong", "complaint"),
    [
        ("qwen3", {"model_type": "qwen2"}, "model_type: expected 'qwen3', found 'qwen2'"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ("qwen3", {"attention_bias": True}, "attention_bias: expected False, found True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window: expected False"),
        ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 4, found 3"),
        ("qwen3", {"head_dim": 15}, "head_dim: expected an even number, found 15"),
        ("qwen3", {"num_hidden_layers": 3}, "num_hidden_layers: expected four at least, .* found 3"),
        ("qwen3", {"hidden_size": "wide"}, "hidden_size: expected a value like 2560, found 'wide'"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type: expected 'default', found 'yarn'"),
        ("qwen3", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type: .* found 'linear'"),
        ("qwen3", {"rope_parameters": 7}, "rope_parameters: expected a JSON object, found 7"),
        ("qwen3", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta: expected a number above 1, found 'x'"),
        ("mistral", {"text_config": 7}, "text_config: expected a JSON object, found 7"),
        ("mistral", {"text_config": {"model_type": "ministral"}}, "model_type: .* found 'ministral'"),
        (
            "mistral",
            {"text_config": {"sliding_window": 511}},
            "sliding_window: expected null or 512 at least, found 511",
        ),
    ],
)
def test_configs_we_can_not_run(tmp_path, kind, wrong, complaint):
    (tmp_path / "config.json").write_text(json.dumps(RECORDS[kind].write_config(CONFIGS[kind]) | wrong))
    with pytest.raises(CheckpointError, match=f"config.json: {complaint}"):
        read_component(tmp_path, RECORDS[kind])


# -- configs and sizes -----------------------------------------------------------------------------------------


@KINDS
def test_configs_there_and_back(kind):
    spec = RECORDS[kind]
    assert spec.read_config(json.loads(json.dumps(spec.write_config(CONFIGS[kind])))) == CONFIGS[kind]


def test_the_published_configs():
    """What Qwen3-4B's, Qwen3-8B's and Mistral-Small-3.1's config.json say, in transformers 4's way."""
    qwen = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2560, "intermediate_size": 9728, "max_window_layers": 36, "model_type": "qwen3",
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    assert QWEN3.read_config(qwen) == QWEN3_4B
    assert QWEN3.read_config(qwen | {"hidden_size": 4096, "intermediate_size": 12288}) == QWEN3_8B
    text = {
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0, "sliding_window": None, "vocab_size": 131072,
    }  # fmt: skip
    assert MISTRAL.read_config({"model_type": "mistral3", "text_config": text}) == MISTRAL_SMALL
    assert MISTRAL.read_config(text) == MISTRAL_SMALL


def test_a_size_that_a_config_leaves_out_is_transformers_own():
    theirs = TheirQwen3Config().to_dict()
    assert QWEN3.read_config({"model_type": "qwen3"}) == QWEN3.read_config(theirs)
    theirs = Mistral3Config(text_config={"model_type": "mistral"}, vision_config=VISION).to_dict()
    assert MISTRAL.read_config({"text_config": {"model_type": "mistral"}}) == MISTRAL.read_config(theirs)


@KINDS
@pytest.mark.parametrize("is_whole", [True, False])
def test_sizes_off_the_shapes(kind, is_whole):
    cfg = replace(CONFIGS[kind], num_hidden_layers=8)
    shapes = decoder_files.decoder_shapes(cfg)
    if is_whole:
        shapes |= {"model.norm.weight": (64,), "model.layers.6.x": (1,), "model.layers.7.x": (1,)}
    sizes = Sizes("text_encoder", shapes)
    assert RECORDS[kind].sizes(sizes, cfg) == cfg
    if kind == "qwen3":
        assert QWEN3.sizes(sizes, None) == replace(cfg, rope_theta=1e6)
    assert RECORDS[kind].sizes(sizes, replace(cfg, num_hidden_layers=12)) == cfg


def test_sizes_that_can_not_be_told():
    shapes = decoder_files.decoder_shapes(CONFIGS["mistral"])
    with pytest.raises(CheckpointError, match="can't tell its heads from 64 and 32 rows, 128 a head"):
        MISTRAL.sizes(Sizes("text_encoder", shapes), None)


def test_llama_cpp_names():
    ours = decoder_files.decoder_shapes(CONFIGS["qwen3"])
    naming = QWEN3.naming("llama.cpp")
    theirs = naming.store(ours, CONFIGS["qwen3"])
    assert {"token_embd.weight", "blk.0.attn_q_norm.weight", "blk.2.ffn_down.weight"} <= theirs.keys()
    assert all(name.startswith(("token_embd.", "blk.")) for name in theirs)
    assert naming.load(theirs, CONFIGS["qwen3"]) == ours
    assert not QWEN3.is_used(naming.our_name("output.weight", None), CONFIGS["qwen3"])
    assert not QWEN3.is_used(naming.our_name("output_norm.weight", None), CONFIGS["qwen3"])
