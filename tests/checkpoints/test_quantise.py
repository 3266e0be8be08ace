"""Quantised weights: MLX's own layout to the bit, the same product on both backends, from file to picture and back."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import minflux
from minflux.backend import available, get_backend
from minflux.backend.base import GROUP
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from minflux.checkpoints.open import open_component, open_model
from minflux.checkpoints.quantise import BITS, dequantise, packed_shapes, quantise
from minflux.checkpoints.read import read_tree
from minflux.checkpoints.tree import flatten, tree
from minflux.commands import main as cli
from minflux.commands.convert import convert
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.memory import held
from tests.compare import relative_error

NX = get_backend("numpy")
PROMPT = "a cat left of an apple on a blue background"
sizes = st.tuples(st.integers(1, 5), st.sampled_from([64, 128, 192]))
matrices = {"seed": st.integers(0, 99), "size": sizes, "bits": st.sampled_from(BITS)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The shipped model in 4 and in 8 bits: bits -> its folder."""
    folder = tmp_path_factory.mktemp("quantised")
    for bits in BITS:
        convert(minflux.zoo.FOLDER / "tiny", folder / str(bits), "minflux", bits=bits)
    return {bits: folder / str(bits) for bits in BITS}


def random_matrix(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


# -- numbers -------------------------------------------------------------------------------------------------


@given(**matrices)
def test_a_number_is_off_by_half_a_step_at_most(seed, size, bits):
    """q is the nearest whole number, but where it is cut off: the scale is made to fit the end farther from 0."""
    w = random_matrix(seed, size)
    packed, scales, biases = quantise(w, bits)
    steps = np.abs(NX.dequantized(packed, scales, biases) - w).reshape(*scales.shape, 64) / np.abs(scales)[..., None]
    assert np.quantile(steps, 0.9) <= 0.5 + 1e-3
    assert steps.max() <= 1.5
    assert packed.shape == (size[0], size[1] * bits // 32)


@given(**matrices, code=st.sampled_from(["F32", "F16", "BF16"]))
def test_mlx_reads_the_same_numbers(seed, size, bits, code):
    mx = pytest.importorskip("mlx.core")
    w = random_matrix(seed, size)
    arrays = quantise(w, bits, code)
    theirs = np.array(mx.dequantize(*map(mx.array, arrays), group_size=64, bits=bits))
    np.testing.assert_allclose(NX.dequantized(*arrays), theirs, rtol=1e-6, atol=1e-6)


@given(**matrices)
def test_it_is_as_close_as_mlx_itself(seed, size, bits):
    mx = pytest.importorskip("mlx.core")
    w = random_matrix(seed, size)
    theirs = np.array(mx.dequantize(*mx.quantize(mx.array(w), group_size=64, bits=bits), group_size=64, bits=bits))
    ours = NX.dequantized(*quantise(w, bits))
    assert relative_error(ours, w) <= 1.001 * relative_error(theirs, w)


def test_zero_stays_zero_and_a_constant_group_is_kept():
    w = np.concatenate([np.zeros((1, 64)), np.full((1, 64), 0.3), np.full((1, 64), -2.0)], axis=1).astype(np.float32)
    w[0, 70] = 0
    for bits in BITS:
        back = NX.dequantized(*quantise(w, bits))
        assert (back[0, :64] == 0).all()
        assert back[0, 70] == 0
        np.testing.assert_allclose(back, w, rtol=1e-6)


# -- which ones ----------------------------------------------------------------------------------------------


def test_only_matrices_inside_the_blocks_are_quantised():
    assert COMPONENTS["transformer"].is_quantisable("double_blocks.0.img_attn.qkv.weight", (192, 64), GROUP)
    assert COMPONENTS["text_encoder_2"].is_quantisable(
        "encoder.block.0.layer.1.DenseReluDense.wo.weight", (128, 256), GROUP
    )
    for kind, name, shape in [
        ("transformer", "img_in.weight", (192, 64)),
        ("transformer", "double_blocks.0.img_attn.qkv.bias", (64,)),
        ("transformer", "double_blocks.0.img_attn.qkv.weight", (192, 60)),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 64)),
        ("text_encoder_2", "shared.weight", (100, 64)),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight", (256, 64)),
        ("vae", "decoder.mid.attn_1.q.weight", (64, 64)),
    ]:
        assert not COMPONENTS[kind].is_quantisable(name, shape, GROUP)


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["transformer", "text_encoder_2"])
def test_the_file_holds_the_weights_rounded(models, bits, kind):
    part = open_component(minflux.zoo.FOLDER / "tiny", kind)
    packed = open_component(models[bits], kind)
    original = flatten(read_tree(part, NX))
    for name, weight in dequantise(flatten(read_tree(packed, NX))).items():
        if COMPONENTS[kind].is_quantisable(name, weight.shape, GROUP):
            assert 0 < relative_error(weight, original[name]) < {4: 0.12, 8: 0.0075}[bits]
        else:
            np.testing.assert_array_equal(weight, original[name])


