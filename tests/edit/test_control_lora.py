"""Canny's and Depth's LoRAs: FLUX.1-dev with one of them takes a control image, as diffusers has it."""

import numpy as np
import pytest
import safetensors.numpy
from diffusers import FluxControlPipeline
from PIL import Image

from minflux.checkpoints.components.flux import flux_shapes, to_diffusers
from minflux.checkpoints.tree import flatten
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import load
from tests import compare, tiny_model
from tests.commands.runner import assert_refused, pixels, run
from tests.conftest import CHOSEN
from tests.edit.test_parity_edits import HEIGHT, WIDTH, ours_of, theirs_of

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
RANK, WIDE = 3, 32
CFG = tiny_model.pipeline(guidance=True).flux[0]


def control_lora(names: dict[str, tuple[int, ...]], wide: str) -> dict[str, np.ndarray]:
    """A random control LoRA in PEFT's roles, of every matrix and norm of a naming, `wide` being the input."""
    rng, found = np.random.default_rng(2), {}
    for name, shape in names.items():
        stem, _, leaf = name.rpartition(".")
        if ".norm_" in name or leaf == "scale":
            found[name] = 1 + 0.3 * rng.standard_normal(shape)
        elif leaf == "weight":
            inputs = WIDE if stem == wide else shape[1]
            found[f"{stem}.lora_A.weight"] = rng.standard_normal((RANK, inputs)) / inputs**0.5
            found[f"{stem}.lora_B.weight"] = rng.standard_normal((shape[0], RANK)) / 4
            found[f"{stem}.lora_B.bias"] = rng.standard_normal(shape[0]) / 4
    return {name: array.astype(np.float32) for name, array in found.items()}


@pytest.fixture(scope="module")
def diffusers_lora(tmp_path_factory):
    """A control LoRA under diffusers' names."""
    ghosts = {name: np.zeros(shape, np.int8) for name, shape in flux_shapes(CFG).items()}
    names = {name: array.shape for name, array in to_diffusers(ghosts).items() if not name.startswith("proj_out")}
    arrays = {f"transformer.{name}": array for name, array in control_lora(names, "x_embedder").items()}
    path = tmp_path_factory.mktemp("lora") / "canny.safetensors"
    safetensors.numpy.save_file(arrays, path)
    return path


@pytest.fixture(scope="module")
def image() -> Image.Image:
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 10, 3), np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


class WithLora(FluxControlPipeline):
    """diffusers' pipeline, a LoRA added once it is open."""

    path, scale = "", 1.0

    @classmethod
    def from_pretrained(cls, folder):
        pipe = FluxControlPipeline.from_pretrained(folder)
        pipe.load_lora_weights(cls.path.parent, weight_name=cls.path.name, adapter_name="control")
        pipe.set_adapters("control", cls.scale)
        return pipe


@FLOAT32
@pytest.mark.parametrize("scale", [1.0, 0.85])
def test_a_control_lora_is_diffusers_at_every_step(trial, dev_model, diffusers_lora, image, scale):
    kind = type("Theirs", (WithLora,), {"path": diffusers_lora, "scale": scale})
    expected = theirs_of(kind, dev_model, control_image=image, num_inference_steps=4, guidance_scale=10.0)
    pipe = load(dev_model, trial.nx, lora=f"{diffusers_lora}:{scale}")
    got, _ = ours_of(pipe, control=image, steps=4, guidance=10.0)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("a control LoRA, each step's latents", step.x, theirs, compare.MODEL)


def test_under_bfls_names_norms_are_replaced_and_matrices_and_biases_changed(dev_model, tmp_path):
    """W' = [W 0] + s B A, b' = b + s b_B, and a norm's scale that of the file, whatever s is."""
    lora = control_lora(flux_shapes(CFG), "img_in")
    safetensors.numpy.save_file(lora, tmp_path / "canny.safetensors")
    before, changed = (flatten(load(dev_model, "numpy", lora=names).flux[1]) for names in ((), f"{tmp_path}:0.5"))
    for name, array in before.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "scale":
            np.testing.assert_allclose(changed[name], lora[name], rtol=0, atol=1e-6)
            continue
        part = lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"]
        part = lora[f"{stem}.lora_B.bias"] if leaf == "bias" else part
        base = np.pad(array, ((0, 0), (0, WIDE - array.shape[1]))) if name == "img_in.weight" else array
        np.testing.assert_allclose(changed[name], base + 0.5 * part, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", ["staged", "streamed"])
def test_weights_read_as_they_are_used_are_widened_too(dev_model, diffusers_lora, image, memory):
    held, streamed = (load(dev_model, "numpy", lora=str(diffusers_lora), memory=m) for m in ("resident", memory))
    got = [np.asarray(pipe("a cat", control=image, steps=1)) for pipe in (held, streamed)]
    np.testing.assert_array_equal(got[0], got[1], strict=True)


def test_with_it_dev_needs_a_control_image_and_says_so(dev_model, diffusers_lora):
    pipe = load(dev_model, lora=str(diffusers_lora))
    assert pipe.takes == "control"
    with pytest.raises(ArgumentError, match="give control"):
        pipe("a cat")


def test_a_plain_lora_goes_beside_it(dev_model, diffusers_lora, tmp_path):
    """Its changes of the first matrix are those of the latents' columns."""
    plain = {"img_in.lora_A.weight": np.ones((1, 16), np.float32), "img_in.lora_B.weight": np.ones((32, 1), np.float32)}
    safetensors.numpy.save_file(plain, tmp_path / "plain.safetensors")
    both = [str(diffusers_lora), str(tmp_path / "plain.safetensors")]
    one, two = (load(dev_model, "numpy", lora=loras).flux[1]["img_in"]["weight"] for loras in (both[:1], both))
    np.testing.assert_allclose(two - one, np.repeat([[1] * 16 + [0] * 16], 32, axis=0), atol=1e-6)


def test_two_control_loras_are_refused(dev_model, diffusers_lora):
    with pytest.raises(CheckpointError, match=r"add one control LoRA at a time$"):
        load(dev_model, lora=[str(diffusers_lora)] * 2)


def test_on_the_command_line(dev_model, diffusers_lora, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image.save("edges.png")
    given = ("generate", "a cat", "--model", dev_model, "--steps", 1, "--lora", diffusers_lora)
    assert_refused(run(*given), "give control")
    result = run(*given, "--control", "edges.png")
    assert result.exit_code == 0, result.output
    expected = load(dev_model, lora=str(diffusers_lora))("a cat", control=image, steps=1)
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected), strict=True)
    refused = run("convert", dev_model, "out", "--format", "diffusers", "--lora", diffusers_lora)
    assert_refused(refused, "a control LoRA widens the model")
