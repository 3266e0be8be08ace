"""Step caching: which steps are skipped, and what comes of it, against diffusers and TeaCache's formula in PyTorch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel

import minflux
from minflux.backend import serving
from minflux.checkpoints.components.flux import from_diffusers as flux_to_bfl
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.tree import tree
from minflux.commands.main import main
from minflux.commands.png import read_png_settings
from minflux.errors import ArgumentError
from minflux.inference.step_cache import POLYNOMIAL, StepCache, change, check_step_cache, polynomial
from minflux.model.flux import FluxConfig, flux
from minflux.model.hooks import run
from minflux.model.latents import image_ids, text_ids
from tests import compare

CFG = FluxConfig(
    in_channels=12, out_channels=12, vec_in_dim=10, context_in_dim=14, hidden_size=24, num_heads=2, depth=2,
    depth_single_blocks=3, axes_dim=(4, 4, 4), guidance_embed=False,
)  # fmt: skip
TIMES = np.linspace(1, 0, 13, dtype=np.float32)
ROWS, COLUMNS, TEXT = 3, 5, 7


class Reference:
    """diffusers' transformer with random weights, and the steps of Euler's method with it."""

    def __init__(self, trial):
        self.module = trial.random(FluxTransformer2DModel.from_config(write_flux_config(CFG))).eval()
        self.x, self.txt = trial.randn(1, ROWS * COLUMNS, 12), trial.randn(1, TEXT, 14)
        self.y = trial.randn(1, 10)
        ids = image_ids(np.empty((1, 1, 1)), 2 * ROWS, 2 * COLUMNS), text_ids(np.empty((1, TEXT, 1)))
        self.ids = [torch.from_numpy(np.array(x[0])) for x in ids]
        self.computed: list[bool] = []

    def follow(self, velocity) -> torch.Tensor:
        x = self.x
        for t, t_next in pairwise(TIMES):
            self.computed.append(False)
            x = x + float(t_next - t) * velocity(x, torch.tensor([float(t)]))
        return x

    def call(self, x, t):
        return self.module(x, self.txt, self.y, t, *self.ids, return_dict=False)[0]

    def note(self, *_):
        self.computed[-1] = True

    @property
    def skipped(self) -> list[int]:
        return [i for i, computed in enumerate(self.computed) if not computed]


def ours(trial, reference: Reference, cache: StepCache):
    """Follow the same steps; return the tokens at the end."""
    p = tree(flux_to_bfl(trial.flat(reference.module)))
    run_block = cache.runner(run, CFG.depth + CFG.depth_single_blocks, len(TIMES) - 1)
    x, txt, y = (trial.array(a) for a in (reference.x, reference.txt, reference.y))
    img_ids, txt_ids = image_ids(x, 2 * ROWS, 2 * COLUMNS), text_ids(txt)
    for t, t_next in pairwise(TIMES):
        at = trial.nx.array(np.array([t], np.float32))
        v = flux(p, CFG, x, img_ids, txt, txt_ids, at, y, run_block=run_block)
        x = x + float(t_next - t) * v
    return x


@pytest.fixture
def exact(trial):
    """A trial in float32, in which both sides come to the same decisions, of the same random model in every run."""
    torch.manual_seed(0)
    if trial.dtype != "float32":
        pytest.skip("in bfloat16 a change near the threshold may fall on either side")
    return trial


@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.0])
def test_first_block_skips_diffusers_steps_and_gives_its_latents(exact, threshold):
    reference = Reference(exact)
    reference.module.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    reference.module.single_transformer_blocks[1].attn.register_forward_hook(reference.note)
    with reference.module.cache_context("cond"):
        expected = reference.follow(reference.call)
    cache = StepCache("first-block", threshold)
    exact.check(ours(exact, reference, cache), expected, compare.MODEL)
    assert cache.skipped == reference.skipped
    assert 0 not in cache.skipped


def test_thresholds_of_the_test_skip_nothing_some_and_most(exact):
    counts, reference = [], Reference(exact)
    for threshold in (1e-6, 0.7, 100):
        cache = StepCache("first-block", threshold)
        ours(exact, reference, cache)
        counts.append(len(cache.skipped))
    assert counts[0] == 0 < counts[1] < counts[2] == 11


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_teacache_is_the_published_rule(exact, threshold):
    """As its code for FLUX.1 has it: the image's residual over all blocks, and a sum that starts anew."""
    reference, state = Reference(exact), {"sum": 0.0, "step": 0}
    module = reference.module
    module.transformer_blocks[0].norm1.register_forward_hook(lambda *args: state.update(modulated=args[2][0]))
    module.transformer_blocks[0].register_forward_pre_hook(
        lambda block, args, kwargs: state.update(before=kwargs["hidden_states"], temb=kwargs["temb"]), with_kwargs=True
    )
    module.norm_out.register_forward_pre_hook(lambda layer, args: state.update(after=args[0], vec=args[1]))

    def velocity(x, t):
        previous = state.get("modulated")
        full = reference.call(x, t)  # whose hooks note what the rule looks at
        now, is_end = state["modulated"], state["step"] in (0, len(TIMES) - 2)
        if previous is not None:
            state["sum"] += np.poly1d(POLYNOMIAL)(((now - previous).abs().mean() / previous.abs().mean()).item())
        state["step"] += 1
        if not is_end and state["sum"] < threshold:
            return module.proj_out(module.norm_out.forward(state["before"] + state["residual"], state["vec"]))
        state["sum"], state["residual"] = 0.0, state["after"] - state["before"]
        reference.note()
        return full

    expected = reference.follow(velocity)
    cache = StepCache("teacache", threshold)
    exact.check(ours(exact, reference, cache), expected, compare.MODEL)
    assert cache.skipped == reference.skipped
    assert not {0, 11} & set(cache.skipped)


