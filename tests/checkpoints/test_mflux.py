"""Models that mflux saved, quantised by MLX itself: read by their names, packed where minflux multiplies by such.

The names are mflux's `flux_weight_mapping.py`, the shards its `model_saver.py`, written down here once more.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import minflux
from minflux import zoo
from minflux.backend import get_backend
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.mlx_affine import affine
from minflux.checkpoints.formats.safetensors import contents, read_array, read_safetensors, write_safetensors
from minflux.checkpoints.open import open_model
from minflux.checkpoints.quantise import holds_packed
from minflux.sampling.timesteps import Schedule
from tests.checkpoints.test_detect import FULL, ghosts, the_part
from tests.commands.runner import run

NX = get_backend("numpy")
SILENT = [].append  # of a model of its own size without a scheduler, the schedule that is taken is said
BITS = [3, 4, 5, 6, 8]
RENAMED = {  # (diffusers', mflux's)
    "transformer": [
        (".ff.net.0.proj.", ".ff.linear1."), (".ff.net.2.", ".ff.linear2."),
        (".ff_context.net.0.proj.", ".ff_context.linear1."), (".ff_context.net.2.", ".ff_context.linear2."),
    ],
    "vae": [
        ("coder.conv_in.", "coder.conv_in.conv2d."), ("coder.conv_out.", "coder.conv_out.conv2d."),
        ("coder.conv_norm_out.", "coder.conv_norm_out.norm."),
    ],
    "text_encoder": [],
    "text_encoder_2": [
        ("encoder.block.", "t5_blocks."), (".layer.0.", ".attention."), (".layer.1.", ".ff."),
        ("encoder.final_layer_norm.", "final_layer_norm."),
    ],
}  # fmt: skip
TABLE = "t5_blocks.{}.attention.SelfAttention.relative_attention_bias.weight"


def mlx_quantised(matrix: np.ndarray, bits: int) -> tuple[list[np.ndarray], np.ndarray]:
    """MLX's own packed numbers, scales and biases; and the floats that they stand for."""
    arrays = mx.quantize(mx.array(matrix), group_size=64, bits=bits)
    codes, scales, biases = (np.asarray(array) for array in arrays)
    whole = mx.dequantize(arrays[0], mx.ones_like(arrays[1]), mx.zeros_like(arrays[2]), group_size=64, bits=bits)
    q = np.asarray(whole).reshape(*scales.shape, 64)
    return [codes, scales, biases], (q * scales[..., None] + biases[..., None]).reshape(matrix.shape)


def save_as_mflux(source: Path, target: Path, part: str, bits: int | None) -> dict[str, np.ndarray]:
    """Write a component as mflux saves it; returns the numbers that it then holds, under diffusers' names."""
    file, numbers, saved = source / part / f"{COMPONENTS[part].stem}.safetensors", {}, {}
    for name, array in read_safetensors(file, NX).items():
        theirs, numbers[name] = name, array
        for old, new in RENAMED[part]:
            theirs = theirs.replace(old, new)
        saved[theirs] = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
        if bits and array.ndim == 2 and array.shape[1] % 64 == 0:
            stem = theirs.removesuffix("weight")
            arrays, numbers[name] = mlx_quantised(array, bits)
            saved |= dict(zip([theirs, f"{stem}scales", f"{stem}biases"], arrays, strict=True))
    for block in range(1, sum(name.endswith(".SelfAttention.q.weight") for name in saved)):
        saved[TABLE.format(block)] = saved[TABLE.format(0)]
    shards = {name: f"{i % 2}.safetensors" for i, name in enumerate(saved)}
    (target / part).mkdir(parents=True)
    for shard in set(shards.values()):
        flat = {name: np.ascontiguousarray(array) for name, array in saved.items() if shards[name] == shard}
        write_safetensors(target / part / shard, flat, {"quantization_level": str(bits), "mflux_version": "0.11.0"})
    index = {"metadata": {"quantization_level": str(bits)}, "weight_map": shards}
    (target / part / "model.safetensors.index.json").write_text(json.dumps(index))
    return numbers


def make_both(folder: Path, bits: int | None) -> tuple[Path, Path]:
    """The model that ships here as mflux saves it, and one of the same numbers in diffusers' layout."""
    source, saved, wide = zoo.FOLDER / "tiny", folder / "saved", folder / "wide"
    shutil.copytree(source, wide)
    for part, component in COMPONENTS.items():
        numbers = save_as_mflux(source, saved, part, bits)
        write_safetensors(wide / part / f"{component.stem}.safetensors", numbers)
        shutil.copy(source / part / "config.json", saved / part)  # sizes that are not FLUX.1's own
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(source / name, saved / name)
    for name in ("model_index.json", "minflux.json"):
        shutil.copy(source / name, saved)
    return saved, wide


