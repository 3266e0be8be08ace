"""`minflux generate`: images that remember how they were made, and one clear line for whatever can't be done."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image, ImageSequence, PngImagePlugin

import minflux
from minflux.checkpoints import hub
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.commands import png
from minflux.edit.canvas import grow
from tests import tiny_model
from tests.commands.runner import assert_refused, pixels, run

IMAGE = {
    "image": None, "mask": None, "control": [], "controlnet": [], "control_scale": [], "control_start": [],
    "control_end": [], "control_mode": [], "reference": [], "reference_layout": "offset",
    "canny": None, "redux": None, "image_encoder": None, "image_prompt": [], "image_prompt_strength": [],
    "image_prompt_mix": "append", "strength": None, "mask_blur": 0.0, "mask_crop": None, "paste": True,
    "posterior": "mode", "grow": None, "source_prompt": None, "source_guidance": None, "n_max": None, "n_min": None,
    "n_avg": None, "step_cache": None,
}  # fmt: skip
NEWER = ("true_cfg_scale", "solver", "files", "hashes", *IMAGE)  # settings that older PNGs lack


def draw(model: str, *args: object) -> Result:
    """Run `minflux generate "a cat" --steps 2 ARGS`, and see it succeed."""
    result = run("generate", "a cat", "--model", model, "--steps", 2, *args)
    assert result.exit_code == 0, result.output
    return result


def settings(path: str) -> dict:
    """What a PNG says of itself."""
    with Image.open(path) as image:
        return json.loads(image.info["minflux"])


# -- generate ------------------------------------------------------------------------------------------------


def test_the_image_is_the_pipelines(here, model):
    result = draw(
        model, "--seed", 7, "--size", "80x48", "--guidance", 3, "--negative-prompt", "a hat", "--out", "a.png"
    )
    assert result.stdout == "a.png\n"
    expected = minflux.load(model)("a cat", seed=7, steps=2, guidance=3.0, negative_prompt="a hat", width=80, height=48)
    np.testing.assert_array_equal(pixels("a.png"), np.asarray(expected), strict=True)


def test_the_picture_carries_all_its_settings(here, model):
    draw(model, "--seed", 7)
    found = settings("minflux.png")
    assert {name: len(value) for name, value in found.pop("hashes").items()} == {"model": 64}
    assert found == {
        "prompt": "a cat", "model": str(model), "backend": "numpy", "seed": 7, "steps": 2, "guidance": 2.0,
        "negative_prompt": None, "width": 64, "height": 64, "lora": [], "true_cfg_scale": None, "solver": "euler",
        "files": {}, "version": minflux.__version__, **IMAGE,
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "mlx"])
def test_from_draws_it_again_to_the_bit(here, model, backend):
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    draw(model, "--seed", 5, "--size", "80x48", "--negative-prompt", "ein Hütchen 🎩", "--backend", backend)
    result = run("generate", "--from", "minflux.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    assert settings("again.png") == settings("minflux.png")
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"), strict=True)


def test_from_an_older_png_means_euler(here, model):
    """PNGs of minflux 0.1 have no LoRAs, no solver and no true_cfg_scale."""
    draw(model, "--seed", 5)
    old = {name: value for name, value in settings("minflux.png").items() if name not in ("lora", *NEWER)}
    info = png.PngImagePlugin.PngInfo()
    info.add_itxt(png.KEY, json.dumps(old))
    Image.new("RGB", (8, 8)).save("old.png", pnginfo=info)
    result = run("generate", "--from", "old.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    assert settings("again.png") == settings("minflux.png")
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"), strict=True)


def test_a_png_knows_its_solver_and_scale(here, tmp_path_factory):
    dev = str(tiny_model.make(tmp_path_factory.mktemp("dev") / "model", guidance=True))
    draw(dev, "--solver", "heun", "--true-cfg-scale", 3, "--negative-prompt", "a hat", "--seed", 5)
    found = settings("minflux.png")
    assert (found["true_cfg_scale"], found["solver"]) == (3.0, "heun")
    result = run("generate", "--from", "minflux.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"), strict=True)
    expected = minflux.load(dev)("a cat", seed=5, steps=2, solver="heun", true_cfg_scale=3, negative_prompt="a hat")
    np.testing.assert_array_equal(pixels("again.png"), np.asarray(expected), strict=True)


def test_several_seeds_make_several_images(here, model):
    result = draw(model, "--seed", 1, "--seed", 2, "--out", "a.png", "--preview", "p.gif")
    assert result.stdout.split() == ["a-1.png", "p-1.gif", "a-2.png", "p-2.gif"]
    assert sorted(os.listdir()) == ["a-1.png", "a-2.png", "p-1.gif", "p-2.gif"]
    assert [settings(f"a-{seed}.png")["seed"] for seed in (1, 2)] == [1, 2]
    assert (pixels("a-1.png") != pixels("a-2.png")).any()


@pytest.mark.parametrize("steps", [1, 3])
def test_preview_as_an_animation(here, model, steps):
    draw(model, "--preview", "p.gif", "--steps", steps)
    with Image.open("p.gif") as animation:
        assert [frame.size for frame in ImageSequence.Iterator(animation)] == [(64, 64)] * steps


def test_preview_as_a_strip_ends_in_the_picture(here, model):
    draw(model, "--preview", "p.png", "--steps", 3)
    strip = pixels("p.png")
    assert strip.shape == (64, 3 * 64 + 2 * 4, 3)
    np.testing.assert_array_equal(strip[:, -64:], pixels("minflux.png"))
    assert (strip[:, :64] != strip[:, -64:]).any()


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(here, model):
    result = run("generate", "a cat " * 40, "--model", model, "--steps", 1)
    warnings = [line for line in re.split(r"[\r\n]", result.stderr) if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("minflux: warning: ")


# -- bad input -----------------------------------------------------------------------------------------------

BAD = {  # arguments after `minflux generate "a cat" --model MODEL`, and what the line must say
    "--model nonsense": "model 'nonsense' is neither a folder nor a file",
    "--model .": "holds no part of FLUX.1",
    "--backend torch": "'--backend': 'torch' is not one of 'auto', 'numpy', 'mlx'",
    "--size 65x64": "width must be a multiple of 16 pixels, got 65; the nearest is 64",
    "--size 64x8": "height must be a multiple of 16 pixels",
    "--size 64": "--size must be WIDTHxHEIGHT in pixels, like 64x64, got '64'",
    "--steps 0": "steps must be a whole number of at least 1, got 0",
    "--steps many": "'--steps': 'many' is not a valid integer",
    "--seed -1": "seed must be a whole number from 0 to 2^64 - 1, got -1",
    "--seed 1 --seed -1": "seed must be a whole number from 0 to 2^64 - 1, got -1",
    "--guidance nan": "guidance must be a number of at least 0, got nan",
    "--true-cfg-scale -1": "true_cfg_scale must be a number of at least 0, got -1.0",
    "--guidance 2 --true-cfg-scale 2": "true_cfg_scale: this model has no built-in guidance",
    "--guidance 1 --negative-prompt hat": "negative_prompt has no effect at guidance 1: raise guidance",
    "--solver rk4": "'--solver': 'rk4' is not one of 'euler', 'heun', 'midpoint', 'dpm++'",
    "--out a.jpg": "--out must end in .png, got 'a.jpg'",
    "--out nowhere/a.png": "--out: the folder 'nowhere' does not exist",
    "--preview a.mp4": "--preview must end in .gif or .png",
    "--out a.png --preview a.png": "--preview must be another file than --out",
    "--from a.png": "PROMPT can't be given with --from",
    "--colour blue": "No such option",
    "and more": "unexpected extra argument",
    "--strength 0.5": "strength without an image: give image",
    "--image none.png": "--image: there is no file 'none.png'",
    "--strength 2": "strength must be a number above 0 and at most 1, got 2.0",
}


@pytest.mark.parametrize(("args", "words"), BAD.items())
def test_bad_input_is_one_line_and_writes_nothing(here, model, args, words):
    assert_refused(run("generate", "a cat", "--model", model, *args.split()), words)
    assert os.listdir() == []


@pytest.mark.parametrize("args", ["--size 840x592", "--seed -1", "--steps 0", "--guidance -1"])
def test_bad_settings_are_told_before_a_weight_is_looked_for(here, args):
    assert_refused(run("generate", "a cat", "--model", "nobody/nothing", *args.split()), "must be")


def test_a_resident_model_is_no_news(here, model):
    assert "memory" not in draw(model).stderr


def test_no_prompt(here):
    assert_refused(run("generate"), "give a prompt")


def make_foreign(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)


def make_text(path: Path) -> None:
    path.write_text("no picture")


def make_damaged(path: Path) -> None:
    info = png.PngImagePlugin.PngInfo()
    info.add_itxt(png.KEY, '{"prompt": "a cat"}')
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "can't be read as an image"),
        (make_text, "can't be read as an image"),
        (make_foreign, "was not generated by minflux"),
        (make_damaged, "the settings inside a.png are damaged"),
    ],
    ids=["missing", "text", "foreign", "damaged"],
)
def test_from_what_is_no_picture_of_ours(here, make, words):
    make(here / "a.png")
    assert_refused(run("generate", "--from", "a.png"), words)


def test_from_takes_no_settings_beside(here, model):
    draw(model)
    assert_refused(run("generate", "--from", "minflux.png", "--seed", 3), "--seed can't be given with --from")


# -- files whole or not at all -------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to(here, model, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert_refused(run("generate", "a cat", "--model", model), "--out: the folder '.' can't be written to")


def test_a_full_disk_leaves_the_old_picture(here, model, monkeypatch):
    def save(image, file, **settings):
        file.write(b"half a pict")
        raise OSError(28, "No space left on device")

    Path("minflux.png").write_text("the old picture")
    monkeypatch.setattr(Image.Image, "save", save)
    result = run("generate", "a cat", "--model", model, "--steps", 1)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "minflux: [Errno 28] No space left on device"
    assert [path.read_text() for path in here.iterdir()] == ["the old picture"]


def start(*args: object) -> subprocess.Popen:
    """Start `python -m minflux ARGS`, in the repository's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "minflux", *map(str, args)],
        cwd=Path(minflux.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job starts with it ignored
    )


