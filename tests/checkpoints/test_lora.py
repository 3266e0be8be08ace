"""LoRAs under every family of names: against diffusers on the same files, and against plain arithmetic."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

import minflux
from minflux.backend import get_backend
from minflux.checkpoints import lora
from minflux.checkpoints.components import COMPONENTS
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.formats.safetensors import contents, write_safetensors
from minflux.checkpoints.lora import add_loras, read_lora
from minflux.checkpoints.lora_kinds import LORA
from minflux.checkpoints.lora_names import Module, modules, place
from minflux.checkpoints.tree import flatten, tree_map
from minflux.commands import main as cli
from minflux.errors import CheckpointError
from tests import tiny_model

CONFIGS = {"transformer": tiny_model.FLUX, "text_encoder": tiny_model.CLIP, "text_encoder_2": tiny_model.T5}


@pytest.fixture(scope="module")
def peft_lora(model, tmp_path_factory):
    """A random LoRA over every matrix of the transformer, written by diffusers, with an alpha unlike its rank."""
    torch.manual_seed(0)
    theirs = FluxTransformer2DModel.from_pretrained(model / "transformer")
    stems = [n.removesuffix(".weight") for n, w in theirs.named_parameters() if w.ndim == 2 and n.endswith("weight")]
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=stems, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("peft")
    settings = theirs.peft_config["default"].to_dict()
    FluxPipeline.save_lora_weights(
        folder, get_peft_model_state_dict(theirs), transformer_lora_adapter_metadata=settings
    )
    return next(folder.glob("*.safetensors"))


# -- against diffusers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_a_picture_with_a_lora_is_diffusers_picture(nx, model, peft_lora, scale):
    theirs = FluxPipeline.from_pretrained(model)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(peft_lora, adapter_name="a")
    theirs.set_adapters(["a"], [scale])
    noise = np.random.default_rng(2).standard_normal((1, 4, 8, 8), np.float32)
    settings = {"width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 24}
    packed = FluxPipeline._pack_latents(torch.from_numpy(noise), 1, 4, 8, 8)
    latents = theirs("a cat", latents=packed, output_type="latent", **settings).images
    pipe = minflux.load(model, nx.name, lora=[f"{peft_lora}:{scale}"])
    last = last_step(pipe, noise)
    ours = nx.to_numpy(last.x).transpose(0, 3, 1, 2)
    expected = FluxPipeline._unpack_latents(latents, 64, 64, theirs.vae_scale_factor).numpy()
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
    plain = last_step(minflux.load(model, nx.name), noise)
    assert np.linalg.norm(nx.to_numpy(plain.x - last.x)) > 0.01 * np.linalg.norm(expected)  # it does something


def last_step(pipe, noise):
    """Sample "a cat" from noise in diffusers' order, in one pass a step."""
    text = pipe.encode("a cat", guidance=1.0)
    *_, last = pipe.sample(text, steps=3, guidance=1.0, start=noise.transpose(0, 2, 3, 1))
    return last


# -- every family of names -----------------------------------------------------------------------------------