def test_back_to_floats_and_to_diffusers(models, tmp_path):
    convert(models[8], tmp_path / "diffusers", "diffusers", dtype="float32")
    packed = open_component(models[8], "transformer")
    back = open_component(tmp_path / "diffusers", "transformer")
    np.testing.assert_equal(flatten(read_tree(back, NX)), dequantise(flatten(read_tree(packed, NX))))


def test_without_bits_the_own_format_keeps_every_number(tmp_path):
    convert(minflux.zoo.FOLDER / "tiny", tmp_path / "own", "minflux")
    picture = minflux.load(tmp_path / "own")(PROMPT, seed=1, steps=2)
    assert picture.tobytes() == minflux.load("tiny")(PROMPT, seed=1, steps=2).tobytes()
    convert(tmp_path / "own", tmp_path / "back", "diffusers")
    for kind in COMPONENTS:
        (file,) = (tmp_path / "back" / kind).glob("*.safetensors")
        np.testing.assert_equal(
            read_safetensors(file, NX), read_safetensors(minflux.zoo.FOLDER / "tiny" / kind / file.name, NX)
        )


def test_scales_are_stored_as_the_floats_are(tmp_path):
    convert(minflux.zoo.FOLDER / "tiny", tmp_path / "own", "minflux", dtype="bfloat16", bits=4)
    part = open_component(tmp_path / "own", "transformer")
    assert {stored.dtype for stored in part.tensors.values()} == {"BF16", "U32"}
    minflux.load(tmp_path / "own")(PROMPT, steps=1)


def test_convert_and_inspect_say_what_was_done(tmp_path):
    tiny = str(minflux.zoo.FOLDER / "tiny")
    done = CliRunner().invoke(
        cli.main, ["convert", tiny, str(tmp_path / "q"), "--format", "minflux", "--quantize", "4"]
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"transformer: 38 matrices quantised, relative error [89]\.\d\d%; the worst is .*%", done.stdout)
    text = CliRunner().invoke(cli.main, ["inspect", str(tmp_path / "q")]).stdout
    assert "transformer: 6,269,056 numbers" in text
    assert "38 matrices quantised to 4 bits" in text


# -- drawing -------------------------------------------------------------------------------------------------


def final_latents(pipe) -> np.ndarray:
    return pipe.nx.to_numpy([*pipe.sample(pipe.encode(PROMPT), seed=1, steps=2)][-1].x)