def test_ctrl_c_leaves_no_file(here, model):
    files = ["--out", here / "a.png", "--preview", here / "p.gif"]
    with start("generate", "a cat", "--model", model, "--steps", 1000, *files) as process:
        seen = b""
        while b"/1000 " not in seen:  # the progress bar: it is drawing
            seen += (more := process.stderr.read1())
            assert more, seen
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.splitlines()[-1] == b"minflux: stopped"
    assert b"Traceback" not in seen + rest
    assert os.listdir() == []


# -- an image again, after something has changed ---------------------------------------------------------------


def change_one_number(path):
    """Write a file again with its last byte but one changed."""
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("changed", ["transformer/diffusion_pytorch_model.safetensors", "tokenizer_2/tokenizer.json"])
def test_from_says_that_the_model_has_changed(here, model, changed):
    folder = shutil.copytree(model, here / "model")
    assert run("generate", "a cat", "--model", "model", "--steps", 1).exit_code == 0
    path = folder / changed
    if path.suffix == ".json":
        path.write_text(path.read_text() + " ")
    else:
        change_one_number(path)
    assert_refused(
        run("generate", "--from", "minflux.png", "--out", "again.png"),
        "the model 'model' is no longer the one that minflux.png was made with",
    )
    result = run("generate", "--from", "minflux.png", "--out", "again.png", "--anyway")
    assert result.exit_code == 0
    assert "this is another image" in result.output


