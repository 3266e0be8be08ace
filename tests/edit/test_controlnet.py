"""ControlNets: diffusers' latents at every step for each family, memory modes, several of them, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlNetImg2ImgPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxMultiControlNetModel,
)
from PIL import Image

import minflux
from minflux.backend import available, get_backend
from minflux.checkpoints.components.controlnet import from_diffusers, to_xlabs, write_config
from minflux.checkpoints.controlnet import open_controlnet
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.quantise import GROUP, quantise, stem_of
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.tree import flatten
from minflux.edit.canny import canny
from minflux.edit.controlnet import Control, Use, working_times
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.load import choose_controlnets, load
from minflux.inference.memory import MODES
from minflux.sampling.guidance import Guidance
from tests import compare, tiny_controlnet
from tests.commands.runner import assert_refused, pixels, run
from tests.conftest import CHOSEN
from tests.tiny_controlnet import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers' own use of it
PROMPT, WIDTH, HEIGHT, STEPS = "a cat left of an apple", 80, 48, 3
RNG = np.random.default_rng(0)
EDGES, DEPTH = (Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)) for _ in range(2))
FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)


def theirs_of(kind, folder, nets, **settings) -> list[torch.Tensor]:
    """Every step's latents (1, h, w, C) of a pipeline of diffusers with ControlNets."""
    modules = [FluxControlNetModel.from_pretrained(net) for net in nets]
    alone = len(modules) == 1 and not isinstance(settings["control_image"], list)
    pipe = kind.from_pretrained(folder, controlnet=modules[0] if alone else FluxMultiControlNetModel(modules))
    pipe.set_progress_bar_config(disable=True)
    steps = []

    def keep(pipe, index, t, tensors):
        steps.append(pipe._unpack_latents(tensors["latents"], HEIGHT, WIDTH, 8).permute(0, 2, 3, 1))
        return tensors

    settings = {"num_inference_steps": STEPS, "guidance_scale": 2.5} | settings
    pipe(
        prompt=PROMPT, width=WIDTH, height=HEIGHT, max_sequence_length=24, generator=torch.Generator().manual_seed(7),
        callback_on_step_end=keep, output_type="latent", **settings,
    )  # fmt: skip
    return steps


def ours_of(pipe, **settings):
    steps = []
    settings = {"steps": STEPS, "guidance": 2.5} | settings
    pipe(PROMPT, seed=7, on_step=steps.append, posterior="sample", **settings)
    return [step.x for step in steps]


def assert_steps(trial, what, got, expected):
    for ours, theirs in zip(got, expected, strict=True):
        trial.close(f"{what}, each step's latents", ours, theirs, compare.MODEL)


@FLOAT32
@pytest.mark.parametrize(
    ("kind", "cfg_scale"), [*((kind, None) for kind in KINDS), ("union", 2.0), ("xlabs", 2.0)], ids=str
)
def test_each_family_is_diffusers_at_every_step(trial, deep_model, controlnets, kind, cfg_scale):
    away = {} if cfg_scale is None else {"negative_prompt": "a frog", "true_cfg_scale": cfg_scale}
    mode = 2 if KINDS[kind].modes else None
    expected = theirs_of(
        FluxControlNetPipeline, deep_model, [controlnets[kind]], control_image=EDGES, control_mode=mode,
        controlnet_conditioning_scale=0.7, **away,
    )  # fmt: skip
    pipe = load(deep_model, trial.nx, controlnet=controlnets[kind])
    got = ours_of(pipe, control=EDGES, control_scale=0.7, control_mode=mode, **away)
    assert_steps(trial, "ControlNet", got, expected)
    without = ours_of(pipe, control=EDGES, control_scale=0, control_mode=mode, **away)
    assert compare.relative_error(trial.nx.to_numpy(without[-1]), expected[-1].numpy()) > 0.01


SEVERAL = {
    "two InstantX": (("instantx", "other"), None),
    "a Union and another": (("union", "instantx"), [1, None]),
    "two XLabs": (("xlabs", "xlabs"), None),
    "one Union, two images": (("union",), [0, 3]),
}


