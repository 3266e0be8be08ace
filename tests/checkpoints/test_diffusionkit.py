"""Transformers of FLUX.1 and SD3 as DiffusionKit saves them, in floats and in 4 bits.

The names are its `mlx/model_io.py` (`flux_state_dict_adjustments`, `mmdit_state_dict_adjustments`), the packing MLX's
`nn.quantize`, which takes every linear layer; both are written down here once more.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import minflux
from minflux import zoo
from minflux.backend import get_backend
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components.flux import flux_shapes, to_diffusers
from minflux.checkpoints.components.sd3 import sd3_shapes
from minflux.checkpoints.detect import find_components
from minflux.checkpoints.diffusionkit import what_is_lost
from minflux.checkpoints.foreign import join_quantised
from minflux.checkpoints.formats.entry import Stored
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.open import open_model
from minflux.checkpoints.quantise import dequantise, holds_packed
from minflux.checkpoints.read import load_component, read_tree
from minflux.checkpoints.tree import flatten
from minflux.errors import CheckpointError
from minflux.model.flux import SCHNELL
from minflux.model.sd3 import SD3Config
from tests.checkpoints.test_mflux import SILENT, mlx_quantised
from tests.commands.runner import run

NX = get_backend("numpy")
WARNING = "leaves out the biases of the keys"
FILE = "flux-schnell-4bit-quantized.safetensors"
SPELLED = [  # (a pattern of BFL's names, DiffusionKit's)
    (r"double_blocks", "multimodal_transformer_blocks"),
    (r"single_blocks", "unified_transformer_blocks"),
    (r"(\.\d+)\.(modulation|norm|linear)", r"\1.transformer_block.\2"),
    (r"img_attn|img_mlp|img_mod", lambda match: f"image_transformer_block.{match[0][4:]}"),
    (r"txt_attn|txt_mlp|txt_mod", lambda match: f"text_transformer_block.{match[0][4:]}"),
    (r"(mod|modulation)\.lin\b", "adaLN_modulation.layers.1"),
    (r"(attn\.)?norm\.(query|key)_norm\.scale", lambda match: f"qk_norm.{match[2][0]}_norm.weight"),
    (r"attn\.proj", "attn.o_proj"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.2", "mlp.fc2"),
    (r"img_in", "x_embedder.proj"),
    (r"txt_in", "context_embedder"),
    (r"time_in", "t_embedder"),
    (r"vector_in", "y_embedder"),
    (r"in_layer", "mlp.layers.0"),
    (r"out_layer", "mlp.layers.2"),
    (r"adaLN_modulation\.1", "adaLN_modulation.layers.1"),
]


def spelled(name: str) -> str:
    """A name of BFL's as DiffusionKit has it, but for joint matrices."""
    for old, new in SPELLED:
        name = re.sub(old, new, name)
    return name


