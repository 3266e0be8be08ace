"""Linear maps, of every packing and with a LoRA beside them, against PyTorch's and PEFT's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model

from minflux.backend import get_backend, serving
from minflux.checkpoints.components.flux import flux_shapes
from minflux.checkpoints.quantise import quantise
from minflux.checkpoints.tree import combine, flatten, partition, tree, tree_map
from minflux.model.blocks import double_block
from minflux.model.flux import FluxConfig
from minflux.model.linear import linear
from minflux.model.rope import rope
from tests.compare import relative_error
from tests.strategies import batches

dims = st.integers(1, 17)
PACKINGS = {"float": None, "4 bits": 4, "8 bits": 8}
packed_in = pytest.mark.parametrize("bits", PACKINGS.values(), ids=PACKINGS)


def stored(weight: np.ndarray, bits: int | None) -> dict[str, np.ndarray]:
    """A matrix as it is stored: alone, or packed, with scales and biases that bfloat16 can hold."""
    if bits is None:
        return {"weight": weight}
    return dict(zip(("weight", "scales", "biases"), quantise(weight, bits, "BF16"), strict=True))


def matrix(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The float matrix that stored arrays stand for."""
    return get_backend("numpy").dequantized(**arrays) if "scales" in arrays else arrays["weight"]


@given(batches, dims, dims, st.booleans())
def test_linear(trial, batch, inputs, outputs, bias):
    module = trial.random(torch.nn.Linear(inputs, outputs, bias=bias))
    x = trial.randn(batch, 3, inputs)
    trial.close("linear", linear(trial.array(x), **trial.tree(module)), module(x))


# -- packings and LoRAs --------------------------------------------------------------------------------------


class Projection(torch.nn.Module):
    """One linear layer under a name, as PEFT wants it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.proj = torch.nn.Linear(*weight.T.shape, bias=bias is not None)
        self.proj.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))

    def forward(self, x):
        return self.proj(x)


@packed_in
@given(batches, st.integers(1, 2), st.integers(12, 17), st.booleans(), st.booleans())
def test_a_lora_beside_any_packing(trial, bits, batch, groups, outputs, bias, lora):
    """The matrix is stored in its packing here; PyTorch, and PEFT for the LoRA, have the floats that it stands for."""
    w = trial.rounded(torch.randn(outputs, 64 * groups) / 8).numpy()
    arrays, b = stored(w, bits), trial.randn(outputs) if bias else None
    p = {k: trial.nx.array(x) if x.dtype == "uint32" else trial.array(torch.from_numpy(x)) for k, x in arrays.items()}
    p |= {} if b is None else {"bias": trial.array(b)}
    module = Projection(torch.from_numpy(matrix(arrays)), b)
    if lora:
        config = LoraConfig(r=4, lora_alpha=2, target_modules=["proj"], init_lora_weights=False)
        module = inject_adapter_in_model(config, module)
        down, up = (x["default"].weight for x in (module.proj.lora_A, module.proj.lora_B))
        down.data, up.data = trial.randn(*down.shape, scale=0.1), trial.randn(*up.shape)
        p["lora"] = {"down": trial.array(down), "up": trial.array(up / 2)}  # of strength α / r
    x = trial.randn(batch, 3, 64 * groups)
    trial.close("linear" if bits is None else "linear, quantised", linear(trial.array(x), **p), module(x))


def test_a_wrong_array_beside_a_weight_is_named(nx):
    x = nx.array(np.ones((1, 64), np.float32))
    with pytest.raises(TypeError, match="unexpected array 'lora_up' beside the weight; expected only bias, biases,"):
        linear(x, x, scales=x, biases=x, lora_up=x)
    with pytest.raises(TypeError, match="a whole packing beside the weight, nothing or biases, scales; got scales"):
        linear(x, x, scales=x)


# -- gradients -----------------------------------------------------------------------------------------------

SMALL = FluxConfig(hidden_size=192, num_heads=4, depth=1, depth_single_blocks=0, axes_dim=(8, 20, 20))
LAYERS = ("img_attn.qkv", "img_attn.proj", "img_mlp.0", "img_mlp.2", "txt_attn.qkv", "txt_attn.proj", "txt_mlp.2")


def block_with_loras(nx, bits: int | None) -> dict:
    """A double block as large as the small model's, matrices in their packing, with a LoRA beside most of them."""
    rng = np.random.default_rng(0)
    prefix, flat = "double_blocks.0.", {}
    shapes = {name.removeprefix(prefix): s for name, s in flux_shapes(SMALL).items() if name.startswith(prefix)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape, np.float32) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)
        stem = name.rpartition(".")[0]
        arrays = stored(array, bits) if len(shape) == 2 else {name.rpartition(".")[2]: array}
        flat |= {f"{stem}.{leaf}": x for leaf, x in arrays.items()}
    for stem in LAYERS:
        rows, columns = shapes[f"{stem}.weight"]
        flat[f"{stem}.lora.down"] = 0.05 * rng.standard_normal((4, columns), np.float32)
        flat[f"{stem}.lora.up"] = 0.5 * rng.standard_normal((rows, 4), np.float32)
    return tree_map(nx.array, tree(flat))