def draw(folder: Path, memory: str = "resident") -> np.ndarray:
    return np.asarray(minflux.load(folder, "numpy", memory=memory, report=SILENT)("a blue cat", steps=1))


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 64), (5, 192), (300, 128)])
def test_numbers_are_mlx_s(tmp_path, nx, bits, shape):
    matrix = np.random.default_rng(bits).standard_normal(shape).astype(np.float32)
    arrays, expected = mlx_quantised(matrix, bits)
    names = ["a.weight", "a.scales", "a.biases"]
    write_safetensors(tmp_path / "x.safetensors", dict(zip(names, arrays, strict=True)))
    stored = affine(contents(tmp_path / "x.safetensors"), "a.weight")
    np.testing.assert_array_equal(nx.to_numpy(read_array(stored, nx, "float32")), expected, strict=True)
    theirs = np.asarray(mx.dequantize(*map(mx.array, arrays), group_size=64, bits=bits))
    np.testing.assert_allclose(expected, theirs, atol=1e-6)  # MLX may fuse the product and the sum: |w| < 6


# -- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 4, 6])
def test_it_draws_what_its_numbers_draw(tmp_path, bits):
    saved, wide = make_both(tmp_path, bits)
    expected = draw(wide)
    for mode in ("resident", "streamed"):
        np.testing.assert_array_equal(draw(saved, mode), expected)


def test_inspect_and_convert(tmp_path):
    saved, wide = make_both(tmp_path, 4)
    result = run("inspect", saved)
    assert result.exit_code == 0, result.output
    assert "mflux's names" in result.output
    assert "matrices quantised to 4 bits" in result.output
    for source in (saved, wide):
        result = run("convert", source, f"{source}-out", "--format", "diffusers")
        assert result.exit_code == 0, result.output
    for part, component in COMPONENTS.items():
        file = Path(part, f"{component.stem}.safetensors")
        got, expected = (read_safetensors(Path(f"{folder}-out", file), NX) for folder in (saved, wide))
        assert got.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_a_folder_without_index_or_settings_is_sampled_from_as_flux_1(tmp_path):
    """As mflux saves it: no index, no scheduler. The one step of this test is from t = 1 to 0 in any schedule."""
    saved, wide = make_both(tmp_path, 4)
    expected = draw(wide)
    (saved / "model_index.json").unlink()
    shutil.rmtree(saved / "scheduler")
    assert minflux.load(saved, "numpy", report=SILENT).schedule == Schedule()
    np.testing.assert_array_equal(draw(saved), expected)
    result = run("inspect", saved / "transformer")
    assert result.exit_code == 0, result.output


def test_without_a_config_the_weights_tell_the_sizes(tmp_path):
    """Of tiny, those of the VAE and of T5 are told by shapes; RoPE's axes, of heads that are not FLUX.1's, are not."""
    saved, wide = make_both(tmp_path, 4)
    for part in COMPONENTS:
        (saved / part / "config.json").unlink()
    found = open_model(saved)
    assert found.take("text_encoder_2").config == open_model(wide).take("text_encoder_2").config
    assert "can't tell RoPE's axes_dim" in str(found.broken["transformer"])


def test_only_whole_joint_matrices_in_the_blocks_stay_packed(tmp_path):
    """Of 4 and 8 bits; where one of q, k, v isn't quantised, none of them is multiplied by as it lies."""
    source = zoo.FOLDER / "tiny"
    save_as_mflux(source, tmp_path / "model", "transformer", 4)
    shutil.copy(source / "transformer" / "config.json", tmp_path / "model" / "transformer")
    stored = open_model(tmp_path / "model").components["transformer"]
    packed = {name for name, tensor in stored.tensors.items() if holds_packed(tensor)}
    assert "transformer_blocks.0.attn.to_q.weight" in packed
    assert not any(name.startswith(("x_embedder", "norm_out", "proj_out")) for name in packed)
    floats = read_safetensors(source / "transformer" / "diffusion_pytorch_model.safetensors", NX)
    name = "transformer_blocks.0.attn.to_k"
    for path in (tmp_path / "model" / "transformer").glob("?.safetensors"):
        flat = read_safetensors(path, NX)
        arrays = {key: array for key, array in flat.items() if key not in (f"{name}.scales", f"{name}.biases")}
        if f"{name}.weight" in arrays:
            arrays[f"{name}.weight"] = floats[f"{name}.weight"]
        write_safetensors(path, arrays)
    index = tmp_path / "model" / "transformer" / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"] = {
        k: v for k, v in found["weight_map"].items() if k not in (f"{name}.scales", f"{name}.biases")
    }
    index.write_text(json.dumps(found))
    stored = open_model(tmp_path / "model").take("transformer")
    packed = {name for name, tensor in stored.tensors.items() if holds_packed(tensor)}
    assert not any(name.startswith("transformer_blocks.0.attn.to_q") for name in packed)
    assert "transformer_blocks.0.attn.add_q_proj.weight" in packed


@pytest.mark.parametrize("kind", ["transformer", "vae", "text_encoder_2"])
def test_sizes_of_full_models_are_read_off_the_shapes(kind):
    part = the_part(ghosts(kind, "mflux", FULL[kind]))
    assert (part.name, part.naming.name) == (kind, "mflux")
    assert part.read_sizes() == FULL[kind]
    assert replace(part, config=FULL[kind]).mismatches == []