def test_from_knows_a_copy_of_the_model(here, model):
    shutil.copytree(model, here / "model")
    assert run("generate", "a cat", "--model", "model", "--steps", 1).exit_code == 0
    shutil.rmtree(here / "model")
    shutil.copytree(model, here / "model")
    assert run("generate", "--from", "minflux.png", "--out", "again.png").exit_code == 0


def test_from_says_that_a_lora_has_changed(here, model):
    for value in (1.0, 2.0):
        pair = {"lora_A.weight": np.full((1, 32), value, np.float32), "lora_B.weight": np.ones((16, 1), np.float32)}
        write_safetensors(here / "l.safetensors", {f"transformer.proj_out.{role}": x for role, x in pair.items()})
        if value == 1.0:
            assert run("generate", "a cat", "--model", model, "--steps", 1, "--lora", "l.safetensors").exit_code == 0
    assert_refused(run("generate", "--from", "minflux.png"), "the LoRA 'l.safetensors' is no longer the one")


def test_from_fetches_nothing_unasked(here, model, monkeypatch):
    assert run("generate", "a cat", "--model", model, "--steps", 1).exit_code == 0
    with Image.open("minflux.png") as image:
        settings = json.loads(image.info["minflux"]) | {"model": "some/one"}
        info = PngImagePlugin.PngInfo()
        info.add_itxt("minflux", json.dumps(settings))
        image.save("theirs.png", pnginfo=info)
    monkeypatch.setenv("HF_HOME", str(here / "hf"))
    monkeypatch.setattr(hub, "fetch", lambda *args: pytest.fail("fetched"))
    assert_refused(run("generate", "--from", "theirs.png"), "names the model 'some/one', which is not here")


