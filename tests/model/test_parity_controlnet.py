"""ControlNets against diffusers' `FluxControlNetModel`, `FluxMultiControlNetModel` and its transformer."""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxControlNetModel, FluxMultiControlNetModel, FluxTransformer2DModel
from hypothesis import given
from hypothesis import strategies as st

from minflux.checkpoints.components.controlnet import from_diffusers, write_config
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.tree import tree
from minflux.model.controlnet import controlnet, embed_hint, spread
from minflux.model.flux import condition, velocity
from minflux.model.latents import image_ids, text_ids
from minflux.model.modulation import block_modulations, modulations
from minflux.model.rope import rope
from tests.compare import MODEL
from tests.strategies import batches, controlnet_configs, flux_configs, tokens

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers' own use of it
KINDS = ("latents", "union", "pixels")
sides = st.integers(1, 4)


def oracle(trial, cfg):
    """diffusers' ControlNet of these sizes with random weights, its projections too, and its weights as our tree."""
    module = trial.random(FluxControlNetModel.from_config(write_config(cfg)))
    return module, tree(from_diffusers(trial.flat(module)))


def shown_to(trial, cfg, batch, rows, cols):
    """A random control image: what diffusers' ControlNet is given, and ours, latents or pixels (B, H, W, C)."""
    if cfg.sees_pixels:
        pixels = trial.randn(batch, 3, 16 * rows, 16 * cols)
        return pixels, pixels.permute(0, 2, 3, 1)
    latents = trial.randn(batch, 2 * rows, 2 * cols, cfg.in_channels // 4)
    channels_second = latents.permute(0, 3, 1, 2).reshape(batch, -1, rows, 2, cols, 2)
    return channels_second.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, -1), latents


class Case:
    """The inputs of a ControlNet at a step, as tensors and as the trial's arrays."""

    def __init__(self, trial, cfg, batch, rows, cols, length):
        self.trial, self.cfg, self.rows, self.cols = trial, cfg, rows, cols
        self.img = trial.randn(batch, rows * cols, cfg.in_channels)
        self.txt, self.y = trial.randn(batch, length, cfg.context_in_dim), trial.randn(batch, cfg.vec_in_dim)
        self.t = torch.rand(batch)
        self.guidance = 1 + 9 * torch.rand(batch) if cfg.guidance_embed else None
        ids = image_ids(trial.array(self.img), 2 * rows, 2 * cols), text_ids(trial.array(self.txt))
        self.ids = [trial.tensor(i)[0] for i in ids]

    def theirs(self, module, cond, mode):
        mode = None if mode is None else torch.full((len(self.img), 1), mode)
        return module(
            self.img, cond, mode, 1.0, encoder_hidden_states=self.txt, pooled_projections=self.y, timestep=self.t,
            img_ids=self.ids[0], txt_ids=self.ids[1], guidance=self.guidance, return_dict=False,
        )  # fmt: skip

    def ours(self, p, shown, cfg, mode):
        array = self.trial.array
        guidance = array(self.guidance, "float32") if cfg.guidance_embed else None
        mod = block_modulations(p, condition(p, array(self.t, "float32"), array(self.y), guidance))
        txt = array(self.txt)
        token = txt if mode is None else self.trial.nx.concatenate([txt, txt[:, :1]], axis=1)
        ids = self.trial.nx.concatenate([text_ids(token), image_ids(txt, 2 * self.rows, 2 * self.cols)], axis=1)
        hint, pe = embed_hint(p, array(shown)), rope(ids, cfg.axes_dim, cfg.theta)
        return controlnet(p, array(self.img), hint, txt, mod, pe, mode)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), batch=batches, rows=sides, cols=sides, length=tokens)
def test_residuals(trial, kind, data, batch, rows, cols, length):
    cfg = data.draw(controlnet_configs(kind))
    module, p = oracle(trial, cfg)
    mode = data.draw(st.integers(0, cfg.modes - 1)) if cfg.modes else None
    case = Case(trial, cfg, batch, rows, cols, length)
    cond, shown = shown_to(trial, cfg, batch, rows, cols)
    double, single = case.theirs(module, cond, mode)
    got = case.ours(p, shown, cfg, mode)
    assert len(got) == cfg.depth + cfg.depth_single_blocks
    for i, expected in enumerate(double):
        trial.close("ControlNet's residuals", got[f"double_blocks.{i}"], expected, MODEL)
    for i, expected in enumerate(single or ()):
        trial.close("ControlNet's residuals", got[f"single_blocks.{i}"], expected, MODEL)