@pytest.mark.parametrize("backend", [*available(), *(["mlx-fused"] if "mlx" in available() else [])])
@pytest.mark.parametrize("bits", BITS)
def test_latents_are_those_of_the_rounded_weights(models, bits, backend):
    """A quantised matrix is multiplied by as the float matrix that it stands for, to float32's own error."""
    pipe = minflux.load(models[bits])
    plain = {kind: (cfg, tree_of_floats(p)) for kind, (cfg, p) in {"flux": pipe.flux, "t5": pipe.t5}.items()}
    expected = final_latents(replace(pipe, **plain))
    with minflux.backend.serving(backend):
        got = final_latents(minflux.load(models[bits], backend))
    assert relative_error(got, expected) < 1e-4


def tree_of_floats(p):
    return tree(dequantise(flatten(p)))


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", ["staged", "streamed"])
def test_every_memory_mode_draws_the_same(models, mode, backend):
    resident = minflux.load(models[4], backend, memory="resident")(PROMPT, steps=2)
    assert minflux.load(models[4], backend, memory=mode)(PROMPT, steps=2).tobytes() == resident.tobytes()


def test_it_takes_less_memory(models):
    amounts = {
        name: held({"transformer": open_model(folder).components["transformer"]}, "resident", 2)
        for name, folder in {16: minflux.zoo.FOLDER / "tiny", **models}.items()
    }
    assert amounts[4] < amounts[8] < amounts[16]


def test_a_packed_matrix_that_a_lora_widens_counts_as_floats(models):
    parts = {"transformer": open_model(models[4]).components["transformer"]}
    stem = "double_blocks.0.img_mlp.0"
    name = parts["transformer"].sources[f"{stem}.weight"][0]
    packed, numbers = parts["transformer"].tensors[name].size, parts["transformer"].numbers(name)
    assert held(parts, "resident", widened=[stem]) - held(parts, "resident") == 4 * numbers - packed


# -- LoRAs ---------------------------------------------------------------------------------------------------


def lora_file(path: Path) -> str:
    """Two pairs on one matrix, a joint one in part, and one on a matrix that stays a float one."""
    rng = np.random.default_rng(5)
    shapes = {
        "transformer_blocks.0.attn.to_k": (192, 192),
        "single_transformer_blocks.1.proj_out": (192, 960),
        "x_embedder": (192, 64),
    }
    arrays = {}
    for name, (rows, columns) in shapes.items():
        arrays[f"transformer.{name}.lora_A.weight"] = 0.1 * rng.standard_normal((4, columns), np.float32)
        arrays[f"transformer.{name}.lora_B.weight"] = 0.4 * rng.standard_normal((rows, 4), np.float32)
    arrays["transformer.transformer_blocks.0.attn.to_k.lora_B.bias"] = rng.standard_normal(192, np.float32)
    write_safetensors(path, arrays)
    return str(path)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_a_lora_beside_is_a_lora_added(models, tmp_path, backend, mode):
    """x Wᵀ + (x Aᵀ) Bᵀ is x (W + B A)ᵀ, for two LoRAs at once, one on a part of a joint matrix."""
    lora = [f"{lora_file(tmp_path / 'a.safetensors')}:0.7", lora_file(tmp_path / "b.safetensors")]
    convert(models[8], tmp_path / "floats", "diffusers", dtype="float32")
    expected = final_latents(minflux.load(tmp_path / "floats", lora=lora, memory="resident"))
    got = final_latents(minflux.load(models[8], backend, lora=lora, memory=mode))
    assert relative_error(got, expected) < 1e-4
    assert relative_error(final_latents(minflux.load(models[8])), expected) > 1e-2


PAIR = {"lora_A.weight": (4, 192), "lora_B.weight": (192, 4)}


