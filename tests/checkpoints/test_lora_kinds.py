"""DoRA, LoHa, LoKr, full differences, biases and norms: against PEFT, and the published formulas in PyTorch."""

import re

import numpy as np
import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel

from minflux.backend import get_backend
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.formats.safetensors import write_safetensors
from minflux.checkpoints.lora import read_lora, read_loras
from minflux.checkpoints.open import open_component
from minflux.checkpoints.tree import flatten
from minflux.errors import CheckpointError
from minflux.inference.load import read_in_mode
from tests import tiny_model
from tests.inference.test_memory import all_read

CONFIGS = {"transformer": tiny_model.FLUX, "text_encoder": tiny_model.CLIP, "text_encoder_2": tiny_model.T5}
MODES = ["resident", "streamed", "staged"]
D = tiny_model.FLUX.hidden_size
PROJ = "double_blocks.0.img_attn.proj"


def loaded(model, lora=(), backend="numpy", mode="resident", component="transformer"):
    """The weights of a component with LoRAs, all of them read, in NumPy."""
    nx, stored = get_backend(backend), open_component(model, component)
    changes = [change for change in read_loras(lora, CONFIGS) if change.module.component == component]
    p = read_in_mode(stored, nx, "float32", changes, mode)
    return {name: nx.to_numpy(weight) for name, weight in flatten(all_read(p)).items()}


# -- PEFT ----------------------------------------------------------------------------------------------------

PEFT = {
    "dora": lambda names: peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=names),
    "loha": lambda names: peft.LoHaConfig(r=3, alpha=5, target_modules=names),
    "lokr": lambda names: peft.LoKrConfig(r=2, alpha=5, target_modules=names),
    "lokr in four": lambda names: peft.LoKrConfig(r=2, alpha=5, decompose_both=True, target_modules=names),
    "lokr of whole matrices": lambda names: peft.LoKrConfig(r=99, alpha=5, target_modules=names),
}


@pytest.fixture(scope="module", params=PEFT)
def merged(request, model, tmp_path_factory):
    """A random adapter of a kind over every matrix of the transformer, as PEFT saves it, and the weights it makes."""
    torch.manual_seed(0)
    plain = FluxTransformer2DModel.from_pretrained(model / "transformer")
    names = [n.removesuffix(".weight") for n, w in plain.named_parameters() if w.ndim == 2 and n.endswith("weight")]
    theirs = peft.get_peft_model(plain, PEFT[request.param](names))
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter) + ("magnitude" in name)
    folder = tmp_path_factory.mktemp("peft")
    theirs.save_pretrained(folder)
    for layer in theirs.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.7)
    weights = theirs.merge_and_unload().state_dict()
    return folder / "adapter_model.safetensors", flux_to_bfl({k: w.numpy() for k, w in weights.items()})


@pytest.mark.parametrize("mode", MODES)
def test_a_kind_that_peft_saves_is_what_peft_merges(nx, model, merged, mode):
    """Every matrix, odd ones too; their products and norms and ours are summed in another order."""
    path, expected = merged
    got, plain = loaded(model, [f"{path}:0.7"], nx.name, mode), loaded(model)
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_allclose(got[name], weight, rtol=1e-4, atol=3e-6 * np.abs(weight).max(), err_msg=name)
        assert name.endswith(".weight") != np.allclose(got[name], plain[name])


# -- LyCORIS, kohya and ComfyUI ------------------------------------------------------------------------------


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def with_file(model, tmp_path, arrays, scale=1.0, **how):
    write_safetensors(tmp_path / "l.safetensors", {name: array.numpy() for name, array in arrays.items()})
    return loaded(model, [f"{tmp_path / 'l.safetensors'}:{scale}"], **how)


def assert_near(got, expected):
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


KOHYA = "lora_unet_double_blocks_0_img_attn_qkv"
QKV = "double_blocks.0.img_attn.qkv"


def test_a_lyco_file_of_loha(model, tmp_path):
    """A joint matrix under kohya's name, alpha unlike its rank, and two ranks, of which LyCORIS goes by the last."""
    w1a, w1b, w2a, w2b = random(3 * D, 2), random(2, D), random(3 * D, 4), random(4, D)
    arrays = {"hada_w1_a": w1a, "hada_w1_b": w1b, "hada_w2_a": w2a, "hada_w2_b": w2b, "alpha": torch.tensor(6.0)}
    got = with_file(model, tmp_path, {f"{KOHYA}.{k}": x for k, x in arrays.items()}, scale=-0.5)
    plain = torch.from_numpy(loaded(model)[f"{QKV}.weight"])
    assert_near(got[f"{QKV}.weight"], plain - 0.5 * 6 / 4 * (w1a @ w1b) * (w2a @ w2b))