@FLOAT32
@pytest.mark.parametrize(("kinds", "modes"), SEVERAL.values(), ids=SEVERAL)
def test_several_are_diffusers_at_every_step(trial, deep_model, controlnets, other, kinds, modes):
    nets = [(controlnets | {"other": other})[kind] for kind in kinds]
    expected = theirs_of(
        FluxControlNetPipeline, deep_model, nets, control_image=[EDGES, DEPTH], control_mode=modes,
        controlnet_conditioning_scale=[0.7, 0.4], control_guidance_start=[0.0, 0.3], control_guidance_end=[0.7, 1.0],
    )  # fmt: skip
    got = ours_of(
        load(deep_model, trial.nx, controlnet=nets), control=[EDGES, DEPTH], control_mode=modes,
        control_scale=[0.7, 0.4], control_start=[0, 0.3], control_end=[0.7, 1],
    )  # fmt: skip
    assert_steps(trial, "several ControlNets", got, expected)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A ControlNet as deep as "instantx" with other weights: of unlike depths diffusers drops residuals."""
    return tiny_controlnet.make(tmp_path_factory.mktemp("other") / "other", "instantx", seed=8)


@FLOAT32
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.6), (0.2, 1.0), (0.25, 0.75), (0.21, 0.99)])
def test_a_share_of_the_steps_is_diffusers(trial, deep_model, controlnets, start, end):
    expected = theirs_of(
        FluxControlNetPipeline, deep_model, [controlnets["plain"]], control_image=EDGES, num_inference_steps=5,
        control_guidance_start=start, control_guidance_end=end,
    )  # fmt: skip
    pipe = load(deep_model, trial.nx, controlnet=controlnets["plain"])
    got = ours_of(pipe, control=EDGES, steps=5, control_start=start, control_end=end)
    assert_steps(trial, "ControlNet", got, expected)


@FLOAT32
def test_image_to_image_is_diffusers_at_every_step(trial, deep_model, controlnets):
    expected = theirs_of(
        FluxControlNetImg2ImgPipeline, deep_model, [controlnets["instantx"]], image=DEPTH, control_image=EDGES,
        strength=0.6, num_inference_steps=5, control_guidance_end=0.5,
    )  # fmt: skip
    pipe = load(deep_model, trial.nx, controlnet=controlnets["instantx"])
    got = ours_of(pipe, image=DEPTH, control=EDGES, strength=0.6, steps=5, control_end=0.5)
    assert_steps(trial, "ControlNet with an image", got, expected)


# -- with other things -------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(deep_model, controlnets):
    """Draw a small image with a ControlNet, and with other settings."""

    def draw(kind="instantx", model=deep_model, prompt="a cat", steps=2, loaded=None, **settings):
        mode = 1 if KINDS[kind].modes else None
        pipe = minflux.load(model, controlnet=controlnets[kind], **loaded or {})
        return pipe(prompt, steps=steps, **{"control": EDGES, "control_mode": mode} | settings)

    return draw


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("kind", ["union", "xlabs"])
def test_every_memory_mode_gives_the_same_image(drawn, backend, kind, scale):
    images = [drawn(kind, true_cfg_scale=scale, loaded={"backend": backend, "memory": mode}) for mode in MODES]
    assert images == images[:1] * len(MODES)


def test_a_batch_is_its_images(drawn):
    batch = drawn(prompt=["a cat", "an apple"], seed=[3, 5])
    for one, other in zip(batch, [drawn(seed=3), drawn(prompt="an apple", seed=5)], strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize("solver", ["heun", "midpoint", "dpm++"])
def test_every_solver_follows_it_and_its_share_of_the_steps(drawn, solver):
    whole, half = drawn(solver=solver), drawn(solver=solver, control_end=0.5)
    assert whole != half != drawn(solver=solver, control_scale=0) != whole


def test_without_a_control_image_the_model_draws_as_ever(deep_model, controlnets):
    pipe = minflux.load(deep_model, controlnet=[controlnets["union"], controlnets["xlabs"]])
    assert pipe("a cat", steps=2) == minflux.load(deep_model)("a cat", steps=2)


@pytest.mark.filterwarnings("ignore:reference:minflux.inference.hints.Hint")  # the model was trained with none
def test_it_goes_with_a_mask_and_with_references(drawn):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :40] = True
    inside = drawn(image=DEPTH, mask=mask)
    np.testing.assert_array_equal(np.asarray(inside)[:, 40:], np.asarray(DEPTH)[:, 40:])
    assert inside != drawn(image=DEPTH, mask=mask, control_scale=0)
    assert drawn(reference=DEPTH) != drawn(reference=DEPTH, control_scale=0) != drawn(control_scale=0)


def test_a_photo_s_edges(drawn):
    assert drawn(control=DEPTH, canny=(50, 200)) == drawn(control=canny(DEPTH, 50, 200))


def test_a_mode_by_its_name_or_number(drawn):
    named, numbered = drawn("union", control_mode="depth"), drawn("union", control_mode=2)
    assert named == numbered == drawn("union", control_mode="2") != drawn("union", control_mode="tile")


def test_on_a_model_without_guidance_a_controlnet_gets_dev_s(model, drawn, controlnets):
    said = []
    image = drawn(model=model, loaded={"report": said.append}, guidance=1.0)
    assert f"{controlnets['instantx']}" in said[-1]
    assert "takes a guidance, and the model none: it gets 3.5, as with FLUX.1-dev" in said[-1]
    assert image != drawn(model=model, loaded={"report": said.append}, guidance=1.0, control_scale=0)


def test_unlike_depths_each_keep_their_own_intervals(nx, deep_model, controlnets):
    pipe = load(deep_model, nx, controlnet=[controlnets["instantx"], controlnets["plain"]])
    text, x = pipe.encode(PROMPT), nx.array(RNG.standard_normal((1, 6, 10, 4)).astype(np.float32))
    shown = Control(x, Use(0)), Control(x, Use(1, scale=0.0))
    both, one = (
        nx.to_numpy(pipe.velocity(replace(text, controls=controls), (6, 10), Guidance(2.5))(x, 0.7))
        for controls in (shown, shown[:1])
    )
    np.testing.assert_allclose(both, one, rtol=1e-5, atol=1e-6)


def test_during_which_timesteps():
    timesteps = np.linspace(1, 0, 6)
    assert working_times(Use(), timesteps) == (1.0, 0.0)
    assert working_times(Use(start=0.2, end=0.8), timesteps) == (timesteps[1], timesteps[4])
    control = Control(np.zeros((1, 2, 2, 4)), Use(start=0.2, end=0.8)).during(timesteps)
    assert [control.is_at_work(t) for t in timesteps] == [False, True, True, True, False, False]
    with pytest.raises(ArgumentError, match=r"control_start 0.5 and control_end 0.55 leave none of 5 steps"):
        working_times(Use(start=0.5, end=0.55), timesteps)


# -- what a call refuses -----------------------------------------------------------------------------------------


REFUSED = {
    "control must have the first one's 80 × 48 pixels, got 48 × 48": {"control": [EDGES, EDGES.crop((0, 0, 48, 48))]},
    "control_scale must be a number of at least 0, got -1": {"control_scale": -1},
    "control_scale: got 2 for 1 images; give one for each": {"control_scale": [1, 2]},
    "control_start must be a number from 0 to 1, got 1.5": {"control_start": 1.5},
    "control_end must be a number from 0 to 1, got 'x'": {"control_end": "x"},
    "control_start 1 and control_end 1 leave none of 2 steps": {"control_start": 1.0},
    "control_mode: the ControlNet has no modes, got 'canny'": {"control_mode": "canny"},
    "control_scale goes with a ControlNet and its control image": {"control": None, "control_scale": 1},
    "canny goes with one control image": {"control": [EDGES, DEPTH], "canny": (50, 200)},
}


@pytest.mark.parametrize(("words", "settings"), REFUSED.items(), ids=REFUSED)
def test_what_a_call_refuses(drawn, words, settings):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        drawn(**settings)


@pytest.mark.parametrize("mode", [None, "none", 5, "gray", "sketch", -1, 1.0, True])
def test_a_mode_that_a_union_has_not(drawn, mode):
    with pytest.raises(ArgumentError, match=r"control_mode.* one.*canny, tile, depth, blur, pose, or 0 to 4"):
        drawn("union", control_mode=mode)


def test_as_many_images_as_controlnets(deep_model, controlnets):
    pipe = minflux.load(deep_model, controlnet=[controlnets["instantx"], controlnets["xlabs"]])
    with pytest.raises(ArgumentError, match="control: got 1 images for 2 ControlNets; give one for each, in their"):
        pipe("a cat", control=EDGES)


def test_settings_of_a_controlnet_without_one(deep_model, control_model):
    with pytest.raises(ArgumentError, match=r"takes no control image; .* loaded with a ControlNet"):
        minflux.load(deep_model)("a cat", control=EDGES)
    with pytest.raises(ArgumentError, match="control_end goes with a ControlNet"):
        minflux.load(control_model)("a cat", control=EDGES, control_end=0.5)
    with pytest.raises(ArgumentError, match=r"control: FLUX.1 Canny and Depth take one image, got 2"):
        minflux.load(control_model)("a cat", control=[EDGES, DEPTH])


def test_sampling_with_what_no_controlnet_takes(deep_model, controlnets):
    pipe = minflux.load(deep_model, controlnet=controlnets["instantx"])
    text = pipe.encode("a cat")
    for control, words in {
        Control(np.zeros((1, 8, 8, 3), np.float32)): r"controls: must have shape \(1, 8, 8, 4\), got \(1, 8, 8, 3\)",
        Control(np.zeros((1, 8, 8, 4), np.float32), Use(1)): "controls: ControlNet 1 is asked for, and the model has 1",
    }.items():
        with pytest.raises(ArgumentError, match=words):
            pipe.sample(replace(text, controls=(control,)))


# -- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(controlnets, tmp_path):
    """Copy a ControlNet's folder, for a test that changes it."""
    return lambda kind: shutil.copytree(controlnets[kind], tmp_path / kind)


