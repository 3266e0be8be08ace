"""Loose files: a part each, in place of a model's own or of a model; ComfyUI's folder; tokenizers from elsewhere."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minflux
from minflux.checkpoints.comfy import lora_in
from minflux.checkpoints.open import open_file
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference import beside
from minflux.inference.hints import Hint
from minflux.inference.load import load
from tests import loopback_hub, loose_files
from tests.commands.runner import assert_refused, pixels, run
from tests.tiny_model import TOKENIZERS

HERE = Path(minflux.__file__).parent.parent
DRAW = {"seed": 3, "steps": 2, "width": 64, "height": 64}
OWN_SIZE = "ignore:.*no scheduler's settings beside it:minflux.inference.hints.Hint"
pytestmark = pytest.mark.filterwarnings(OWN_SIZE)


@pytest.fixture(scope="module", params=[False, True], ids=["schnell", "dev"])
def guidance(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, guidance) -> Path:
    """The model as a folder."""
    return loose_files.write_folder(tmp_path_factory.mktemp("whole") / "model", guidance)


@pytest.fixture(scope="module")
def models(tmp_path_factory, guidance) -> Path:
    """The model as ComfyUI's folder."""
    top = tmp_path_factory.mktemp("comfy") / "models"
    loose_files.write_files(top, guidance)
    (top / "unet" / "put_unet_files_here").write_text("")
    return top