@pytest.mark.parametrize("first", ["whole", "halves"])
@pytest.mark.parametrize("second", ["whole", "halves"])
def test_a_lyco_file_of_lokr(model, tmp_path, first, second):
    """LyCORIS leaves alpha out of account where neither matrix is in halves."""
    one, other = (random(6, 3), random(3, 4)), (random(16, 2), random(2, 8))
    arrays = {"lokr_w1_a": one[0], "lokr_w1_b": one[1]} if first == "halves" else {"lokr_w1": one[0] @ one[1]}
    arrays |= {"lokr_w2_a": other[0], "lokr_w2_b": other[1]} if second == "halves" else {"lokr_w2": other[0] @ other[1]}
    arrays["alpha"] = torch.tensor(6.0)
    got = with_file(model, tmp_path, {f"{KOHYA}.{k}": x for k, x in arrays.items()})
    rank = {"whole": {"whole": 6, "halves": 3}, "halves": {"whole": 2, "halves": 2}}[second][first]
    plain = torch.from_numpy(loaded(model)[f"{QKV}.weight"])
    assert_near(got[f"{QKV}.weight"], plain + 6 / rank * torch.kron(one[0] @ one[1], other[0] @ other[1]))


def dora(weight: torch.Tensor, difference: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """LyCORIS's `apply_weight_decompose`."""
    changed = weight + difference
    dim = 1 if magnitude.shape[1] == 1 else 0
    return changed * magnitude / changed.norm(dim=dim, keepdim=True)


@pytest.mark.parametrize("magnitude", [(3 * D, 1), (1, D)])
def test_dora_by_rows_and_by_columns(nx, model, tmp_path, magnitude):
    down, up, m = random(2, D), random(3 * D, 2), random(*magnitude).abs() + 0.1
    arrays = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": m, "alpha": torch.tensor(1.0)}
    got = with_file(model, tmp_path, {f"{KOHYA}.{k}": x for k, x in arrays.items()}, backend=nx.name)
    plain = torch.from_numpy(loaded(model)[f"{QKV}.weight"])
    assert_near(got[f"{QKV}.weight"], dora(plain, 1 / 2 * up @ down, m))


def test_dora_of_lokr(model, tmp_path):
    w1, w2, m = random(4, 4), random(8, 8), random(D, 1).abs() + 0.1
    arrays = {"lokr_w1": w1, "lokr_w2": w2, "dora_scale": m}
    got = with_file(model, tmp_path, {f"diffusion_model.{PROJ}.{k}": x for k, x in arrays.items()})
    plain = torch.from_numpy(loaded(model)[f"{PROJ}.weight"])
    assert_near(got[f"{PROJ}.weight"], dora(plain, torch.kron(w1, w2), m))


def test_two_doras_of_a_matrix_are_each_made_from_the_weight_as_it_was(model, tmp_path):
    plain = torch.from_numpy(loaded(model)[f"{PROJ}.weight"])
    files, expected = [], plain.clone()
    for i in (1, 2):
        down, up, m = random(i, D), random(D, i), random(D, 1).abs() + i
        arrays = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": m[:, 0]}
        files.append(str(tmp_path / f"{i}.safetensors"))
        write_safetensors(files[-1], {f"{PROJ}.{k}": x.numpy() for k, x in arrays.items()})
        expected += dora(plain, up @ down, m) - plain
    for order in (files, files[::-1]):
        assert_near(loaded(model, order)[f"{PROJ}.weight"], expected)


DIFFERENCES = {  # how files call a weight or a bias of the model, and what we call it
    f"diffusion_model.{PROJ}.diff": f"{PROJ}.weight",
    f"diffusion_model.{PROJ}.diff_b": f"{PROJ}.bias",
    f"diffusion_model.{PROJ}.bias.diff": f"{PROJ}.bias",
    "lora_unet_single_blocks_1_linear2.diff": "single_blocks.1.linear2.weight",
    "diffusion_model.single_blocks.1.norm.key_norm.scale.diff": "single_blocks.1.norm.key_norm.scale",
    "diffusion_model.single_blocks.1.norm.key_norm.diff": "single_blocks.1.norm.key_norm.scale",
    "lora_unet_double_blocks_0_txt_attn_norm_query_norm.w_norm": "double_blocks.0.txt_attn.norm.query_norm.scale",
    "transformer.transformer_blocks.0.attn.norm_k.diff": "double_blocks.0.img_attn.norm.key_norm.scale",
    "transformer.transformer_blocks.0.attn.norm_added_q.weight.diff": "double_blocks.0.txt_attn.norm.query_norm.scale",
}
OF_CLIP = {
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.diff": "text_model.final_layer_norm.weight",
    "lora_te1_text_model_encoder_layers_1_layer_norm2.b_norm": "text_model.encoder.layers.1.layer_norm2.bias",
    "lora_te_text_model_encoder_layers_1_mlp_fc1.diff_b": "text_model.encoder.layers.1.mlp.fc1.bias",
}


@pytest.mark.parametrize("key", DIFFERENCES | OF_CLIP)
def test_a_difference_is_added_as_comfyui_adds_it(model, tmp_path, key):
    """W + strength · diff, whatever alpha lies beside it."""
    component = "transformer" if key in DIFFERENCES else "text_encoder"
    name = (DIFFERENCES | OF_CLIP)[key]
    plain = {k: torch.from_numpy(w) for k, w in loaded(model, component=component).items()}
    difference = random(*plain[name].shape)
    got = with_file(model, tmp_path, {key: difference}, scale=0.6, mode="streamed", component=component)
    assert_near(got[name], plain[name] + 0.6 * difference)
    assert all(np.array_equal(got[other], w) for other, w in plain.items() if other != name)


def test_differences_of_diffusers_parts_and_halves(nx, model, tmp_path):
    """A part of a joint matrix and its bias; and the final modulation, whose halves are the other way round."""
    part, bias, final = random(D, D), random(D), random(2 * D, D)
    arrays = {"transformer.transformer_blocks.0.attn.to_k.diff": part, "transformer.norm_out.linear.diff": final}
    arrays |= {"transformer.transformer_blocks.0.attn.to_k.diff_b": bias, "transformer.norm_out.linear.alpha": bias[0]}
    got = with_file(model, tmp_path, arrays, backend=nx.name)
    expected = {k: torch.from_numpy(w) for k, w in loaded(model).items()}
    expected[f"{QKV}.weight"][D : 2 * D] += part
    expected[f"{QKV}.bias"][D : 2 * D] += bias
    expected["final_layer.adaLN_modulation.1.weight"] += torch.cat([final[D:], final[:D]])
    for name, weight in expected.items():
        assert_near(got[name], weight)


def test_a_difference_of_the_bias_goes_with_a_pair(model, tmp_path):
    """Of a pair's alpha / rank, the difference of the bias has nothing."""
    down, up, bias = random(2, D), random(D, 2), random(D)
    arrays = {"lora_down.weight": down, "lora_up.weight": up, "diff_b": bias, "alpha": torch.tensor(8.0)}
    got = with_file(model, tmp_path, {f"{PROJ}.{k}": x for k, x in arrays.items()}, scale=0.5)
    plain = {k: torch.from_numpy(w) for k, w in loaded(model).items()}
    assert_near(got[f"{PROJ}.weight"], plain[f"{PROJ}.weight"] + 0.5 * 8 / 2 * up @ down)
    assert_near(got[f"{PROJ}.bias"], plain[f"{PROJ}.bias"] + 0.5 * bias)


def test_zeros_for_a_bias_that_the_model_lacks_are_nothing(model, tmp_path):
    """T5's matrices have no biases; trainers that know nothing of it write zeros."""
    q = "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    pair = {f"{q}.lora_A.weight": random(2, 24), f"{q}.lora_B.weight": random(16, 2)}
    arrays = pair | {f"{q}.lora_B.bias": torch.zeros(16)}
    bare, zero = (with_file(model, tmp_path, held, component="text_encoder_2") for held in (pair, arrays))
    assert all(np.array_equal(w, zero[name]) for name, w in bare.items())


# -- what is refused -----------------------------------------------------------------------------------------

PAIR = {"lora_A.weight": np.ones((2, D), np.float32), "lora_B.weight": np.ones((D, 2), np.float32)}
WHOLE, BIAS, HALF = np.ones((D, D), np.float32), np.ones(D, np.float32), np.ones((2, D), np.float32)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (PAIR | {"diff": WHOLE}, "expected one change of the matrix, found a LoRA and a full difference; remove one"),
        (PAIR | {"lora_B.bias": BIAS, "diff_b": BIAS}, "changes the bias under two namings; remove one"),
        (PAIR | {"dora_scale": BIAS[:-1]}, "expected a magnitude (DoRA) of (32, 1) or (1, 32), found (31,)"),
        ({"dora_scale": BIAS}, "expected a change, found magnitude alone"),
        ({"alpha": BIAS[:1]}, "expected a change, found alpha alone"),
        ({"diff": WHOLE, "dora_scale": BIAS}, "expected no magnitude (DoRA) beside a full difference"),
        ({"diff": WHOLE[1:]}, "expected a full difference that makes (32, 32), found (31, 32)"),
        ({"diff_b": BIAS[1:]}, "expected a bias (32,), found (31,)"),
        ({"diff": WHOLE * np.inf}, "expected finite numbers"),
        ({"hada_w1_a": HALF.T, "hada_w1_b": HALF, "hada_w2_a": HALF.T}, "expected LoHa whole, found hada_w1.down and"),
        ({"lokr_w1": WHOLE[:4, :4]}, "expected LoKr whole, found lokr_w1 alone"),
        ({"lokr_w1": WHOLE[:4, :4], "lokr_w2": WHOLE[:8, :9]}, "expected LoKr that makes (32, 32), found (4, 4) and"),
        ({"lokr_w1": BIAS, "lokr_w2": WHOLE}, "expected LoKr that makes (32, 32), found (32,) and (32, 32)"),
        ({"lokr_w1": WHOLE, "lokr_w1_a": HALF.T, "lokr_w1_b": HALF, "lokr_w2": WHOLE[:1, :1]}, "expected LoKr whole"),
        ({"lokr_t2": np.ones((2, 2, 1, 1), np.float32)}, "is LoKr of a convolution, in Tucker form"),
    ],
)  # fmt: skip
def test_what_can_not_be_honoured_is_refused(tmp_path, held, words):
    write_safetensors(tmp_path / "l.safetensors", {f"{PROJ}.{name}": x for name, x in held.items()})
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