def kinds_file(path: Path) -> str:
    """DoRA on a part of a joint matrix, LoHa, a full difference; and a pair whose matrix stays packed."""
    rng = np.random.default_rng(7)
    shapes = {
        "transformer_blocks.0.attn.to_k": PAIR | {"dora_scale": (192, 1)},
        "transformer_blocks.0.attn.to_q": PAIR,
        "single_transformer_blocks.1.proj_out": {
            "hada_w1_a": (192, 3), "hada_w1_b": (3, 960), "hada_w2_a": (192, 3), "hada_w2_b": (3, 960)
        },
        "transformer_blocks.1.attn.to_out.0": {"diff": (192, 192)},
        "transformer_blocks.1.attn.to_add_out": PAIR,
    }  # fmt: skip
    arrays = {
        f"transformer.{name}.{role}": 0.1 * rng.standard_normal(shape, np.float32) + (role == "dora_scale")
        for name, roles in shapes.items()
        for role, shape in roles.items()
    }
    write_safetensors(path, arrays)
    return str(path)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_a_matrix_that_more_than_pairs_change_is_widened(models, tmp_path, backend, mode):
    lora = [f"{kinds_file(tmp_path / 'a.safetensors')}:0.7", lora_file(tmp_path / "b.safetensors")]
    convert(models[8], tmp_path / "floats", "diffusers", dtype="float32")
    expected = final_latents(minflux.load(tmp_path / "floats", lora=lora, memory="resident"))
    pipe = minflux.load(models[8], backend, lora=lora, memory=mode)
    assert relative_error(final_latents(pipe), expected) < 1e-4
    p = pipe.flux[1]
    assert set(p["double_blocks"][0]["img_attn"]["qkv"]) == {"weight", "bias"}
    assert set(p["double_blocks"][1]["txt_attn"]["proj"]) == {"weight", "bias", "scales", "biases", "lora"}


def test_a_lora_is_fused_before_quantising(tmp_path):
    lora = [lora_file(tmp_path / "a.safetensors")]
    tiny = minflux.zoo.FOLDER / "tiny"
    convert(tiny, tmp_path / "both", "minflux", lora=lora, bits=8, dtype="float32")
    expected = final_latents(minflux.load("tiny", lora=lora))
    without = relative_error(final_latents(minflux.load("tiny")), expected)
    assert relative_error(final_latents(minflux.load(tmp_path / "both")), expected) < without / 4


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "bits", "words"),
    [
        ("bfl", 4, "quantize: the format 'bfl' holds no quantised weights; use --format minflux"),
        ("diffusers", 8, "quantize: the format 'diffusers' holds no quantised weights"),
        ("minflux", 3, "quantize must be 4 or 8, got 3"),
    ],
)
def test_what_can_not_be_asked(tmp_path, format_, bits, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        convert(minflux.zoo.FOLDER / "tiny", tmp_path / "x.safetensors", format_, bits=bits)


def broken(model: Path, folder: Path, change) -> Path:
    """Copy a quantised transformer, changed."""
    flat = read_safetensors(model / "transformer" / "minflux.safetensors", NX)
    change(flat)
    (folder / "transformer").mkdir()
    write_safetensors(folder / "transformer" / "minflux.safetensors", flat)
    config = json.loads((model / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


QKV = "double_blocks.1.txt_attn.qkv"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda flat: flat.pop(f"{QKV}.biases"), f"{QKV}.biases: expected shape"),
        (lambda flat: flat.pop(f"{QKV}.scales"), f"{QKV}.weight: expected shape (576, 192), found (576, 24)"),
        (lambda flat: flat.update({f"{QKV}.weight": np.zeros((576, 24), np.float32)}), "expected packed numbers"),
        (lambda flat: flat.update({f"{QKV}.weight": np.zeros((576, 20), np.uint32)}), "expected shape (576, 24)"),
        (lambda flat: flat.update({"img_in.scales": np.zeros((192, 1), np.float32)}), "img_in.weight: expected"),
    ],
)
def test_a_broken_file(models, tmp_path, change, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        open_component(broken(models[4], tmp_path, change), "transformer")


def test_three_arrays_stand_for_a_matrix():
    assert packed_shapes("a.weight", (3, 128), 4) == {"a.weight": (3, 16), "a.scales": (3, 2), "a.biases": (3, 2)}