def test_anyway_goes_with_from(here):
    assert_refused(run("generate", "a cat", "--anyway"), "--anyway and --yes go with --from")


# -- an image to begin with ------------------------------------------------------------------------------------


@pytest.fixture
def pictures(here) -> Path:
    """An image and a mask in a folder of their own."""
    (here / "in").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)).save("in/cat.png")
    mask = np.zeros((48, 80), np.uint8)
    mask[8:32, 16:48] = 255
    Image.fromarray(mask).save("in/mask.png")
    return here / "in"


INPUTS = ("--image", "in/cat.png", "--mask", "in/mask.png", "--strength", 0.9)


def test_an_image_and_a_mask_as_in_a_call(pictures, model):
    draw(model, *INPUTS, "--mask-blur", 1, "--mask-crop", 4, "--steps", 3, "--seed", 5, "--posterior", "sample")
    expected = minflux.load(model)(
        "a cat", seed=5, steps=3, image="in/cat.png", mask="in/mask.png", strength=0.9, mask_blur=1, mask_crop=4,
        posterior="sample",
    )  # fmt: skip
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected), strict=True)
    found = settings("minflux.png")
    assert {"model", "image", "mask"} == set(found["hashes"])
    assert (found["image"], found["mask"], found["strength"]) == ("in/cat.png", "in/mask.png", 0.9)


def test_from_finds_its_pictures_beside_it_wherever_both_are_moved(pictures, model):
    draw(model, *INPUTS)
    os.mkdir("away")
    shutil.move("in", "away/in")
    shutil.move("minflux.png", "away/first.png")
    result = run("generate", "--from", "away/first.png", "--out", "again.png")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("again.png"), pixels("away/first.png"), strict=True)
    assert settings("again.png")["image"] == "away/in/cat.png"


@pytest.mark.parametrize("role", ["image", "mask"])
def test_from_says_that_a_picture_has_changed(pictures, model, role):
    draw(model, *INPUTS)
    path = {"image": "in/cat.png", "mask": "in/mask.png"}[role]
    Image.fromarray(255 - pixels(path)).save(path)
    refused = run("generate", "--from", "minflux.png", "--out", "again.png")
    assert_refused(refused, f"the {role} '{path}' is no longer the one that minflux.png was made with")
    result = run("generate", "--from", "minflux.png", "--out", "again.png", "--anyway")
    assert result.exit_code == 0
    assert "this is another image" in result.output


def test_from_says_which_picture_is_not_there(pictures, model):
    draw(model, *INPUTS)
    os.remove("in/mask.png")
    assert_refused(run("generate", "--from", "minflux.png"), "was made with the mask 'in/mask.png', which is not there")