@pytest.mark.parametrize("kinds", [("latents", "latents"), ("union", "latents"), ("pixels", "pixels")], ids="+".join)
@given(data=st.data(), batch=batches, rows=sides, cols=sides, length=tokens)
def test_several(trial, kinds, data, batch, rows, cols, length):
    first = data.draw(controlnet_configs(kinds[0]))
    sizes = {name: value for name, value in vars(first).items() if name != "modes"}
    cfgs = first, replace(data.draw(controlnet_configs(kinds[1])), **sizes)
    modules, trees = zip(*(oracle(trial, cfg) for cfg in cfgs), strict=True)
    case = Case(trial, first, batch, rows, cols, length)
    conds, shown = zip(*(shown_to(trial, cfg, batch, rows, cols) for cfg in cfgs), strict=True)
    modes = [1 if cfg.modes else None for cfg in cfgs]
    expected = FluxMultiControlNetModel(list(modules))(
        case.img, conds, [torch.full((batch,), -1 if mode is None else mode) for mode in modes], [0.7, 1.3],
        encoder_hidden_states=case.txt, pooled_projections=case.y, timestep=case.t, img_ids=case.ids[0],
        txt_ids=case.ids[1], guidance=case.guidance, return_dict=False,
    )  # fmt: skip
    one, other = (case.ours(p, x, cfg, mode) for p, x, cfg, mode in zip(trees, shown, cfgs, modes, strict=True))
    theirs = [residual for kind in expected for residual in kind or ()]
    for name, residual in zip(one, theirs, strict=True):
        trial.close("several ControlNets' residuals", 0.7 * one[name] + 1.3 * other[name], residual, MODEL)


@given(data=st.data(), batch=batches, rows=sides, cols=sides)
def test_the_pixels_of_a_control_image(trial, data, batch, rows, cols):
    cfg = data.draw(controlnet_configs("pixels"))
    module, p = oracle(trial, cfg)
    cond, shown = shown_to(trial, cfg, batch, rows, cols)
    latents = module.input_hint_block(cond).reshape(batch, -1, rows, 2, cols, 2)
    expected = module.controlnet_x_embedder(latents.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, -1))
    trial.close("ControlNet, a control image as pixels", embed_hint(p, trial.array(shown)), expected)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), batch=batches, rows=sides, cols=sides, length=tokens, depths=st.tuples(sides, sides))
def test_the_transformer_with_residuals(trial, kind, data, batch, rows, cols, length, depths):
    flux_cfg = data.draw(flux_configs(wide=True, depth=depths[0], depth_single_blocks=depths[1]))
    theirs = trial.random(FluxTransformer2DModel.from_config(write_flux_config(flux_cfg)))
    p = tree(flux_to_bfl(trial.flat(theirs)))
    counts = data.draw(st.integers(1, 3)), 0 if kind == "pixels" else data.draw(st.integers(0, 3))
    shape = batch, rows * cols, flux_cfg.hidden_size
    double, single = ([trial.randn(*shape) for _ in range(count)] for count in counts)
    case = Case(trial, flux_cfg, batch, rows, cols, length)
    expected = theirs(
        case.img, case.txt, case.y, case.t, *case.ids, guidance=case.guidance, controlnet_block_samples=double,
        controlnet_single_block_samples=single or None, controlnet_blocks_repeat=kind == "pixels", return_dict=False,
    )[0]  # fmt: skip

    array = trial.array
    guidance = array(case.guidance, "float32") if flux_cfg.guidance_embed else None
    mod = modulations(p, condition(p, array(case.t, "float32"), array(case.y), guidance))
    ids = [text_ids(array(case.txt)), image_ids(array(case.img), 2 * rows, 2 * cols)]
    pe = rope(trial.nx.concatenate(ids, axis=1), flux_cfg.axes_dim, flux_cfg.theta)
    named = {f"double_blocks.{i}": array(r) for i, r in enumerate(double)}
    named |= {f"single_blocks.{i}": array(r) for i, r in enumerate(single)}
    added = {name: [r] for name, r in spread(named, flux_cfg, repeats=kind == "pixels").items()}
    got = velocity(p, array(case.img), array(case.txt), mod, pe, residuals=added)
    trial.close("FLUX transformer with residuals of a ControlNet", got, expected, MODEL)