def random_pair(shape: tuple[int, ...], rank: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal((rank, shape[1]), np.float32), rng.standard_normal((shape[0], rank), np.float32)


def changed_weights(path, scale: float = 1.0) -> dict[str, np.ndarray]:
    """What a file changes in a transformer whose weights are all zero."""
    zeros = tree_map(np.zeros_like, tiny_model.pipeline().flux[1])
    flat = add_loras(flatten(zeros), read_lora(path, CONFIGS, scale))
    return {name: w for name, w in flat.items() if np.any(w)}


NAMES = {
    "kohya": ("lora_unet_double_blocks_0_img_attn_qkv", "lora_down.weight", "lora_up.weight"),
    "bfl": ("double_blocks.0.img_attn.qkv", "lora_A.weight", "lora_B.weight"),
    "comfy": ("diffusion_model.double_blocks.0.img_attn.qkv", "lora_A.weight", "lora_B.weight"),
}


@pytest.mark.parametrize("family", NAMES)
def test_a_joint_matrix_is_changed_whole(tmp_path, family):
    stem, down_name, up_name = NAMES[family]
    down, up = random_pair((96, 32))
    pair = {f"{stem}.{down_name}": down, f"{stem}.{up_name}": up, f"{stem}.alpha": np.array(6, np.float32)}
    write_safetensors(tmp_path / "l.safetensors", pair)
    got = changed_weights(tmp_path / "l.safetensors", scale=0.5)
    assert list(got) == ["double_blocks.0.img_attn.qkv.weight"]
    np.testing.assert_allclose(got["double_blocks.0.img_attn.qkv.weight"], 0.5 * 6 / 3 * up @ down, rtol=1e-5)


def test_parts_of_joint_matrices_are_fused_as_weights_are(tmp_path, peft_lora):
    pairs = contents(peft_lora)
    got = changed_weights(peft_lora)
    deltas = {}
    for name in pairs:
        if name.endswith("lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            both = safetensors.torch.load_file(peft_lora)
            delta = 5 / 3 * both[f"{stem}.lora_B.weight"] @ both[name]
            deltas[f"{stem.removeprefix('transformer.')}.weight"] = delta.numpy()
    expected = flux_to_bfl(deltas)
    assert got.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(got[name], delta, rtol=1e-4, atol=1e-5)


def test_a_lora_of_the_text_encoder_and_of_kohya_s_underscores(tmp_path):
    stem = "text_model.encoder.layers.1.self_attn.q_proj"
    down, up = random_pair((16, 16))
    for prefix, spelled in (("lora_te1_", stem.replace(".", "_")), ("text_encoder.", stem)):
        write_safetensors(
            tmp_path / "l.safetensors",
            {f"{prefix}{spelled}.lora_down.weight": down, f"{prefix}{spelled}.lora_up.weight": up},
        )
        (change,) = read_lora(tmp_path / "l.safetensors", CONFIGS)
        assert (change.module.component, change.module.stem) == ("text_encoder", stem)
        np.testing.assert_array_equal(change.up @ change.down, up @ down)


def test_several_loras_add_up(model, tmp_path, peft_lora):
    once = minflux.load(model, lora=[f"{peft_lora}:0.5"]).flux[1]
    twice = minflux.load(model, lora=[f"{peft_lora}:0.25", f"{peft_lora}:0.25"]).flux[1]
    tree_map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), once, twice)


def test_an_alpha_for_all_modules_of_a_name(tmp_path):
    """PEFT's pattern fits a module's whole name or its end."""
    down, up = random_pair((96, 32), rank=4)
    stem = "transformer.double_blocks.0.img_attn.qkv"
    pair = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    text = json.dumps({"transformer.lora_alpha": 3, "transformer.alpha_pattern": {"attn.qkv": 5, "img_attn.qkv": 8}})
    write_safetensors(tmp_path / "l.safetensors", pair, metadata={"lora_adapter_metadata": text})
    got = changed_weights(tmp_path / "l.safetensors")
    np.testing.assert_allclose(got["double_blocks.0.img_attn.qkv.weight"], 8 / 4 * up @ down, rtol=1e-5)


def test_a_bias_and_the_root_of_the_rank(tmp_path):
    bias = np.ones(96, np.float32)
    down, up = random_pair((96, 32), rank=4)
    stem = "transformer.double_blocks.0.img_attn.qkv"
    pair = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up, f"{stem}.lora_B.bias": bias}
    text = json.dumps({"transformer.lora_alpha": 3, "transformer.use_rslora": True})
    write_safetensors(tmp_path / "l.safetensors", pair, metadata={"lora_adapter_metadata": text})
    got = changed_weights(tmp_path / "l.safetensors", scale=2.0)
    np.testing.assert_allclose(got["double_blocks.0.img_attn.qkv.weight"], 2 * 3 / 2 * up @ down, rtol=1e-5)
    np.testing.assert_array_equal(got["double_blocks.0.img_attn.qkv.bias"], 2 * 3 / 2 * bias)


# -- what can't be added -------------------------------------------------------------------------------------

PAIR = {"img_in.lora_A.weight": np.ones((2, 16), np.float32), "img_in.lora_B.weight": np.ones((32, 2), np.float32)}
PAIR_UP = PAIR["img_in.lora_B.weight"]


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("scale", ["3e38", "1e39", "-3e38"])
def test_a_scale_that_leads_to_infinity(model, tmp_path, nx, mode, scale):
    write_safetensors(tmp_path / "l.safetensors", PAIR)
    with pytest.raises(CheckpointError, match=r"l.safetensors: img_in: too large for .*float32 when added; use a sma"):
        minflux.load(model, nx.name, lora=f"{tmp_path / 'l.safetensors'}:{scale}", memory=mode)("a cat")