@pytest.fixture
def files(models) -> dict[str, Path]:
    return {name: models / f"{where}.safetensors" for name, where in loose_files.NAMES.items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A folder with both tokenizers."""
    home = tmp_path_factory.mktemp("tokenizers")
    for name, source in TOKENIZERS.items():
        shutil.copytree(source, home / name)
    return home


def options(files: dict[str, Path]) -> list[str]:
    return [text for name, path in files.items() for text in (f"--{name.replace('_', '-')}", str(path))]


def draw(*args, **settings) -> np.ndarray:
    return np.asarray(load(*args, **settings)("a cat", **DRAW))


# -- a model of files ----------------------------------------------------------------------------------------


def test_four_files_draw_what_their_folder_draws(folder, files, tokenizer, nx):
    """Scheduler, defaults and sizes that no shape shows are FLUX.1's own."""
    pipe, expected = load(None, nx, tokenizer=tokenizer, **files), load(folder, nx)
    assert (pipe.schedule, pipe.defaults) == (expected.schedule, expected.defaults)
    np.testing.assert_array_equal(np.asarray(pipe("a cat", **DRAW)), np.asarray(expected("a cat", **DRAW)))


def test_the_command_line_takes_the_same_files_and_the_png_draws_them_again(
    folder, files, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = run(
        "generate", "a cat", *options(files), "--tokenizer", tokenizer, "--size", "64x64", "--steps", 2, "--seed", 3,
        "--out", "a.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "steps are spread as FLUX.1-" in done.stderr
    np.testing.assert_array_equal(pixels("a.png"), draw(folder))
    again = run("generate", "--from", "a.png", "--out", "b.png")
    assert again.exit_code == 0, again.stderr
    np.testing.assert_array_equal(pixels("b.png"), pixels("a.png"))


@pytest.mark.parametrize("name", loose_files.NAMES)
def test_a_file_takes_the_place_of_a_model_s_own_part(folder, guidance, tmp_path, name):
    """Of the model nothing is used of that part, but for the config."""
    copy = shutil.copytree(folder, tmp_path / "model")
    whole = loose_files.make(guidance)
    path = loose_files.write_part(whole, name, tmp_path / "part.safetensors")
    for file in (copy / name).glob("*.safetensors"):
        file.write_bytes(b"")
    np.testing.assert_array_equal(draw(copy, "numpy", **{name: path}), draw(folder, "numpy"))


def test_the_replaced_part_says_what_no_shape_shows(model, tmp_path, nx):
    """The small model's heads, its VAE's shift and its groups are its own, and are in no weight."""
    parts = ("transformer", "vae", "text_encoder")
    files = {name: tmp_path / f"{name}.safetensors" for name in parts}
    for name, file in files.items():
        assert run("convert", model, file, "--format", "bfl", "--part", name).exit_code == 0
    drawn, expected = load(model, nx, **files), load(model, nx)
    assert (drawn.vae[0], drawn.clip[0], drawn.flux[0]) == (expected.vae[0], expected.clip[0], expected.flux[0])
    assert drawn("a cat", seed=3, steps=2) == expected("a cat", seed=3, steps=2)


def test_a_part_of_other_sizes_has_flux1_s_own_for_what_no_shape_shows(files):
    known = replace(loose_files.VAE, ch_mult=(1, 1, 1, 2), scale_factor=0.7, shift_factor=0.1)
    (stored,) = open_file(files["vae"], {"vae": known}).found
    assert stored.config == loose_files.VAE
    (stored,) = open_file(files["vae"], {"vae": replace(loose_files.VAE, scale_factor=0.7)}).found
    assert stored.config == replace(loose_files.VAE, scale_factor=0.7)


def test_a_component_s_folder_and_an_index_may_be_named_too(folder, files, tokenizer):
    mixed = files | {"vae": folder / "vae", "transformer": folder / "transformer"}
    np.testing.assert_array_equal(draw(tokenizer=tokenizer, **mixed), draw(folder))


# -- what can't be --------------------------------------------------------------------------------------------


def test_what_is_missing_is_told_with_the_option_that_names_it(files, tokenizer):
    few = {name: files[name] for name in ("transformer", "vae")}
    words = " and no text_encoder, text_encoder_2, .* --text-encoder FILE --text-encoder-2 FILE, or move"
    with pytest.raises(CheckpointError, match=words):
        load(tokenizer=tokenizer, **few)


def test_a_file_of_another_part_is_told_with_its_option(files):
    with pytest.raises(CheckpointError, match=r"t5xxl.*: expected CLIP, found T5: name it by --text-encoder-2$"):
        load(**files | {"text_encoder": files["text_encoder_2"]})


def test_parts_that_do_not_go_with_the_transformer_are_told_from_the_header(files):
    with pytest.raises(CheckpointError, match=r"clip_l.*: expected CLIP of width 64, which the .* takes, found 16"):
        load("tiny", text_encoder=files["text_encoder"])
    with pytest.raises(CheckpointError, match=r"t5xxl.*: expected T5 of width 192, which the .* takes, found 24"):
        load("tiny", text_encoder_2=files["text_encoder_2"])
    with pytest.raises(
        CheckpointError,
        match=r"expected a transformer of 16 channels, a 2×2 patch of latents, or one of .*; found 64 channels in",
    ):
        load("tiny", vae=files["vae"])


def test_a_file_that_is_not_there(files, tmp_path):
    with pytest.raises(ArgumentError, match=r"^--vae: '.*none\.safetensors': no such file or folder$"):
        load(vae=tmp_path / "none.safetensors")
    with pytest.raises(ArgumentError, match=r"^--vae: '.*' is no component's folder: it has no config.json"):
        load(vae=tmp_path)
    assert_refused(run("generate", "a cat", "--transformer", "unet/none"), "--transformer: 'unet/none': no such file")


# -- tokenizers ----------------------------------------------------------------------------------------------


def test_a_folder_of_tokenizers_must_hold_both(files, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ArgumentError, match=r"--tokenizer: .* has no folder tokenizer_2: name one that holds both"):
        load(tokenizer=tmp_path, **files)


def process(folder: Path, *args: object, **environment: str) -> subprocess.CompletedProcess:
    """Run `minflux ARGS` with a cache of its own."""
    own = {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "", "PYTHONPATH": str(HERE)}
    return subprocess.run(
        [sys.executable, "-m", "minflux", *map(str, args)],
        cwd=folder, env=os.environ | own | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_tokenizers_are_fetched_once_by_name_and_that_is_said_before(folder, files, tokenizer, tmp_path):
    call = ["generate", "a cat", *options(files), "--size", "64x64", "--steps", "2", "--seed", "3"]
    with loopback_hub.serving(tokenizer, "black-forest-labs/FLUX.1-schnell") as hub:
        first = process(tmp_path, *call, "--out", "a.png", HF_ENDPOINT=hub.url)
        assert first.returncode == 0, first.stderr
        asked = len(hub.asked)
        assert {file.partition("/")[0] for file in hub.fetched()} == {"tokenizer", "tokenizer_2"}
    said = first.stderr.index("fetching FLUX.1's, 5 MB, from black-forest-labs/FLUX.1-schnell")
    assert said < first.stderr.index("reading the prompt")
    second = process(tmp_path, *call, "--out", "b.png", HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert "fetching" not in second.stderr
    assert asked > 0
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), draw(folder))
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), draw(folder))


def test_without_a_network_the_way_to_give_tokenizers_is_said(files, tmp_path):
    done = process(tmp_path, "generate", "a cat", *options(files), HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "--tokenizer FOLDER takes them from any FLUX.1 model's folder" in done.stderr.splitlines()[-1]


def test_another_vocabulary_is_not_read_with_flux1_s_tokenizer(model, files, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "fetch_tokenizers", lambda *_: pytest.fail("was fetched"))
    copy = shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(copy / "tokenizer_2")
    with pytest.raises(CheckpointError, match=r"expected the folder tokenizer_2 beside it, for a text encoder of"):
        load(copy)


# -- ComfyUI's folder ----------------------------------------------------------------------------------------


def test_comfyui_s_folder_is_a_model_where_there_is_one_file_of_each(folder, models, tokenizer):
    lines = []
    pipe = load(comfy=models, tokenizer=tokenizer, report=lines.append)
    np.testing.assert_array_equal(np.asarray(pipe("a cat", **DRAW)), draw(folder))
    assert {f"{name}: {models / where}.safetensors" for name, where in loose_files.NAMES.items()} < set(lines)
    assert pipe.name == str(models / "unet/flux1.safetensors")


def test_the_folder_above_models_will_do(folder, models, tokenizer):
    np.testing.assert_array_equal(draw(comfy=models.parent, tokenizer=tokenizer), draw(folder))


@pytest.fixture
def crowded(models, tmp_path) -> Path:
    """ComfyUI's folder with two transformers, another model's checkpoint, a CLIP of another width and a LoRA."""
    top = shutil.copytree(models, tmp_path / "models")
    shutil.copy(top / "unet/flux1.safetensors", top / "unet/other.safetensors")
    (top / "checkpoints").mkdir()
    safetensors.numpy.save_file({"first_stage_model.x": np.zeros(2)}, top / "checkpoints/sdxl.safetensors")
    clip = safetensors.numpy.load_file(top / "clip/clip_l.safetensors")
    wide = {name: np.concatenate([x, x], axis=-1) for name, x in clip.items()}
    safetensors.numpy.save_file(wide, top / "clip/clip_g.safetensors")
    (top / "loras").mkdir()
    return top


def test_of_several_files_one_must_be_named(crowded, folder, tokenizer):
    with pytest.raises(ArgumentError, match=r"several .*, unet/flux1\.safetensors, unet/other\.safetensors: name"):
        load(comfy=crowded, tokenizer=tokenizer)
    for name in ("other", "other.safetensors", "unet/other"):
        np.testing.assert_array_equal(draw(comfy=crowded, tokenizer=tokenizer, transformer=name), draw(folder))


def test_names_that_are_not_there(crowded):
    with pytest.raises(
        ArgumentError, match=r"--vae: 'vae2' is no file, nor is it in .*, which has vae/ae\.safetensors"
    ):
        load(comfy=crowded, vae="vae2")
    with pytest.raises(ArgumentError, match=r"--lora: 'style' is no file, and not one alone in .*, which has none"):
        load(comfy=crowded, lora="style:0.5")
    with pytest.raises(ArgumentError, match="has none of ComfyUI's folders unet, "):
        load(comfy=crowded / "vae")


def test_a_folder_without_a_transformer_says_what_its_files_are(crowded):
    shutil.rmtree(crowded / "unet")
    with pytest.raises(ArgumentError, match=r"has no transformer of FLUX\.1; .*sdxl.*: holds no part"):
        load(comfy=crowded)


def test_a_whole_checkpoint_is_used_with_what_is_inside(models, folder, tokenizer, tmp_path):
    """Also where a VAE and text encoders lie in the other folders, which have other weights."""
    top = tmp_path / "models"
    whole, prefixes = {}, {"transformer": "model.diffusion_model.", "vae": "vae."}
    for name, prefix in prefixes.items():
        part = safetensors.numpy.load_file(models / f"{loose_files.NAMES[name]}.safetensors")
        whole |= {prefix + key: x for key, x in part.items()}
    (top / "checkpoints").mkdir(parents=True)
    safetensors.numpy.save_file(whole, top / "checkpoints/all.safetensors")
    shutil.copytree(models / "clip", top / "text_encoders")
    (top / "vae").mkdir()
    zeros = {key: 0 * x for key, x in safetensors.numpy.load_file(models / "vae/ae.safetensors").items()}
    safetensors.numpy.save_file(zeros, top / "vae/ae.safetensors")
    np.testing.assert_array_equal(draw(comfy=top, tokenizer=tokenizer), draw(folder))


def test_a_lora_is_named_as_it_is_in_the_folder(models, tokenizer, tmp_path):
    top = shutil.copytree(models, tmp_path / "models")
    (top / "loras").mkdir()
    pair = {"lora_A": np.ones((1, 128), np.float32), "lora_B": np.ones((128, 1), np.float32)}
    stem = "diffusion_model.double_blocks.0.img_attn.proj"
    file = top / "loras/style.safetensors"
    safetensors.numpy.save_file({f"{stem}.{name}.weight": x for name, x in pair.items()}, file)
    pipe = load(comfy=top, tokenizer=tokenizer, lora="style:0.5")
    assert pipe.lora == (f"{file}:0.5",)
    expected = draw(comfy=top, tokenizer=tokenizer, lora=f"{file}:0.5")
    np.testing.assert_array_equal(np.asarray(pipe("a cat", **DRAW)), expected)


def test_other_loras_are_taken_as_without_the_folder(models, crowded):
    assert lora_in(models, "someone/style:a.safetensors:0.5") == "someone/style:a.safetensors:0.5"
    assert lora_in(models, f"{models}:a.safetensors") == f"{models}:a.safetensors"


# -- converting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["diffusers", "minflux"])
def test_what_convert_makes_of_files_is_a_whole_model(folder, files, tokenizer, tmp_path, format_):
    done = run("convert", *options(files), "--tokenizer", tokenizer, tmp_path / "out", "--format", format_)
    assert done.exit_code == 0, done.stderr
    assert "lacks" not in done.output
    pipe, expected = load(tmp_path / "out", "numpy"), load(folder, "numpy")
    assert (pipe.schedule, pipe.defaults) == (expected.schedule, expected.defaults)
    assert pipe("a cat", **DRAW) == expected("a cat", **DRAW)


def test_convert_chooses_from_comfyui_s_folder_what_generate_does(folder, models, tokenizer, tmp_path):
    done = run("convert", "--comfy", models, "--tokenizer", tokenizer, tmp_path / "out", "--format", "diffusers")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(draw(tmp_path / "out", "numpy"), draw(folder, "numpy"))
    file = tmp_path / "vae.safetensors"
    done = run("convert", "--comfy", models, file, "--format", "bfl", "--part", "vae")
    assert done.exit_code == 0, done.stderr
    assert open_file(file).components.keys() == {"vae"}


def test_convert_makes_a_model_of_a_folder_of_files_or_says_what_to_name(folder, files, tokenizer, tmp_path):
    source = tmp_path / "files"
    shutil.copytree(tokenizer, source)
    for path in files.values():
        shutil.copy(path, source / path.name)
    done = run("convert", source, tmp_path / "out", "--format", "diffusers")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(draw(tmp_path / "out", "numpy"), draw(folder, "numpy"))
    (source / "clip_l.safetensors").unlink()
    done = run("convert", source, tmp_path / "few", "--format", "diffusers")
    assert done.exit_code == 0, done.stderr
    assert "few: lacks text_encoder, scheduler, model_index.json: copy them from a model's folder" in done.output
    done = run("convert", source, tmp_path / "all", "--format", "diffusers", "--text-encoder", files["text_encoder"])
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(draw(tmp_path / "all", "numpy"), draw(folder, "numpy"))


def test_convert_takes_a_source_and_a_target_alone(model, tmp_path):
    assert_refused(run("convert", "a", "b", "c", "--format", "bfl"), "expected SOURCE and TARGET, found a, b, c")
    assert_refused(run("convert", tmp_path / "out", "--format", "diffusers"), "name a model, or files: --transformer")


# -- looking -------------------------------------------------------------------------------------------------


def test_inspect_lists_all_that_comfyui_s_folder_has(crowded):
    done = run("inspect", "--comfy", crowded)
    for said in (
        "in unet/flux1.safetensors",
        "in unet/other.safetensors",
        "VAE in vae/ae.safetensors",
        "T5 in clip/t5",
    ):
        assert said in done.output
    assert "checkpoints/sdxl.safetensors: holds no part of FLUX.1" in done.output


def test_inspect_looks_at_files_alone_and_in_place_of_parts(files, folder):
    done = run("inspect", *options({name: files[name] for name in ("vae", "text_encoder")}))
    assert done.exit_code == 0, done.output
    assert f"VAE in {files['vae']}: " in done.output
    done = run("inspect", folder, *options({"vae": files["vae"]}))
    assert done.exit_code == 0, done.output
    assert f"VAE in {files['vae']}: " in done.output
    assert_refused(run("inspect"), "name a model, or files: --transformer, --vae")


def test_files_in_one_folder_are_a_model(folder, files, tokenizer, tmp_path):
    """Without an index, and none of them by its part's name."""
    for path in files.values():
        shutil.copy(path, tmp_path / path.name)
    np.testing.assert_array_equal(draw(tmp_path, tokenizer=tokenizer), draw(folder))
    (tmp_path / "ae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model_index\.json, and of loose files no vae: .*, --vae FILE"):
        load(tmp_path, tokenizer=tokenizer)


def test_a_schedule_that_can_not_be_known_is_told(files, tokenizer, recwarn):
    load(tokenizer=tokenizer, **files)
    with pytest.warns(
        Hint, match=r"flux1\.safetensors: no scheduler's settings beside it: its steps are spread as FLUX"
    ):
        load(tokenizer=tokenizer, **files)
