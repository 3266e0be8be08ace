"""Single files as ComfyUI packs them: what a file holds is used, and what it lacks is taken from the folder beside."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import minflux
from minflux.backend import get_backend
from minflux.checkpoints.components import COMPONENTS, flux, vae
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.open import open_component
from minflux.checkpoints.read import load_component
from minflux.checkpoints.tree import flatten
from minflux.commands import main as cli
from minflux.commands.inspect import inspect
from minflux.errors import CheckpointError
from minflux.inference.load import load
from minflux.inference.memory import MODES
from tests.checkpoints.test_detect import PREFIXES

NX = get_backend("numpy")
MATRICES = ("linear1.weight", "linear2.weight", "SelfAttention.q.weight", "DenseReluDense.wo.weight")  # some, in float8
STRAY = {  # what ComfyUI's files hold beside the weights
    "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
    "text_encoders.clip_l.transformer.text_projection.weight": torch.zeros(16, 16),
    "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
}


def stored(model: Path, kind: str) -> dict[str, torch.Tensor]:
    """A component's weights under the names that ComfyUI gives them, without the prefix."""
    folder = model / kind
    flat = read_safetensors(folder / f"{COMPONENTS[kind].stem}.safetensors", NX)
    to_bfl = {"transformer": flux.from_diffusers, "vae": vae.diffusers_to_bfl}.get(kind, dict)
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in to_bfl(flat).items()}


def pack(model: Path, file: Path, kinds=tuple(COMPONENTS)) -> Path:
    """Write components of a model folder into one file, as ComfyUI does."""
    flat = {PREFIXES[kind] + name: x for kind in kinds for name, x in stored(model, kind).items()}
    if "text_encoder_2" in kinds:  # which holds its table twice
        table = PREFIXES["text_encoder_2"] + "shared.weight"
        flat[table.replace("shared", "encoder.embed_tokens")] = flat[table].clone()
    safetensors.torch.save_file(flat | STRAY, file)
    return file


def folder_for(model: Path, target: Path, weights=()) -> Path:
    """Copy a model's folder with only some components' weights; configs stay: they tell what no weight shows."""
    shutil.copytree(model, target)
    for kind, spec in COMPONENTS.items():
        if kind not in weights:
            (target / kind / f"{spec.stem}.safetensors").unlink()
    return target


def draw(model: Path, nx, **settings) -> np.ndarray:
    return np.asarray(load(model, nx, **settings)("a cat", seed=3, steps=2))


# -- one file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inside",
    [tuple(COMPONENTS), ("transformer", "vae"), ("transformer", "text_encoder", "text_encoder_2"), ("transformer",)],
    ids=["all", "vae", "text", "transformer"],
)
def test_a_file_draws_what_its_folder_draws(model, tmp_path, nx, inside):
    folder = folder_for(model, tmp_path / "model", set(COMPONENTS) - set(inside))
    file = pack(model, folder / "flux1-fp32.safetensors", inside)
    np.testing.assert_array_equal(draw(file, nx), draw(model, nx))