def saved_by_diffusionkit(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under BFL's names as DiffusionKit's model holds them; its keys have no biases."""
    result: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        theirs, width = spelled(name), flat["final_layer.linear.weight"].shape[1]
        stem, _, leaf = theirs.rpartition(".")
        if stem.endswith("attn.qkv"):
            parts = zip("qkv", np.split(array, 3), strict=True)
            result |= {f"{stem[:-3]}{part}_proj.{leaf}": rows for part, rows in parts}
        elif stem.endswith("linear1"):
            names = [f"attn.{part}_proj" for part in "qkv"] + ["mlp.fc1"]
            parts = zip(names, np.split(array, [width, 2 * width, 3 * width]), strict=True)
            result |= {f"{stem[:-7]}{part}.{leaf}": rows for part, rows in parts}
        elif stem.endswith("linear2"):
            halves = np.split(array, [width], axis=1) if leaf == "weight" else [array, array]
            result |= {f"{stem[:-7]}attn.o_proj.{leaf}": halves[0], f"{stem[:-7]}mlp.fc2.{leaf}": halves[1]}
        else:
            result[theirs] = array[:, None, None] if theirs == "x_embedder.proj.weight" else array
    return {name: array for name, array in result.items() if not name.endswith("k_proj.bias")}


def quantised(flat: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What is saved after MLX quantised every linear layer to 4 bits; and the numbers that it then holds."""
    saved, numbers = {}, {}
    for name, array in flat.items():
        saved[name] = numbers[name] = array
        if array.ndim == 2:
            stem = name.removesuffix("weight")
            arrays, numbers[name] = mlx_quantised(array, 4)
            saved |= dict(zip([name, f"{stem}scales", f"{stem}biases"], arrays, strict=True))
    return saved, numbers


def without_keys_biases(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under BFL's names, the biases of whose keys are zeros."""
    width = flat["final_layer.linear.weight"].shape[1]
    changed = dict(flat)
    for name in flat:
        if name.endswith(("qkv.bias", "linear1.bias")):
            changed[name] = flat[name].copy()
            changed[name][width : 2 * width] = 0
    return changed


def again_by_bfl(numbers: dict[str, np.ndarray], flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put numbers under DiffusionKit's names back together under BFL's; `flat` has the names, and the keys' biases."""
    result = {}
    for name, array in without_keys_biases(flat).items():
        theirs = spelled(name)
        if name.endswith("qkv.weight"):
            result[name] = np.concatenate([numbers[theirs.replace("qkv", f"{part}_proj")] for part in "qkv"])
        elif name.endswith("linear1.weight"):
            parts = [f"attn.{part}_proj" for part in "qkv"] + ["mlp.fc1"]
            result[name] = np.concatenate([numbers[theirs.replace("linear1", part)] for part in parts])
        elif name.endswith("linear2.weight"):
            result[name] = np.hstack([numbers[theirs.replace("linear2", part)] for part in ("attn.o_proj", "mlp.fc2")])
        else:
            result[name] = numbers[theirs].reshape(array.shape) if theirs in numbers else array
    return result


def shipped() -> dict[str, np.ndarray]:
    """The transformer that ships here, under BFL's names."""
    _, p = load_component(zoo.FOLDER / "tiny", "transformer", NX)
    return {name: np.asarray(array) for name, array in flatten(p).items()}


def make_both(folder: Path, is_packed: bool) -> tuple[Path, Path]:
    """The model that ships here with a file that DiffusionKit saved in it, and one of the same numbers."""
    flat = shipped()
    theirs = saved_by_diffusionkit(flat)
    saved, numbers = quantised(theirs) if is_packed else (theirs, theirs)
    for name in ("saved", "wide"):
        shutil.copytree(zoo.FOLDER / "tiny", folder / name)
    write_safetensors(folder / "saved" / FILE, {name: np.ascontiguousarray(a) for name, a in saved.items()})
    (folder / "saved/transformer/diffusion_pytorch_model.safetensors").unlink()
    stem = f"{COMPONENTS['transformer'].stem}.safetensors"
    write_safetensors(folder / "wide/transformer" / stem, to_diffusers(again_by_bfl(numbers, flat)))
    return folder / "saved" / FILE, folder / "wide"


def draw(model: Path, memory: str = "resident") -> np.ndarray:
    return np.asarray(minflux.load(model, "numpy", memory=memory, report=SILENT)("a blue cat", steps=1))


@pytest.mark.parametrize("is_packed", [False, True])
def test_it_draws_what_its_numbers_draw_and_says_what_is_lost(tmp_path, is_packed):
    saved, wide = make_both(tmp_path, is_packed)
    expected = draw(wide)
    for mode in ("resident", "streamed"):
        with pytest.warns(UserWarning, match=WARNING):
            np.testing.assert_array_equal(draw(saved, mode), expected)


def test_the_repository_s_folder_has_a_config_that_is_no_component_s(tmp_path):
    saved, _ = make_both(tmp_path, True)
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(saved, folder)
    shutil.copy(saved.parent / "vae/diffusion_pytorch_model.safetensors", folder / "ae.safetensors")
    for name in ("transformer", "vae"):
        (folder / name).mkdir()
        shutil.copy(saved.parent / name / "config.json", folder / name)
    (folder / "config.json").write_text("{}")
    assert open_model(folder).components.keys() == {"transformer", "vae"}


def test_matrices_in_the_blocks_stay_packed(tmp_path):
    stored = open_model(make_both(tmp_path, True)[0]).take("transformer")
    packed = {name for name, tensor in stored.tensors.items() if holds_packed(tensor)}
    assert {f"single_blocks.0.{name}.weight" for name in ("linear1", "linear2", "modulation.lin")} <= packed
    assert not any(name.startswith(("txt_in", "time_in", "final_layer")) for name in packed)


def test_inspect_and_convert(tmp_path):
    saved, wide = make_both(tmp_path, True)
    result = run("inspect", saved)
    assert result.exit_code == 0, result.output
    assert WARNING in result.output
    assert "matrices quantised to 4 bits" in result.output
    for source in (saved, wide):
        out = tmp_path / f"{source.stem}-out"
        result = run("convert", source, out, "--format", "diffusers", "--part", "transformer")
        assert result.exit_code == 0, result.output
    files = [next(tmp_path.glob(f"{stem}-out/**/*.safetensors")) for stem in (saved.stem, wide.stem)]
    got, expected = (read_safetensors(file, NX) for file in files)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def spelled_entries(with_keys: bool) -> dict[str, Stored]:
    """The header of FLUX.1-schnell's transformer as DiffusionKit has it, without the file."""
    flat = {name: np.broadcast_to(np.int8(0), shape) for name, shape in flux_shapes(SCHNELL).items()}
    shapes = {name: array.shape for name, array in saved_by_diffusionkit(flat).items()}
    if with_keys:
        queries = [name for name in shapes if name.endswith(".q_proj.bias")]
        shapes |= {name.replace(".q_proj.", ".k_proj."): shapes[name] for name in queries}
    return {name: Stored(Path("ghost"), "BF16", shape, 0) for name, shape in shapes.items()}


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_full_model_is_complete_and_its_biases_are_read_where_they_are(with_keys):
    (part,), unknown = find_components(Path("ghost"), join_quantised(Path("ghost"), spelled_entries(with_keys)))
    assert unknown == []
    assert part.read_sizes() == SCHNELL
    assert replace(part, config=SCHNELL).mismatches == []
    assert bool(what_is_lost(part)) is not with_keys


@pytest.mark.parametrize("change", ["missing", "dtype", "shape"])
@pytest.mark.parametrize("block", ["multimodal_transformer_blocks.3.text_", "unified_transformer_blocks.7."])
@pytest.mark.parametrize("part", ["q", "v"])
def test_parts_that_do_not_fit_are_named(block, part, change):
    found = spelled_entries(False)
    name = f"{block}transformer_block.attn.{part}_proj.weight"
    stored = found.pop(name)
    rows, columns = stored.shape
    changed = {"dtype": replace(stored, dtype="F32"), "shape": replace(stored, shape=(rows, columns - 1))}
    found |= {name: changed[change]} if change in changed else {}
    with pytest.raises(CheckpointError, match=r"ghost: .*(qkv|linear1)\.weight: expected [34] parts that fit together"):
        join_quantised(Path("ghost"), found)


# -- SD3 -----------------------------------------------------------------------------------------------------

SD35 = SD3Config(
    in_channels=4, out_channels=4, vec_in_dim=64, context_in_dim=64, hidden_size=64, num_heads=2, depth=2,
    pos_embed_max_size=6, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_sd3_has_the_numbers_that_were_saved(tmp_path, is_packed):
    rng = np.random.default_rng(0)
    flat = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sd3_shapes(SD35).items()}
    inside = {name: array for name, array in flat.items() if not name.startswith(("patch_in", "pos_embed"))}
    theirs = saved_by_diffusionkit(inside)
    saved, numbers = quantised(theirs) if is_packed else (theirs, theirs)
    saved |= {
        "x_embedder.proj.weight": flat["patch_in.weight"].reshape(64, 4, 2, 2).transpose(0, 2, 3, 1),
        "x_embedder.proj.bias": flat["patch_in.bias"],
        "x_pos_embedder.pos_embed.weight": flat["pos_embed"][0],
    }
    path = tmp_path / "sd3.5_large_4bit_quantized.safetensors"
    write_safetensors(path, {f"model.diffusion_model.{n}": np.ascontiguousarray(a) for n, a in saved.items()})
    stored = open_model(path).components["transformer"]
    assert stored.config == SD35
    assert what_is_lost(stored)
    stored.check()
    got, expected = dequantise(flatten(read_tree(stored, NX))), flat | again_by_bfl(numbers, inside)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=True)
    packed = {name for name, tensor in stored.tensors.items() if holds_packed(tensor)}
    assert ("double_blocks.0.img_attn.qkv.weight" in packed) == is_packed
    assert WARNING in run("inspect", path).output