def draw(model, net, **settings):
    return minflux.load(model, controlnet=net)("a cat", control=EDGES, steps=1, **settings)


@pytest.mark.parametrize("kind", ["instantx", "xlabs", "union"])
def test_a_single_file_by_either_s_names(deep_model, copy, kind):
    folder, mode = copy(kind), 3 if KINDS[kind].modes else None
    expected = draw(deep_model, folder, control_mode=mode)
    (folder / "config.json").rename(folder / "kept.json")
    alone = folder.parent / "alone"
    alone.mkdir()
    file = shutil.move(folder / "diffusion_pytorch_model.safetensors", alone / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"can't tell RoPE's axes_dim .* put the controlnet's config.json beside"):
        minflux.load(deep_model, controlnet=file)  # FLUX.1's own heads are 128 wide, and shared as is known
    shutil.move(folder / "kept.json", alone / "config.json")
    assert draw(deep_model, file, control_mode=mode) == expected

    flat = read_safetensors(file, get_backend("numpy"))
    write_safetensors(alone / "xlabs.safetensors", to_xlabs(from_diffusers(flat)))
    assert draw(deep_model, alone / "xlabs.safetensors", control_mode=mode) == expected


def test_shards_with_an_index(deep_model, copy):
    folder = copy("union")
    expected = draw(deep_model, folder, control_mode=0)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    tiny_controlnet.module_of("union").save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    assert draw(deep_model, folder, control_mode=0) == draw(deep_model, folder, control_mode=0) == expected