def test_infinity_beside_a_quantised_matrix():
    pair = {"lora.down": np.ones((2, 64), np.float32), "lora.up": PAIR_UP}
    change = lora.Change("l: here", Module("transformer", "x"), slice(None), LORA, pair)
    scales = {"x.scales": np.ones((32, 1), np.float32)}
    assert set(lora.lora_branches(scales, [change])) == {"x.lora.down", "x.lora.up"}
    for up, down in ((np.inf, 1), (3e38, 9), (9, 3e38)):
        halves = {"lora.up": PAIR_UP * np.float32(up), "lora.down": change.down * np.float32(down)}
        large = replace(change, arrays=halves)
        with pytest.raises(CheckpointError, match="l: here: too large for float32"):
            lora.lora_branches(scales, [change, large])


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"nothing.lora_A.weight": np.ones((2, 2), np.float32)}, "none of its 1 keys fits this model"),
        ({"img_in.lora_A.weight": PAIR["img_in.lora_A.weight"]}, "expected a LoRA whole, found lora.down alone"),
        (PAIR | {"img_in.lora_A.weight": np.ones((2, 17), np.float32)}, "img_in: expected a LoRA that makes (32, 16)"),
        (PAIR | {"img_in.lora_B.weight": np.ones((32, 3), np.float32)}, "img_in: expected a LoRA that makes (32, 16)"),
        (PAIR | {"img_in.lora_down.weight": PAIR["img_in.lora_A.weight"]}, "is there twice"),
        (PAIR | {"img_in.alpha": np.ones(2, np.float32)}, "img_in: expected at most one number α"),
        (PAIR | {"img_in.lora_A.weight": np.float32(1)}, "img_in: expected a LoRA that makes (32, 16), found ()"),
        (PAIR | {"img_in.lora_B.weight": np.full((32, 2), np.nan, np.float32)}, "img_in: expected finite numbers"),
    ],
)  # fmt: skip
def test_a_lora_that_does_not_fit_is_refused(tmp_path, held, words):
    write_safetensors(tmp_path / "l.safetensors", held)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


