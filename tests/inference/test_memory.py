"""The three ways of holding a model: the same picture to the bit, and only as much memory as was said."""

import gc
import re
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Kind

import minflux
from minflux.backend import available, get_backend
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.lazy import Blocks, Branch, Leaf, for_steps, stream
from minflux.checkpoints.open import open_component, open_model
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.tree import tree_map
from minflux.commands import main as cli
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference import memory
from minflux.inference.memory import MODES, held, stages, when_read
from minflux.model.flux import SCHNELL, flux
from tests import tiny_model
from tests.checkpoints.test_gguf import write_gguf
from tests.checkpoints.test_lora import PAIR
from tools import synthetic_checkpoint as synthetic

NX = get_backend("numpy")


def all_read(node):
    """A streamed tree as plain dicts and lists."""
    if isinstance(node, Branch):
        return {key: all_read(node[key]) for key in node}
    return [all_read(block) for block in node] if isinstance(node, Blocks) else node


# -- the same numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", MODES[1:])
def test_every_mode_draws_the_same_picture(model, backend, mode):
    expected = minflux.load(model, backend, memory="resident")("a cat", seed=3)
    assert minflux.load(model, backend, memory=mode)("a cat", seed=3).tobytes() == expected.tobytes()


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", MODES[1:])
def test_every_mode_edits_the_same_picture(model, backend, mode):
    pixels, mask = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), np.eye(64) > 0
    images = []
    for how in ("resident", mode):
        pipe = minflux.load(model, backend, memory=how)
        inpainted = pipe("a cat", seed=3, image=pixels, mask=mask, steps=2)
        images.append(inpainted.tobytes() + pipe.edit(pixels, "a cat", "a dog", steps=2).tobytes())
    assert images[0] == images[1]


def test_two_velocities_share_the_weights_of_the_steps(model):
    told = []
    pipe = minflux.load(model, memory="staged", progress=lambda done, total: told.append((done, total)))
    pipe.edit(np.zeros((64, 64, 3), np.uint8), "a cat", "a dog", steps=2)
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)] != []


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("kind", ["transformer", "text_encoder", "text_encoder_2"])
def test_a_streamed_tree_has_the_same_weights(model, backend, kind):
    nx = get_backend(backend)
    part = open_component(model, kind)
    streamed, loaded = all_read(stream(part, nx)), read_tree(part, nx)
    np.testing.assert_equal(tree_map(nx.to_numpy, streamed), tree_map(nx.to_numpy, loaded))


def test_staged_reads_what_steers_when_it_is_used_and_the_rest_for_the_steps(model):
    p = minflux.load(model, memory="staged").flux[1]
    steps = for_steps(p)
    for tree in (p, steps):
        for mod in (tree["double_blocks"][0]["img_mod"], tree["single_blocks"][1]["modulation"]):
            assert isinstance(mod["lin"].nodes["weight"], Leaf)
        assert isinstance(tree["final_layer"]["adaLN_modulation"]["1"].nodes["bias"], Leaf)
        assert isinstance(tree["time_in"]["in_layer"].nodes["weight"], Leaf)
    assert isinstance(p["single_blocks"][1]["linear1"].nodes["weight"], Leaf)
    assert isinstance(steps["single_blocks"][1]["linear1"].nodes["weight"], np.ndarray)


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_only_staged_reads_for_the_steps(model, mode):
    p = minflux.load(model, memory=mode).flux[1]
    assert for_steps(p) is p


@pytest.mark.parametrize("format_", ["bfl", "comfy", "diffusers"])
@pytest.mark.parametrize("dtype", ["bf16", "f8_e4m3"])
def test_from_every_format(tmp_path, format_, dtype):
    cfg = replace(SCHNELL, hidden_size=128, num_heads=1, depth=2, depth_single_blocks=1)
    synthetic.make(tmp_path / "x.safetensors", cfg, format_, dtype)
    if format_ == "diffusers":
        part = open_component(tmp_path / "x.safetensors", "transformer")
    else:
        part = open_model(tmp_path / "x.safetensors").take("transformer")
    np.testing.assert_equal(all_read(stream(part, NX)), read_tree(part, NX))


def test_a_lora_is_added_at_each_read(model, tmp_path):
    write_safetensors(tmp_path / "l.safetensors", PAIR)
    name = f"{tmp_path / 'l.safetensors'}:0.3"
    resident, streamed = (minflux.load(model, lora=[name], memory=mode).flux[1] for mode in ("resident", "streamed"))
    for _ in range(2):
        np.testing.assert_array_equal(streamed["img_in"]["weight"], resident["img_in"]["weight"])


# -- how much of it ------------------------------------------------------------------------------------------


ACTIVATIONS = 2 << 20


@pytest.fixture
def transformer(tmp_path):
    """A transformer of 45 million weights in its file, and a run of it."""
    return made(tmp_path, hidden_size=512, num_heads=4, depth=3, depth_single_blocks=6)