def test_the_polynomial_is_numpy_s():
    assert polynomial(0.07) == pytest.approx(np.poly1d(POLYNOMIAL)(0.07), rel=1e-12)


def test_of_two_rows_the_one_that_changes_more_decides(nx):
    before = nx.array(np.ones((2, 3, 4), np.float32))
    now = before * nx.array(np.array([1.25, 0.5], np.float32)[:, None, None])
    assert change(now, before) == pytest.approx(0.5)
    assert change(now[:1], before[:1]) == pytest.approx(0.25)


# -- the pipeline ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "mlx"])
@pytest.mark.parametrize("guidance", [1, 3])
def test_a_pipeline_skips_steps_and_says_which(model, backend, guidance):
    pipe = minflux.load(model, backend=backend)
    settings = {"steps": 8, "guidance": guidance}
    whole = pipe("a red house", **settings)
    nothing, some = StepCache("first-block", 1e-9), StepCache("first-block", 0.5)
    assert pipe("a red house", step_cache=nothing, **settings) == whole
    assert nothing.skipped == []
    assert pipe("a red house", step_cache=some, **settings) != whole
    assert some.skipped


def test_every_memory_mode_skips_the_same(model):
    latents = []
    for memory in ("resident", "streamed"):
        pipe = minflux.load(model, backend="numpy", memory=memory)
        *_, last = pipe.sample(pipe.encode("a red house"), steps=6, guidance=1, step_cache="teacache:1")
        latents.append(last.x)
    np.testing.assert_array_equal(*latents)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("magic", r"step_cache must be RULE\[:THRESHOLD\] with first-block or teacache, got 'magic'"),
        (7, "step_cache must be RULE"),
        ("first-block:x", "the threshold must be a number, got 'first-block:x'"),
        ("first-block:0", "the threshold must be above 0"),
        ("first-block:nan", "the threshold must be above 0"),
        ("teacache:1e9", "and at most 100"),
    ],
)
def test_a_wrong_step_cache_is_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        check_step_cache(given)


def test_what_a_step_cache_cannot_honour_is_refused(model):
    pipe = minflux.load(model, backend="numpy")
    with pytest.raises(ArgumentError, match="one velocity a step, not with heun"):
        pipe("a", step_cache="teacache", solver="heun")
    with pytest.raises(ArgumentError, match="one image at a time"):
        pipe(["a", "b"], step_cache="teacache")
    with pytest.raises(ArgumentError, match="goes without on_block"):
        pipe("a", step_cache="teacache", on_block=print)


def invoke(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def test_a_png_says_its_step_cache_and_is_generated_again(model, tmp_path):
    path, again = tmp_path / "a.png", tmp_path / "b.png"
    arguments = ["generate", "a red house", "--model", model, "--steps", "6", "--step-cache", "first-block:0.5"]
    result = invoke(*arguments, "--out", path)
    assert "step cache first-block:0.5: " in result.stderr
    assert " of 6 steps skipped" in result.stderr
    assert read_png_settings(path).step_cache == "first-block:0.5"
    invoke("generate", "--from", path, "--out", again)
    assert again.read_bytes() == path.read_bytes()
    invoke("generate", "a red house", "--model", model, "--steps", "6", "--out", again)
    assert read_png_settings(again).step_cache is None
    assert again.read_bytes() != path.read_bytes()


def test_a_gpu_s_compiled_blocks_are_skipped_too(model, monkeypatch):
    from minflux.backend.polynomial import can_compile

    if not can_compile():
        pytest.skip("on a CPU, mx.compile needs g++")
    pipe = minflux.load(model, backend="mlx")
    cache = StepCache("first-block", 0.7)
    with serving("mlx-fused") as nx:
        monkeypatch.setattr(type(pipe.nx), "on_gpu", True)
        *_, last = pipe.sample(pipe.encode("a red house"), steps=6, guidance=1, step_cache=cache)
        assert np.isfinite(nx.to_numpy(last.x)).all()
    assert cache.skipped