def test_quantised_weights(deep_model, copy):
    folder = copy("instantx")
    expected = draw(deep_model, folder)
    stored = open_controlnet(folder)
    flat = flatten(read_tree(stored, get_backend("numpy")))
    packed = quantise_flat(stored, flat)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    write_safetensors(folder / "minflux.safetensors", packed)
    for memory in MODES:
        got = minflux.load(deep_model, controlnet=folder, memory=memory)("a cat", control=EDGES, steps=1)
        assert 0 < np.abs(np.asarray(got, int) - np.asarray(expected, int)).mean() < 8


def quantise_flat(stored, flat):
    """A ControlNet's weights with the blocks' matrices that can be in 8 bits."""
    found = {}
    for name, array in to_xlabs(flat).items():
        if stored.component.is_quantisable(name, array.shape, GROUP):
            leaves = (f"{stem_of(name)}.{leaf}" for leaf in ("weight", "scales", "biases"))
            found |= dict(zip(leaves, quantise(array, 8), strict=True))
        else:
            found[name] = array
    assert len(found) > len(flat)
    return found


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


WRONG = {
    "_class_name: expected 'FluxControlNetModel', found 'SD3ControlNetModel'": {"_class_name": "SD3ControlNetModel"},
    "extra_condition_channels: expected 0, found 4": {"extra_condition_channels": 4},
    "patch_size: expected 1, found 2": {"patch_size": 2},
    "x_embedder.weight: expected shape (32, 12), found (32, 16)": {"in_channels": 12},
    "num_layers: expected a value like 19, found -1": {"num_layers": -1},
    "expected at most 1000 for depth, found 1001": {"num_layers": 1001},
    "conditioning_embedding_channels: expected 4, a quarter of in_channels, found 5": {
        "conditioning_embedding_channels": 5, "patch_size": 2,
    },
    "axes_dims_rope: expected three even numbers of sum 16, found (4, 6, 8)": {"axes_dims_rope": [4, 6, 8]},
    "controlnet_mode_embedder.weight: expected shape (10, 32), found no such weight": {"num_mode": 10},
}  # fmt: skip


