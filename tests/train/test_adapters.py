"""LoRAs in training: their gradients are PEFT's on diffusers' transformer, and diffusers opens their files."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model_state_dict

from minflux.backend import get_backend, serving
from minflux.checkpoints.components.flux import flux_shapes, from_diffusers
from minflux.checkpoints.components.flux import write_config as diffusers_config
from minflux.checkpoints.lora import add_loras, read_lora
from minflux.checkpoints.quantise import dequantise, quantise, stem_of
from minflux.checkpoints.tree import flatten, partition, tree
from minflux.errors import ArgumentError, BackendError
from minflux.model.flux import FluxConfig
from minflux.model.hooks import run
from minflux.model.latents import image_ids, pack, text_ids
from minflux.train.adapters import TARGETS, as_branches, find_adapters, init_adapters, save_lora
from minflux.train.own import velocity_loss
from minflux.train.recompute import is_lora, recompute
from tests import compare, tiny_model

RANK, ALPHA = 3, 5.0
SCALE = ALPHA / RANK
EVERY = (*TARGETS, "proj_mlp", "proj_out", "norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
EVERY += ("x_embedder", "context_embedder", "linear_1", "linear_2")
DEV = replace(tiny_model.FLUX, depth=2, guidance_embed=True)
WITH_GRADIENTS = ("mlx", "mlx-readable", "mlx-fused")


@contextmanager
def on(name: str):
    try:
        with serving(name) as nx:
            yield nx
    except BackendError as error:
        pytest.skip(str(error))


def peft_model(cfg: FluxConfig, targets) -> FluxTransformer2DModel:
    """diffusers' transformer with random weights and a random LoRA by PEFT."""
    torch.manual_seed(0)
    trial = compare.Trial(get_backend("numpy"), "numpy", "float32")
    config = {k: v for k, v in diffusers_config(cfg).items() if k != "_class_name"}
    theirs = trial.random(FluxTransformer2DModel(**config))
    theirs.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(targets), init_lora_weights=False))
    return theirs


def base_of(theirs: FluxTransformer2DModel) -> dict[str, np.ndarray]:
    """Its weights without the LoRA, under our names."""
    state = {n.replace("base_layer.", ""): w.numpy() for n, w in theirs.state_dict().items() if ".lora_" not in n}
    return from_diffusers(state)