@pytest.mark.parametrize("changes", ["picture", "lora"])
def test_a_lora_that_is_called_image_has_a_hash_beside_the_images(pictures, model, changes):
    os.mkdir("image")
    pair = {"proj_out.lora_A.weight": np.ones((1, 32), np.float32), "proj_out.lora_B.weight": np.ones((16, 1))}
    pair = {f"transformer.{name}": array.astype(np.float32) for name, array in pair.items()}
    write_safetensors("image/l.safetensors", pair)
    draw(model, "--image", "in/cat.png", "--steps", 2, "--lora", "image")
    assert settings("minflux.png")["hashes"].keys() == {"model", "image", "LoRA image"}
    assert run("generate", "--from", "minflux.png", "--out", "again.png").exit_code == 0
    if changes == "lora":
        write_safetensors("image/l.safetensors", {name: 2 * array for name, array in pair.items()})
    else:
        Image.fromarray(255 - pixels("in/cat.png")).save("in/cat.png")
    what = {"lora": "the LoRA 'image'", "picture": "the image 'in/cat.png'"}[changes]
    assert_refused(run("generate", "--from", "minflux.png"), f"{what} is no longer the one")


def test_an_image_that_is_grown_is_one_with_a_mask_and_the_same_again(pictures, model):
    Image.fromarray(pixels("in/cat.png")[:32, :32]).save("in/cat.png")
    draw(model, "--image", "in/cat.png", "--grow", "16,0,0,32", "--mask-blur", 1)
    image, mask = grow("in/cat.png", left=16, bottom=32)
    expected = minflux.load(model)("a cat", steps=2, image=image, mask=mask, mask_blur=1)
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected), strict=True)
    assert pixels("minflux.png").shape == (64, 48, 3)
    assert settings("minflux.png")["hashes"].keys() == {"model", "image"}
    assert run("generate", "--from", "minflux.png", "--out", "again.png").exit_code == 0
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"), strict=True)


GROWN = {
    "--grow 16,0,0,0": "grow goes with an image, and makes its mask",
    "--image in/cat.png --mask in/mask.png --grow 16,0,0,0": "grow goes with an image, and makes its mask",
    "--image in/cat.png --grow 16,0,0": "--grow must be LEFT,TOP,RIGHT,BOTTOM in pixels, like 0,0,256,0, got '16,0,0'",
    "--image in/cat.png --grow 16,0,0,-16": "--grow must be LEFT,TOP,RIGHT,BOTTOM",
    "--image in/cat.png --grow 0,0,0,9999999": "grow: 80 × 10000047 pixels are more than 200,000,000; grow it less",
}


@pytest.mark.parametrize(("args", "words"), GROWN.items())
def test_growing_that_makes_no_sense_is_refused(pictures, model, args, words):
    assert_refused(run("generate", "a cat", "--model", model, *args.split()), words)


@pytest.mark.parametrize("margins", [[1, 2], [1, 2, 3, "4"], 5, [0, 0, 0, 10**12]])
def test_a_stranger_s_margins_are_refused_before_anything_is_allocated(pictures, model, margins):
    draw(model)
    with Image.open("minflux.png") as image:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(
            "minflux", json.dumps(json.loads(image.info["minflux"]) | {"image": "in/cat.png", "grow": margins})
        )
        image.save("theirs.png", pnginfo=info)
    assert_refused(run("generate", "--from", "theirs.png"), "pixels")


def test_fill_draws_what_is_grown_without_a_mask(pictures, tmp_path_factory):
    fill = str(tiny_model.make(tmp_path_factory.mktemp("fill") / "model", guidance=True, beside=16 + 256))
    Image.fromarray(pixels("in/cat.png")[:, :48]).save("in/cat.png")
    draw(fill, "--image", "in/cat.png", "--grow", "0,0,16,0", "--steps", 1)
    np.testing.assert_array_equal(pixels("minflux.png")[:, :48], pixels("in/cat.png"))


@pytest.mark.filterwarnings("default")
def test_what_is_scaled_is_said_in_one_line(pictures, model):
    result = draw(model, "--image", "in/cat.png", "--size", "32x32")
    assert "warning: image: its edges are cut off, 48 × 48 of 80 × 48 pixels are left" in result.stderr