@pytest.mark.parametrize(("words", "values"), WRONG.items(), ids=WRONG)
def test_a_config_that_is_not_the_weights(deep_model, copy, words, values):
    folder = copy("instantx")
    changed(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        minflux.load(deep_model, controlnet=folder)


MISFITS = {
    "a width of 32, as the transformer has, found 48": {"hidden_size": 48, "num_heads": 3},
    "tokens of length 16, as the transformer has, found 12": {"in_channels": 12},
    "text of width 24, as the transformer has, found 20": {"context_in_dim": 20},
    "pooled text of width 16, as the transformer has, found 8": {"vec_in_dim": 8},
}


@pytest.mark.parametrize(("words", "sizes"), MISFITS.items(), ids=MISFITS)
def test_a_controlnet_of_another_model_is_refused_before_a_weight_is_read(
    deep_model, tmp_path, monkeypatch, words, sizes
):
    cfg = replace(KINDS["instantx"], **sizes)
    FluxControlNetModel.from_config(write_config(cfg)).save_pretrained(tmp_path / "other")
    monkeypatch.setattr("minflux.checkpoints.read.read_array", lambda *how: pytest.fail("was read"))
    with pytest.raises(CheckpointError, match=f"other.*expected a ControlNet with {words}"):
        minflux.load(deep_model, controlnet=tmp_path / "other")


def test_it_does_not_go_with_canny_or_fill(control_model, fill_model, controlnets):
    for model in (control_model, fill_model):
        with pytest.raises(CheckpointError, match="expected a ControlNet with tokens of length"):
            minflux.load(model, controlnet=controlnets["instantx"])


def test_what_is_no_controlnet(deep_model, controlnets, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a ControlNet .* found neither; its first names are"):
        minflux.load(deep_model, controlnet=deep_model / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="_class_name: expected 'FluxControlNetModel'"):
        minflux.load(deep_model, controlnet=deep_model / "transformer")
    with pytest.raises(ArgumentError, match="controlnet: 'no/such/folder': no such file or folder, nor a name on the"):
        minflux.load(deep_model, controlnet="no/such/folder")
    with pytest.raises(ArgumentError, match="controlnet must be a path or a list of paths, got 3"):
        minflux.load(deep_model, controlnet=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors: no such file"):
        minflux.load(deep_model, controlnet=tmp_path / "empty")


def test_a_controlnet_is_no_model_and_is_explained(controlnets, copy):
    folder = copy("union")
    file = folder / "diffusion_pytorch_model.safetensors"
    for path in (folder, file):
        result = run("inspect", path)
        assert result.exit_code == 0, result.output
        assert "a ControlNet for FLUX.1, which is shown a control image: give it beside a model, by --controlnet" in (
            result.output
        )
        assert "F32; a Union of 5 modes, with guidance built in; width 32, 2 heads, 2 double and 1 single" in (
            result.output
        )
        with pytest.raises(CheckpointError, match=r"is no model but a ControlNet for FLUX.1"):
            minflux.load(path)
    changed(folder / "config.json", num_layers=3)
    result = run("inspect", folder)
    assert result.exit_code == 1
    assert "transformer_blocks.2.norm1.linear.weight: expected shape (192, 32), found no such weight" in result.output


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EDGES.save("edges.png")
    DEPTH.save("depth.png")
    return tmp_path


def test_the_command_line_and_the_same_again(here, deep_model, copy):
    copy("union")
    given = ("--controlnet", "union", "--control", "edges.png", "--control", "depth.png", "--control-mode", "canny")
    given += ("--control-mode", 2, "--control-scale", 0.5, "--control-end", 0.5, "--seed", 3)
    result = run("generate", "a cat", "--model", deep_model, "--steps", 2, *given)
    assert result.exit_code == 0, result.output
    pipe = minflux.load(deep_model, controlnet="union")
    expected = pipe(
        "a cat", seed=3, steps=2, control=[EDGES, DEPTH], control_mode=[0, 2], control_scale=0.5, control_end=0.5
    )
    np.testing.assert_array_equal(pixels("minflux.png"), np.asarray(expected))
    with Image.open("minflux.png") as image:
        found = json.loads(image.info["minflux"])
    assert (found["controlnet"], found["control"]) == (["union"], ["edges.png", "depth.png"])
    assert (found["control_mode"], found["control_scale"]) == (["canny", "2"], [0.5])
    assert {"model", "controlnet 1", "control 1", "control 2"} == set(found["hashes"])

    again = ("generate", "--from", "minflux.png", "--out", "again.png")
    result = run(*again)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(pixels("again.png"), pixels("minflux.png"))
    EDGES.save("depth.png")
    assert_refused(run(*again), "the control 2 'depth.png' is no longer the one that minflux.png was made with")
    DEPTH.save("depth.png")
    tiny_controlnet.make(here / "union", "union", seed=9)
    assert_refused(run(*again), "the controlnet 1 'union' is no longer the one that minflux.png was made with")
    (here / "edges.png").unlink()
    assert_refused(run(*again), "was made with the control 1 'edges.png', which is not there")


def test_each_seed_draws_its_own_control_latents(here, deep_model, copy):
    copy("instantx")
    given = ("--controlnet", "instantx", "--control", "edges.png", "--posterior", "sample", "--steps", 1)
    assert run("generate", "a cat", "--model", deep_model, *given, "--seed", 3, "--seed", 4).exit_code == 0
    pipe = minflux.load(deep_model, controlnet="instantx")
    for seed in (3, 4):
        expected = pipe("a cat", seed=seed, steps=1, control=EDGES, posterior="sample")
        np.testing.assert_array_equal(pixels(f"minflux-{seed}.png"), np.asarray(expected))


UNFIT = {
    "--controlnet goes with --control": ("--controlnet", "plain"),
    "control: got 1 images for 2 ControlNets": (
        "--controlnet", "plain", "--controlnet", "plain", "--control", "depth.png",
    ),
    "control_scale goes with a ControlNet": ("--control-scale", 1),
    "control_mode: the ControlNet has no modes": (
        "--controlnet", "plain", "--control", "depth.png", "--control-mode", "pose",
    ),
    "controlnet: 'nowhere': no such file or folder": ("--controlnet", "nowhere", "--control", "depth.png"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "given"), UNFIT.items(), ids=UNFIT)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(here, deep_model, copy, words, given, monkeypatch):
    copy("plain")
    monkeypatch.setattr("minflux.commands.generate.load_checkpoint", lambda *args, **how: pytest.fail("was read"))
    assert_refused(run("generate", "a cat", "--model", deep_model, *given), words)


# -- ComfyUI's folder --------------------------------------------------------------------------------------------


@pytest.fixture
def comfy(controlnets, tmp_path):
    """ComfyUI's folder `models` with two ControlNets."""
    models = tmp_path / "models"
    for place in ("unet", "controlnet/flux"):
        (models / place).mkdir(parents=True)
    for name in ("union", "instantx"):
        file = controlnets[name] / "diffusion_pytorch_model.safetensors"
        shutil.copy(file, models / f"controlnet/flux/{name}.safetensors")
    shutil.copy(controlnets["instantx"] / "config.json", models / "controlnet/flux")  # no shape shows its small heads
    return models


def test_a_controlnet_is_named_as_it_is_in_comfyui_s_folder(comfy, controlnets):
    union = comfy / "controlnet/flux/union.safetensors"
    for name in ("union", "flux/union.safetensors", "controlnet/flux/union"):
        assert choose_controlnets(comfy, name) == [union], name
    others = [controlnets["xlabs"], Path("someone/net:union.safetensors")]
    assert choose_controlnets(comfy.parent, ["union", *map(str, others)]) == [union, *others]
    assert choose_controlnets(None, "union") == [Path("union")]


def test_what_is_not_in_comfyui_s_folder_is_refused_with_what_is(comfy, deep_model):
    words = (
        r"--controlnet: 'canny' is no file, and not one alone in .*, which has controlnet/flux/instantx\.safetensors, "
    )
    with pytest.raises(ArgumentError, match=words):
        load(deep_model, comfy=comfy, controlnet="canny")


def test_the_png_names_the_file(comfy, deep_model, tmp_path):
    EDGES.save(tmp_path / "edges.png")
    given = ["--model", deep_model, "--comfy", comfy, "--controlnet", "instantx", "--control", tmp_path / "edges.png"]
    done = run("generate", PROMPT, *given, "--steps", 1, "--size", "80x48", "--out", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    again = run("generate", "--from", tmp_path / "a.png", "--out", tmp_path / "b.png")
    assert again.exit_code == 0, again.output
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