ONE_CHANGE = {  # of a matrix, under two namings each
    "loha": ({f"{KOHYA}.hada_w1_a": BIAS}, {"transformer.transformer_blocks.0.attn.to_v.lora_A.weight": HALF}),
    "diff": ({f"{QKV}.diff": WHOLE}, {"transformer.transformer_blocks.0.attn.to_q.diff": WHOLE}),
    "final": ({"final_layer.adaLN_modulation.1.diff": WHOLE}, {"transformer.norm_out.linear.diff": WHOLE}),
    "bias": ({f"{QKV}.diff_b": BIAS}, {"transformer.transformer_blocks.0.attn.to_k.lora_B.bias": BIAS}),
}


@pytest.mark.parametrize("kind", ONE_CHANGE)
def test_a_change_of_any_kind_under_two_namings_is_refused(tmp_path, kind):
    one, other = ONE_CHANGE[kind]
    write_safetensors(tmp_path / "l.safetensors", one | other)
    with pytest.raises(CheckpointError, match="change the same matrix under two namings; remove one of them"):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


def test_a_norm_under_two_namings_is_refused(tmp_path):
    names = "double_blocks.0.img_attn.norm.key_norm.diff", "transformer.transformer_blocks.0.attn.norm_k.diff"
    write_safetensors(tmp_path / "l.safetensors", dict.fromkeys(names, BIAS[:16]))
    with pytest.raises(CheckpointError, match="is there twice, under different names"):
        read_lora(tmp_path / "l.safetensors", CONFIGS)


def test_a_scale_too_large_for_a_kind(nx, model, tmp_path):
    arrays = {f"{PROJ}.diff": random(D, D)}
    with pytest.raises(CheckpointError, match=r"img_attn.proj: too large for .*float32 when added"):
        with_file(model, tmp_path, arrays, scale=3.4e38, backend=nx.name)