def made(tmp_path, **sizes):
    """A transformer of these sizes in its file, as what there is of a model, and a run of it."""
    cfg = replace(SCHNELL, context_in_dim=64, **sizes)
    synthetic.make(tmp_path / "x.safetensors", cfg)
    part = open_model(tmp_path / "x.safetensors").take("transformer")
    inputs = {
        "img": np.zeros((1, 8, 64), np.float32),
        "img_ids": np.zeros((1, 8, 3), np.int32),
        "txt": np.zeros((1, 4, 64), np.float32),
        "txt_ids": np.zeros((1, 4, 3), np.int32),
        "timesteps": np.ones(1, np.float32),
        "y": np.zeros((1, 768), np.float32),
    }

    def run(nx, part=part, when=lambda name: "use"):
        given = {name: nx.array(x) for name, x in inputs.items()}
        p = for_steps(stream(part, nx, "float32", when=when))
        nx.eval(flux(p, cfg, **given, on_block=lambda name, seen: nx.eval(seen)))

    return {"transformer": part}, run


def test_what_a_streamed_transformer_takes_is_what_was_said(transformer):
    """Traced while it runs, it stays below the two largest matrices and the activations; resident, it could not."""
    parts, run = transformer
    gc.collect()
    tracemalloc.start()
    try:
        run(NX)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < held(parts, "streamed") + ACTIVATIONS < held(parts, "resident") / 5


def test_on_mlx_it_takes_a_block(transformer):
    """What MLX itself allocates stays below the largest block; without a stop after each it would be the whole."""
    mx = pytest.importorskip("mlx.core")
    parts, run = transformer
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    run(get_backend("mlx"))
    peak = mx.get_peak_memory() - before
    assert peak < held(parts, "streamed", blockwise=True) + ACTIVATIONS < held(parts, "resident") / 2


@pytest.mark.parametrize("mode", MODES)
def test_what_is_in_blocks_takes_what_was_said(tmp_path, mode):
    """Held are the blocks, 5.5 bits a number; wide are no more than two matrices at a time."""
    parts, run = made(tmp_path, hidden_size=256, num_heads=2, depth=1, depth_single_blocks=4)
    wide = held(parts, "resident")
    write_gguf(tmp_path / "x.gguf", read_safetensors(parts["transformer"].path, NX), Kind.Q5_0)
    part = open_model(tmp_path / "x.gguf").take("transformer")
    tracemalloc.start()
    try:
        run(NX, part, lambda name: when_read(mode, part.component, name))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = held({"transformer": part}, mode)
    assert said / 2 < peak < said + ACTIVATIONS < wide / 2


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model nearly all of whose weights, 70 MB of them, are the transformer's."""
    sizes = replace(tiny_model.FLUX, hidden_size=512, axes_dim=(64, 96, 96))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_model, "FLUX", sizes)
        return tiny_model.make(tmp_path_factory.mktemp("wide") / "model")


def drawn(pipe, now):
    """Draw a picture, and tell how much memory is taken before it, after its text, in each step, and after all."""
    taken = [now()]
    text = pipe.encode("a cat")
    taken.append(now())
    latents = None
    for step in pipe.sample(text, seed=3, steps=2):
        latents = step.x
        taken.append(now())
    taken.append(now())
    return pipe.decode(latents), taken


@pytest.mark.parametrize("backend", available())
def test_staged_holds_the_transformer_for_the_steps_alone(wide, backend):
    """Counted where the arrays are: the transformer is there in each step, and gone when the picture is decoded."""
    parts = {kind: open_component(wide, kind) for kind in COMPONENTS}
    said = stages(parts, "staged", blockwise=backend == "mlx")
    expected = minflux.load(wide, backend, memory="resident")("a cat", seed=3, steps=2)
    tracemalloc.start()
    try:
        nx = get_backend(backend)
        now = nx.xp.get_active_memory if backend == "mlx" else lambda: tracemalloc.get_traced_memory()[0]
        start = now()
        pipe = minflux.load(wide, backend, memory="staged")
        for _ in range(2):  # for the second picture it is read again
            tracemalloc.reset_peak()
            picture, (before, text, *steps, after) = drawn(pipe, lambda: now() - start)
            peak = tracemalloc.get_traced_memory()[1]
            assert max(before, text, after) < said["decode"] + ACTIVATIONS < said["steps"] / 5
            assert said["steps"] / 2 < min(steps) <= max(steps) < said["steps"] + ACTIVATIONS
            assert backend == "mlx" or peak < held(parts, "staged") + ACTIVATIONS
            np.testing.assert_array_equal(picture[0], expected)
    finally:
        tracemalloc.stop()


def test_inspect_tells_the_memory_of_every_mode(model):
    text = CliRunner().invoke(cli.main, ["inspect", str(model)]).stdout
    amounts = re.findall(r"([\d.]+ [kMG]B) (resident|staged|streamed)", text)
    assert [mode for _, mode in amounts] == 2 * list(MODES)


# -- choosing ------------------------------------------------------------------------------------------------


def room_for(monkeypatch, model, mode, nx=NX, dtype="float32"):
    """Leave just as much memory free as a mode needs; return the model's parts."""
    parts = {kind: open_component(model, kind) for kind in COMPONENTS}
    size = held(parts, mode, {"float32": 4, None: None}[dtype], blockwise=nx.name == "mlx")
    monkeypatch.setattr(memory, "free_memory", lambda: int(size / memory.SPARE) + 1)
    return parts


