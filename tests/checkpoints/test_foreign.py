"""What other programs quantised is named: by a file's names, and by a component's config."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.folder import read_config
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.open import open_model
from minflux.commands import main as cli
from minflux.errors import CheckpointError

NAME = "double_blocks.0.img_attn.qkv.weight"
FOREIGN = {
    f"{NAME}.absmax": "to 4 bits by bitsandbytes, and lacks the settings beside it",
    f"{NAME}._data._data": "to 2 or 4 bits by quanto",
    "transformer_blocks.0.attn.to_out.0.wscales": "nunchaku",
    "double_blocks.0.img_attn.qkv.weight_scale_2": "to NVFP4",
}


COMMANDS = {
    "generate": ["generate", "a cat", "--model", "q.safetensors"],
    "inspect": ["inspect", "q.safetensors"],
    "convert": ["convert", "q.safetensors", "out", "--format", "diffusers"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("name", "words"), FOREIGN.items())
def test_a_file_is_named_by_every_command(tmp_path, monkeypatch, command, name, words):
    monkeypatch.chdir(tmp_path)
    arrays = {"img_in.weight": np.ones((4, 4), np.float32), name: np.ones(4, np.float32)}
    write_safetensors(tmp_path / "q.safetensors", arrays)
    result = CliRunner().invoke(cli.main, COMMANDS[command])
    assert result.exit_code != 0
    assert words in result.output
    assert "minflux doesn't read it" in result.output


def test_a_folder_s_config_says_it(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    how = {"quant_method": "gptq", "bits": 4}
    path.write_text(json.dumps(config | {"quantization_config": how}))
    with pytest.raises(CheckpointError, match=r"config.json: quantization_config: quantised by 'gptq'; "):
        read_config(path, COMPONENTS["transformer"])
    with pytest.raises(CheckpointError, match="gptq"):
        open_model(folder).take("transformer")


# -- ComfyUI's marks -----------------------------------------------------------------------------------------

MARK = "double_blocks.0.img_attn.qkv.comfy_quant"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("mark", "words"),
    [
        (b'{"format": "mxfp8"}', "quantised to 'mxfp8' by ComfyUI"),
        (b'{"format": "int8_tensorwise"}', "quantised to 'int8_tensorwise' by ComfyUI"),
        (b'{"full_precision_matrix_mult": true}', "quantised to None by ComfyUI"),
        (b"[]", "expected a JSON object"),
        (b"{", "expected JSON"),
        (b" " * 5000, "expected at most 4096 bytes"),
    ],
)
def test_layers_that_comfyui_marks_as_something_else_are_named(tmp_path, monkeypatch, command, mark, words):
    monkeypatch.chdir(tmp_path)
    arrays = {"img_in.weight": np.ones((4, 4), np.float32), MARK: np.frombuffer(mark, np.uint8)}
    safetensors.numpy.save_file(arrays, tmp_path / "q.safetensors")
    result = CliRunner().invoke(cli.main, COMMANDS[command])
    assert result.exit_code != 0
    assert words in result.output