def merged(nx, p: dict) -> dict:
    """The same block with each LoRA merged into a float matrix."""
    if "weight" not in p:
        return {key: merged(nx, value) if isinstance(value, dict) else value for key, value in p.items()}
    packing = {key: p[key] for key in ("weight", "scales", "biases") if key in p}
    weight = nx.dequantized(**packing) if "scales" in packing else p["weight"]
    lora = p.get("lora")
    return {"weight": weight if lora is None else weight + lora["up"] @ lora["down"], "bias": p["bias"]}


def loss_of_a_block(nx):
    """A loss of a double block's weights, on random streams and targets."""
    rng = np.random.default_rng(1)
    img, txt, target_img, target_txt = (nx.array(rng.standard_normal((2, n, 192), np.float32)) for n in (9, 5, 9, 5))
    mod = {name: nx.array(rng.standard_normal((2, 6 * 192), np.float32)) for name in ("img", "txt")}
    pe = rope(nx.array(rng.integers(0, 9, (2, 14, 3), dtype=np.int32)), SMALL.axes_dim)

    def loss(p):
        got_img, got_txt = double_block(p, img, txt, mod, pe)
        return nx.mean((got_img - target_img) ** 2) + nx.mean((got_txt - target_txt) ** 2)

    return loss


@pytest.mark.parametrize("backend", ["mlx", "mlx-fused", "mlx-readable"])
@packed_in
def test_loras_are_trained_beside_frozen_matrices(backend, bits):
    """Their gradients are what the merged matrix's gradient G makes of them, Bᵀ G and G Aᵀ, and lead downhill."""
    pytest.importorskip("mlx.core")
    with serving(backend) as nx:
        p, loss = block_with_loras(nx, bits), loss_of_a_block(nx)
        loras, frozen = partition(p, lambda name: ".lora." in name)
        value, gradient = nx.value_and_grad(lambda loras: loss(combine(loras, frozen)))(loras)
        whole_value, whole = nx.value_and_grad(loss)(merged(nx, p))
        assert abs(value.item() / whole_value.item() - 1) < 1e-5
        assert set(flatten(gradient)) == {f"{stem}.lora.{role}" for stem in LAYERS for role in ("down", "up")}
        flat, of_matrices = flatten(loras), flatten(whole)
        for name, got in flatten(gradient).items():
            stem, _, role = name.partition(".lora.")
            g, down, up = of_matrices[f"{stem}.weight"], flat[f"{stem}.lora.down"], flat[f"{stem}.lora.up"]
            expected = up.T @ g if role == "down" else g @ down.T
            assert relative_error(nx.to_numpy(got), nx.to_numpy(expected)) < 1e-4, name
        stepped = tree_map(lambda x, g: x - 1e-4 * g, loras, gradient)
        assert loss(combine(stepped, frozen)).item() < value.item()


def test_partition_and_combine_are_each_others_inverse():
    p = tree({"a.0.w": 1, "a.0.lora.up": 2, "a.1.w": 3, "b.0": 4, "b.1": 5})
    for wanted in ("lora", "a", "0", "nothing"):
        chosen, rest = partition(p, lambda name, wanted=wanted: wanted in name)
        assert combine(chosen, rest) == combine(rest, chosen) == p
    assert partition(p, lambda name: name == "a.1.w")[0] == {"a": [{}, {"w": 3}], "b": [{}, {}]}
    with pytest.raises(ValueError, match="two trees hold a leaf at the same place"):
        combine(p, p)