@pytest.mark.parametrize("mode", MODES)
def test_auto_takes_the_first_mode_that_fits(model, monkeypatch, recwarn, mode):
    parts = room_for(monkeypatch, model, mode)
    assert memory.choose("auto", NX, parts, "float32") == mode
    warned = [str(w.message).split(",")[0] for w in recwarn]
    assert warned == ([] if mode == "resident" else [f"memory: {mode}"])


@pytest.mark.parametrize("mode", MODES)
def test_who_asks_is_told_in_place_of_warned(model, monkeypatch, recwarn, mode):
    lines = []
    parts = room_for(monkeypatch, model, mode)
    memory.choose("auto", NX, parts, "float32", lines.append)
    if mode == "resident":  # as expected: no news
        assert lines == []
    else:
        (line,) = lines
        assert re.match(
            rf"memory: {mode}, which is slower .* \(all weights take [\d.]+ kB, [\d.]+ kB are free\)$", line
        )
    assert not recwarn


def test_a_mode_that_was_asked_for_is_no_news(model):
    lines = []
    minflux.load(model, memory="resident", report=lines.append)
    assert lines == []


@pytest.mark.parametrize("report", [None, lambda line: None])
def test_where_nothing_fits_auto_streams_and_warns(model, monkeypatch, report):
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    with pytest.warns(UserWarning, match=r"memory: streamed, .*0 bytes are free\): too little even so; .* may swap"):
        pipe = minflux.load(model, report=report)
    assert isinstance(pipe.flux[1], Branch)


class GPU:
    """A GPU that shares the system's memory."""

    on_gpu, name = True, "mlx"


def test_on_a_gpu_floats_are_as_wide_as_in_the_file(model, monkeypatch, tmp_path):
    """The model's are float32; at two bytes each it would seem to fit into half the room."""
    monkeypatch.setattr("sys.platform", "darwin")
    parts = {kind: open_component(model, kind) for kind in COMPONENTS}
    widths = [held(parts, "resident", itemsize, blockwise=True) for itemsize in (2, 4, None)]
    wide = sum(
        part.numbers(name)
        for part in parts.values()
        for name in part.tensors
        if part.loaded_dtype(name, "float16") == "float32"
    )
    assert wide > 0
    assert widths[0] * 2 - 4 * wide == widths[1] == widths[2]
    room_for(monkeypatch, model, "resident", GPU(), None)
    assert memory.choose("auto", GPU(), parts, None) == "resident"
    monkeypatch.setattr(memory, "free_memory", lambda: int(widths[0] / memory.SPARE) + 1)
    with pytest.warns(UserWarning, match="memory: st"):
        assert memory.choose("auto", GPU(), parts, None) != "resident"
    assert memory.choose("auto", GPU(), parts, "float16") == "resident"


@pytest.mark.parametrize(("dtype", "itemsize"), [("f32", 4), ("f16", 2), ("bf16", 2), ("f8_e4m3", 2)])
def test_the_width_of_floats_by_what_a_file_holds(tmp_path, dtype, itemsize):
    synthetic.make(tmp_path / "x.safetensors", replace(SCHNELL, hidden_size=128, num_heads=1, depth=1), "bfl", dtype)
    parts = {"transformer": open_model(tmp_path / "x.safetensors").take("transformer")}
    assert held(parts, "resident", None) == held(parts, "resident", itemsize)


def test_a_gpu_of_its_own_memory_is_no_news(model, monkeypatch):
    lines = []
    monkeypatch.setattr("sys.platform", "linux")
    assert memory.choose("auto", GPU(), {}, None, lines.append) == "resident"
    assert lines == []


# -- what is refused -----------------------------------------------------------------------------------------


def test_an_unknown_mode(model):
    with pytest.raises(
        ArgumentError, match="memory must be one of 'auto', 'resident', 'staged', 'streamed', got 'small'"
    ):
        minflux.load(model, memory="small")


def test_a_weight_that_is_not_finite_is_found_when_it_is_used(model, tmp_path):
    shutil.copytree(model, tmp_path / "broken")
    path = tmp_path / "broken" / "transformer" / "diffusion_pytorch_model.safetensors"
    flat = read_safetensors(path, NX)
    flat["proj_out.bias"][3] = np.inf
    write_safetensors(path, flat)
    pipe = minflux.load(tmp_path / "broken", memory="streamed")
    with pytest.raises(CheckpointError, match=r"proj_out.bias: expected finite numbers"):
        pipe("a cat")


def test_the_command_takes_a_mode(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["generate", "a cat", "--model", str(model), "--steps", "1"]
    for mode in ("resident", "streamed", "auto"):
        result = CliRunner().invoke(cli.main, [*args, "--memory", mode, "--out", f"{mode}.png"])
        assert result.exit_code == 0, result.output
        told = [line for line in result.stderr.splitlines() if line.startswith("memory: ")]
        assert not told  # all of it fits, which is no news
    assert (tmp_path / "resident.png").read_bytes() == (tmp_path / "streamed.png").read_bytes()