def test_the_file_s_own_parts_are_used_where_both_have_one(model, tmp_path):
    """A folder whose weights are all 0 is not looked at."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    for kind, spec in COMPONENTS.items():
        path = folder / kind / f"{spec.stem}.safetensors"
        write_safetensors(path, {name: 0 * x for name, x in read_safetensors(path, NX).items()})
    np.testing.assert_array_equal(draw(pack(model, folder / "flux1.safetensors"), NX), draw(model, NX))


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_holding_it(model, tmp_path, mode):
    file = pack(model, folder_for(model, tmp_path / "model") / "flux1.safetensors")
    np.testing.assert_array_equal(draw(file, NX, memory=mode), draw(model, NX))


def scaled(flat: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Store some matrices as float8 with a scale beside each, 448 being the largest float8."""
    prefix, scales = PREFIXES[kind], {}
    for name, x in flat.items():
        if name.startswith(prefix) and name.endswith(MATRICES):
            scale = x.abs().max() / 448
            flat[name] = (x / scale).to(torch.float8_e4m3fn)
            scales[name.removesuffix("weight") + "scale_weight"] = scale
    assert scales
    return flat | scales | {f"{prefix}scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}


def test_float8_with_scales_in_transformer_and_text_encoder(model, tmp_path, nx):
    """The picture is that of a folder which holds each float8 times its scale."""
    folder = folder_for(model, tmp_path / "model")
    file = pack(model, folder / "flux1-fp8.safetensors")
    flat = safetensors.torch.load_file(file)
    for kind in ("transformer", "text_encoder_2"):
        flat = scaled(flat, kind)
    safetensors.torch.save_file(flat, file)
    pipe = load(file, nx)
    drawn = np.asarray(pipe("a cat", seed=3, steps=2))
    assert (drawn != draw(model, nx)).any()

    plain = {}
    for name, x in flat.items():
        scale = flat.get(name.removesuffix("weight") + "scale_weight")
        plain[name] = x.float() if scale is None else x.float() * scale
    kept = {name: x for name, x in plain.items() if not name.endswith(("scale_weight", "scaled_fp8"))}
    safetensors.torch.save_file(kept, folder / "wide.safetensors")
    np.testing.assert_array_equal(drawn, draw(folder / "wide.safetensors", nx))


# -- what is beside it ---------------------------------------------------------------------------------------


def test_a_file_of_all_parts_needs_no_index_beside_it(model, tmp_path):
    folder = folder_for(model, tmp_path / "model")
    (folder / "model_index.json").unlink()
    np.testing.assert_array_equal(draw(pack(model, folder / "flux1.safetensors"), NX), draw(model, NX))


@pytest.mark.parametrize(
    ("inside", "beside", "words"),
    [
        (tuple(COMPONENTS), (), "expected the folder tokenizer beside it, for a text encoder of .* --tokenizer$"),
        (tuple(COMPONENTS), ("tokenizer",), "expected the folder tokenizer_2 beside it, for a text encoder of"),
        (("transformer",), (), ".* and no vae, text_encoder, text_encoder_2, .* --vae FILE .* FLUX.1 model's folder$"),
        (("transformer", "vae"), ("text_encoder",), ".* and no text_encoder_2, nor .*: name files, --text-encoder-2 F"),
        (("text_encoder", "vae"), (), "expected a transformer, found text_encoder, vae$"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_told_in_one_line(model, tmp_path, inside, beside, words):
    file = pack(model, tmp_path / "flux1.safetensors", inside)
    for kind in inside:  # for the sizes that no weight shows
        (tmp_path / kind).mkdir()
        shutil.copy(model / kind / "config.json", tmp_path / kind)
    for name in beside:
        shutil.copytree(model / name, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"^{file}: {words}"):
        minflux.load(file)


def test_a_weight_that_is_missing_is_told_by_its_name_in_the_file(model, tmp_path):
    folder = folder_for(model, tmp_path / "model")
    file = pack(model, folder / "flux1.safetensors")
    flat = safetensors.torch.load_file(file)
    for name, words in (
        ("vae.decoder.conv_out.bias", rf"{file}: vae\.decoder\.conv_out\.bias: expected shape \(3,\), found no such"),
        ("vae.encoder.conv_in.weight", f"{file}: vae: encoder.conv_in.weight: found no such weight, and the sizes"),
    ):
        safetensors.torch.save_file({n: x for n, x in flat.items() if n != name}, file)
        with pytest.raises(CheckpointError, match=words):
            minflux.load(file)


# -- inspect and convert -------------------------------------------------------------------------------------


def run(*args: object):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


@pytest.fixture
def packed(model, tmp_path) -> Path:
    return pack(model, folder_for(model, tmp_path / "model") / "flux1.safetensors")


def test_inspect_lists_the_parts_of_a_file(packed):
    result = run("inspect", packed)
    assert result.exit_code == 0, result.output
    for title, prefix in zip(("transformer", "VAE", "CLIP", "T5"), PREFIXES.values(), strict=True):
        assert any(title in line and f"under '{prefix}'" in line for line in result.output.splitlines())


@pytest.mark.parametrize("kind", COMPONENTS)
def test_any_part_of_a_file_is_converted_alone(model, packed, tmp_path, kind):
    result = run("convert", packed, tmp_path / "out", "--format", "diffusers", "--part", kind)
    assert result.exit_code == 0, result.output
    got, expected = (load_component(folder, kind, NX) for folder in (tmp_path / "out", model))
    assert got[0] == expected[0]
    np.testing.assert_equal(flatten(got[1]), flatten(expected[1]))


def test_all_parts_of_a_file_become_a_folder(model, packed, tmp_path):
    assert run("convert", packed, tmp_path / "out", "--format", "diffusers").exit_code == 0
    np.testing.assert_array_equal(draw(tmp_path / "out", NX), draw(model, NX))


ENCODERS = {"text_encoder": ("clip_l", "CLIP"), "text_encoder_2": ("t5xxl_fp16", "T5")}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_text_encoder_in_a_file_of_its_own(model, tmp_path, kind):
    """As clip_l.safetensors and t5xxl_fp16.safetensors, which models in ComfyUI's parts are fetched with."""
    stem, title = ENCODERS[kind]
    file = tmp_path / f"{stem}.safetensors"
    extra = {"logit_scale": torch.tensor(4.6), "text_projection.weight": torch.zeros(16, 16)}
    flat = {name: x.half() for name, x in stored(model, kind).items()}
    safetensors.torch.save_file(flat | (extra if kind == "text_encoder" else {}), file)
    (tmp_path / kind).mkdir()
    shutil.copy(model / kind / "config.json", tmp_path / kind)  # how wide CLIP's heads are is in no weight

    report = inspect(file)
    assert report.ok
    assert [stored.name for stored in report.checkpoint.found] == [kind]
    assert f"  {title}: " in run("inspect", file).output
    assert run("convert", file, tmp_path / "out", "--format", "diffusers", "--part", kind).exit_code == 0
    assert run("convert", file, tmp_path / "copy.safetensors", "--format", "bfl", "--part", kind).exit_code == 0
    assert open_component(tmp_path / "out", kind).config == open_component(model, kind).config
    for path in (tmp_path / "out" / kind / "model.safetensors", tmp_path / "copy.safetensors"):
        got = safetensors.torch.load_file(path)
        assert got.keys() == flat.keys()
        assert all(torch.equal(got[name], x) for name, x in flat.items())
    with pytest.raises(CheckpointError, match=f"expected a transformer, found {kind}"):
        minflux.load(file)