def inputs(cfg: FluxConfig, batch: int = 2, height: int = 4, width: int = 6, length: int = 5) -> list[np.ndarray]:
    """Latents, noise, times, and both texts."""
    rng = np.random.default_rng(1)
    shape = (batch, height, width, cfg.in_channels // 4)
    x0, noise = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    t = rng.uniform(0.1, 0.9, batch).astype(np.float32)
    txt = rng.standard_normal((batch, length, cfg.context_in_dim), np.float32)
    return [x0, noise, t, txt, rng.standard_normal((batch, cfg.vec_in_dim), np.float32)]


def their_loss(theirs: FluxTransformer2DModel, arrays: list[np.ndarray]) -> torch.Tensor:
    """The loss as diffusers' training script has it: guidance 1, and noise - latents to be predicted."""
    x0, noise, t, txt, y = map(torch.from_numpy, arrays)
    at = t[:, None, None, None]
    tokens = torch.from_numpy(pack(((1 - at) * x0 + at * noise).numpy()))
    ids = [
        torch.from_numpy(i[0].astype(np.float32))
        for i in (image_ids(x0.numpy(), *x0.shape[1:3]), text_ids(txt.numpy()))
    ]
    guidance = torch.ones(len(t)) if theirs.config.guidance_embeds else None
    v = theirs(tokens, txt, y, t, ids[0], ids[1], guidance, return_dict=False)[0]
    return torch.nn.functional.mse_loss(v, torch.from_numpy(pack((noise - x0).numpy())))


def gradients(theirs: FluxTransformer2DModel, arrays: list[np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """The loss, and its gradient by every A and B, as PyTorch has them, under PEFT's names."""
    with torch.enable_grad():
        loss = their_loss(theirs, arrays)
        loss.backward()
    grads = {n: w.grad for n, w in theirs.named_parameters() if ".lora_" in n}
    return loss.item(), {n.replace(".default.", "."): g.numpy() for n, g in grads.items()}


def gradients_of(nx, cfg, base, adapters, run_block):
    """Ours, as a function of the LoRA's weights and the arrays of a batch."""

    def loss(flat, *arrays):
        p = tree(base | as_branches(adapters, flat, SCALE, base))
        return velocity_loss(p, cfg, *arrays, run_block=run_block)

    return nx.value_and_grad(loss)


def our_gradients(nx, cfg, base, adapters, trained, arrays, run_block):
    """The same by ours."""
    base = {name: nx.array(w) for name, w in base.items()}
    step = gradients_of(nx, cfg, base, adapters, run_block)
    return step({n: nx.array(w) for n, w in trained.items()}, *map(nx.array, arrays))


def trained_by(theirs: FluxTransformer2DModel) -> dict[str, np.ndarray]:
    return {name: w.numpy() for name, w in get_peft_model_state_dict(theirs).items()}


# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["keep", "recompute"])
@pytest.mark.parametrize("cfg", [tiny_model.FLUX, DEV], ids=["schnell", "dev"])
@pytest.mark.parametrize("backend", WITH_GRADIENTS)
def test_every_gradient_is_pefts(backend, cfg, how):
    theirs, arrays = peft_model(cfg, EVERY), inputs(cfg)
    expected_loss, expected = gradients(theirs, arrays)
    adapters = find_adapters(cfg, EVERY)
    with on(backend) as nx:
        run_block = recompute(nx, is_lora) if how == "recompute" else run
        loss, grads = our_gradients(nx, cfg, base_of(theirs), adapters, trained_by(theirs), arrays, run_block)
        assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            assert np.abs(expected[name]).max() > 0, name
            compare.assert_close(nx, grad, torch.from_numpy(expected[name]), 1e-4)


@pytest.mark.slow
def test_every_gradient_is_pefts_at_the_full_width_of_flux():
    """Of 3072 numbers a token and 24 heads of 128, in one block of each kind."""
    cfg = FluxConfig(depth=1, depth_single_blocks=1)
    theirs, arrays = peft_model(cfg, TARGETS), inputs(cfg, batch=1)
    _, expected = gradients(theirs, arrays)
    base, trained = base_of(theirs), trained_by(theirs)
    with on("mlx") as nx:
        _, grads = our_gradients(nx, cfg, base, find_adapters(cfg), trained, arrays, recompute(nx, is_lora))
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            compare.assert_close(nx, grad, torch.from_numpy(expected[name]), 1e-4)


def test_the_loss_is_diffusers_on_every_backend(nx):
    theirs, arrays = peft_model(DEV, EVERY), inputs(DEV)
    base = {name: nx.array(w) for name, w in base_of(theirs).items()}
    flat = {name: nx.array(w) for name, w in trained_by(theirs).items()}
    p = tree(base | as_branches(find_adapters(DEV, EVERY), flat, SCALE, base))
    loss = velocity_loss(p, DEV, *map(nx.array, arrays))
    assert float(loss) == pytest.approx(their_loss(theirs, arrays).item(), rel=1e-5)


def test_a_quantised_base_gives_the_gradients_of_the_matrix_it_stands_for():
    cfg = FluxConfig(16, 16, 16, 24, 64, 4.0, 2, 1, 1, (8, 12, 12), guidance_embed=False)
    theirs, arrays = peft_model(cfg, TARGETS), inputs(cfg)
    adapters, trained = find_adapters(cfg), trained_by(theirs)
    with on("mlx") as nx:
        packed = dict(base_of(theirs))
        for name in [name for name in packed if name.endswith((".qkv.weight", ".linear1.weight"))]:
            three = zip(("weight", "scales", "biases"), quantise(packed[name], 8), strict=True)
            packed |= {f"{stem_of(name)}.{ending}": array for ending, array in three}
        packed = {name: nx.array(w) for name, w in packed.items()}
        widened = dequantise(packed)
        for run_block in (run, recompute(nx, is_lora)):
            got = our_gradients(nx, cfg, packed, adapters, trained, arrays, run_block)
            expected = our_gradients(nx, cfg, widened, adapters, trained, arrays, run)
            assert float(got[0]) == pytest.approx(float(expected[0]), rel=1e-5)
            for name, grad in got[1].items():
                compare.assert_close(nx, grad, torch.from_numpy(np.array(expected[1][name])), 1e-4)


def test_half_the_base_stays_half():
    """A LoRA in float32 beside a base in bfloat16 is computed in bfloat16, and its gradient is float32 again."""
    cfg = tiny_model.FLUX
    theirs, arrays = peft_model(cfg, TARGETS), inputs(cfg)
    with on("mlx") as nx:
        base = {n: nx.array(w).astype(nx.xp.bfloat16) for n, w in base_of(theirs).items()}
        flat = {n: nx.array(w) for n, w in trained_by(theirs).items()}
        branches = as_branches(find_adapters(cfg), flat, SCALE, base)
        assert {branch.dtype for branch in branches.values()} == {nx.xp.bfloat16}
        loss, grads = our_gradients(nx, cfg, base, find_adapters(cfg), trained_by(theirs), arrays, run)
        assert {grad.dtype for grad in grads.values()} == {nx.float32}
        assert float(loss) == pytest.approx(their_loss(theirs, arrays).item(), rel=2e-2)


# -- memory --------------------------------------------------------------------------------------------------


def test_recomputing_takes_less_memory():
    mx = pytest.importorskip("mlx.core")
    cfg = replace(tiny_model.FLUX, depth=2, depth_single_blocks=8)
    theirs = peft_model(cfg, TARGETS)
    adapters, peaks = find_adapters(cfg), []
    with on("mlx-readable") as nx:
        base = {name: nx.array(w) for name, w in base_of(theirs).items()}
        flat = {name: nx.array(w) for name, w in trained_by(theirs).items()}
        arrays = list(map(nx.array, inputs(cfg, batch=4, height=32, width=32)))
        nx.eval(base, flat, arrays)
        held = mx.get_active_memory()
        for run_block in (run, recompute(nx, is_lora)):
            step = nx.compile(gradients_of(nx, cfg, base, adapters, run_block))  # as in training
            mx.reset_peak_memory()
            nx.eval(step(flat, *arrays))
            peaks.append(mx.get_peak_memory() - held)
    assert peaks[1] < 0.4 * peaks[0]


# -- the start -----------------------------------------------------------------------------------------------


def test_a_lora_begins_as_pefts_do_and_changes_nothing():
    cfg = tiny_model.FLUX
    adapters = find_adapters(cfg)
    flat = init_adapters(adapters, RANK, seed=0)
    theirs = peft_model(cfg, TARGETS)
    assert {name: w.shape for name, w in flat.items()} == {name: w.shape for name, w in trained_by(theirs).items()}
    for name, w in flat.items():
        bound = w.shape[1] ** -0.5
        assert w.dtype == np.float32
        assert (w == 0).all() if name.endswith("lora_B.weight") else 0.8 * bound < np.abs(w).max() <= bound
    again = init_adapters(adapters, RANK, seed=0)
    assert all((flat[name] == again[name]).all() for name in flat)
    base = flatten(tiny_model.random_tree(flux_shapes(cfg), np.random.default_rng(0)))
    arrays = inputs(cfg)
    p = tree(base | as_branches(adapters, flat, SCALE, base))
    assert velocity_loss(p, cfg, *arrays) == velocity_loss(tree(base), cfg, *arrays)
    trained, _ = partition(p, is_lora)
    assert len(flatten(trained)) == 2 * 10  # of two blocks: 4 + 4 joint or whole matrices, and one in each single block


def test_targets_are_ends_of_names():
    names = [adapter.name for adapter in find_adapters(tiny_model.FLUX, ["to_out.0", "proj_out"])]
    assert names == [
        "transformer_blocks.0.attn.to_out.0",
        "single_transformer_blocks.0.proj_out",
        "single_transformer_blocks.1.proj_out",
        "proj_out",
    ]


@pytest.mark.parametrize("target", ["o_q", "attn", "img_attn.qkv", ""])
def test_a_target_that_fits_nothing(target):
    with pytest.raises(ArgumentError, match=r"fits no matrix of this model; it has .*attn\.to_q.*proj_mlp.*proj_out"):
        find_adapters(tiny_model.FLUX, ["attn.to_q", target])


# -- the file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [tiny_model.FLUX, DEV], ids=["schnell", "dev"])
def test_diffusers_opens_the_file_with_the_same_result(tmp_path, cfg):
    """What was trained gives the same velocity in diffusers, and in minflux, from the file, as in training."""
    theirs, arrays = peft_model(cfg, EVERY), inputs(cfg)
    base, trained, nx = base_of(theirs), trained_by(theirs), get_backend("numpy")
    path = tmp_path / "mine.safetensors"
    save_lora(path, nx, trained, SCALE)
    expected = their_loss(theirs, arrays).item()

    bare = FluxTransformer2DModel(**{k: v for k, v in diffusers_config(cfg).items() if k != "_class_name"}).eval()
    theirs.unload_lora()
    bare.load_state_dict(theirs.state_dict())
    plain = their_loss(bare, arrays).item()
    bare.load_lora_adapter(safetensors.torch.load_file(path), prefix="transformer")
    assert their_loss(bare, arrays).item() == pytest.approx(expected, rel=1e-5)
    assert abs(plain - expected) > 1e-3

    read = add_loras(base, read_lora(path, {"transformer": cfg}))
    assert velocity_loss(tree(read), cfg, *arrays) == pytest.approx(expected, rel=1e-5)