def test_one_change_under_two_namings_is_refused(tmp_path):
    """Kohya's joint qkv beside PEFT's q: added as it stands, the change would count twice."""
    joint = {"lora_down.weight": np.ones((2, 32), np.float32), "lora_up.weight": np.ones((96, 2), np.float32)}
    part = {"lora_A.weight": np.ones((2, 32), np.float32), "lora_B.weight": np.ones((32, 2), np.float32)}
    arrays = {f"lora_unet_double_blocks_0_img_attn_qkv.{role}": x for role, x in joint.items()}
    arrays |= {f"transformer.transformer_blocks.0.attn.to_q.{role}": x for role, x in part.items()}
    write_safetensors(tmp_path / "l.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"to_q and .*qkv change the same matrix under two namings"):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


def test_keys_that_fit_nothing_are_told(tmp_path):
    write_safetensors(tmp_path / "l.safetensors", PAIR | {"stray.lora_A.weight": np.ones((2, 2), np.float32)})
    with pytest.warns(UserWarning, match="left out 1 keys that fit nothing: stray.lora_A.weight"):
        assert len(read_lora(tmp_path / "l.safetensors", CONFIGS)) == 1


# -- other spellings -----------------------------------------------------------------------------------------


def xlabs_lora() -> dict[str, np.ndarray]:
    """A LoRA of every module that XLabs' trainer changes, in one double and one single block of the small model."""
    d, arrays = tiny_model.FLUX.hidden_size, {}
    shapes = {"qkv_lora1": (3 * d, d), "qkv_lora2": (3 * d, d), "proj_lora1": (d, d), "proj_lora2": (d, d)}
    stems = {f"double_blocks.0.processor.{name}": shape for name, shape in shapes.items()}
    stems |= {
        "single_blocks.0.processor.qkv_lora": (3 * d, d),
        "single_blocks.0.processor.proj_lora": (d, d + int(d * tiny_model.FLUX.mlp_ratio)),
    }
    for i, (stem, shape) in enumerate(stems.items()):
        rng = np.random.default_rng(i)
        arrays[f"{stem}.down.weight"] = rng.standard_normal((2, shape[1]), np.float32)
        arrays[f"{stem}.up.weight"] = rng.standard_normal((shape[0], 2), np.float32)
    return arrays


def sums(path) -> dict[str, np.ndarray]:
    """What a LoRA adds to each matrix of the small model."""
    shapes = {n: s for n, s in flux_shapes(tiny_model.FLUX).items() if n.endswith(".weight")}
    changes = read_lora(path, CONFIGS)
    flat = add_loras({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, changes)
    return {name: array for name, array in flat.items() if array.any()}


def test_xlabs_names_are_what_diffusers_takes_them_for(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", xlabs_lora())
    theirs = _convert_xlabs_flux_lora_to_diffusers({k: torch.from_numpy(v) for k, v in xlabs_lora().items()})
    arrays = {k if k.startswith("transformer.") else f"transformer.{k}": v.numpy() for k, v in theirs.items()}
    write_safetensors(tmp_path / "d.safetensors", arrays)
    ours, expected = sums(tmp_path / "x.safetensors"), sums(tmp_path / "d.safetensors")
    assert ours.keys() == expected.keys()
    assert len(ours) == 6
    for name, array in ours.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_parts_that_two_names_share_are_refused(tmp_path):
    """XLabs' q, k, v of a single block, beside PEFT's k."""
    d = tiny_model.FLUX.hidden_size
    part = {"lora_A.weight": np.ones((2, d), np.float32), "lora_B.weight": np.ones((d, 2), np.float32)}
    arrays = xlabs_lora() | {f"transformer.single_transformer_blocks.0.attn.to_k.{r}": x for r, x in part.items()}
    write_safetensors(tmp_path / "l.safetensors", arrays)
    with pytest.raises(CheckpointError, match=r"change the same matrix under two namings"):
        read_lora(tmp_path / "l.safetensors", CONFIGS)
    beside = {name.replace("attn.to_k", "proj_mlp"): x for name, x in arrays.items()}
    beside = {n: np.ones((4 * d, 2), np.float32) if "proj_mlp.lora_B" in n else x for n, x in beside.items()}
    write_safetensors(tmp_path / "m.safetensors", beside)
    assert len(read_lora(tmp_path / "m.safetensors", CONFIGS)) == 7


@pytest.mark.parametrize(
    ("stem", "component", "ours"),
    [
        ("base_model.model.double_blocks.0.img_attn.proj", "transformer", "double_blocks.0.img_attn.proj"),
        ("transformer.base_model.model.proj_out", "transformer", "final_layer.linear"),
        ("base_model.model.transformer.x_embedder", "transformer", "img_in"),
        ("lycoris_transformer_blocks_0_attn_to_out_0", "transformer", "double_blocks.0.img_attn.proj"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "text_encoder", None),
        ("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.k", "text_encoder_2", None),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_k", "text_encoder_2", None),
    ],
)
def test_every_prefix_in_use(stem, component, ours):
    known = {name: modules(COMPONENTS[name], config) for name, config in CONFIGS.items()}
    module, spelled, role = place(f"{stem}.lora_down.weight", known)
    assert (module.component, spelled, role) == (component, stem, "lora.down")
    assert ours in (None, module.stem)


# -- the command ---------------------------------------------------------------------------------------------


def test_a_picture_remembers_its_lora(model, peft_lora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["generate", "a cat", "--model", str(model), "--steps", "1", "--out"]
    for extra in (["plain.png"], ["with.png", "--lora", f"{peft_lora}:0.7"]):
        result = CliRunner().invoke(cli.main, args + extra)
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli.main, ["generate", "--from", "with.png", "--out", "again.png"])
    assert result.exit_code == 0, result.output
    plain, first, again = ((tmp_path / f"{name}.png").read_bytes() for name in ("plain", "with", "again"))
    assert plain != first == again


def test_a_missing_lora_is_told_before_anything_is_drawn(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.main, ["generate", "a cat", "--model", str(model), "--lora", "no.safetensors:2"])
    assert result.exit_code == 2
    assert result.output.startswith("minflux: lora: found no 'no.safetensors'; expected FILE, FOLDER[:FILE] or OWNER")
    assert not list(tmp_path.iterdir())


def test_bf16_weights_keep_their_dtype(peft_lora):
    pytest.importorskip("mlx.core")
    mlx = get_backend("mlx")
    flat = flatten(tree_map(lambda w: mlx.array(w).astype(mlx.xp.bfloat16), tiny_model.pipeline().flux[1]))
    changed = add_loras(flat, read_lora(peft_lora, CONFIGS))
    assert {str(w.dtype) for w in changed.values()} == {"mlx.core.bfloat16"}
