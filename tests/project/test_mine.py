"""What the chapters build (chapters/mine.py) and the page made of it (examples/onefile.py) are minflux's model."""

import ast
import importlib.util
import inspect
import re

import nbformat
import numpy as np
import pytest

from chapters import check, mine, thumbnails
from minflux import zoo
from minflux.backend import get_backend
from minflux.checkpoints.components.flux import flux_shapes
from minflux.inference.load import load
from minflux.inference.text import Tokenizer
from minflux.model import blocks, embeddings, latents, modulation, rope
from minflux.model import flux as model
from minflux.model.flux import FluxConfig
from minflux.sampling.guidance import guided
from minflux.sampling.noise import noise
from minflux.sampling.solvers import euler
from minflux.sampling.timesteps import Schedule
from tests import tiny_model
from tests.project.test_docs import ROOT
from tests.shipped import needs_weights

PAGE = ROOT / "examples" / "onefile.py"
SPEC = importlib.util.spec_from_file_location("onefile", PAGE)
onefile = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(onefile)

LONGEST = 330  # lines of code: neither empty nor comment nor docstring
CFG = FluxConfig(
    in_channels=8, out_channels=8, vec_in_dim=10, context_in_dim=12, hidden_size=36, num_heads=3, depth=2,
    depth_single_blocks=1, axes_dim=(2, 4, 6),
)  # fmt: skip
RNG = np.random.default_rng(0)
NX = get_backend("numpy")
WEIGHTS = tiny_model.random_tree(flux_shapes(CFG), RNG)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_same(ours, theirs):
    """Both are float32, and apart by the rounding of some hundred sums at most."""
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def functions(source: str) -> dict[str, str]:
    defined = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return {node.name: ast.get_source_segment(source, node) for node in defined}


def lines_of_code(source: str) -> int:
    expressions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    docs = [node for node in expressions if isinstance(node.value, ast.Constant)]
    hidden = {line for node in docs for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(source.splitlines(), start=1)
    return sum(line.lstrip()[:1] not in ("", "#") for number, line in lines if number not in hidden)


# -- each function is the package's --------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (7, 3.0)])
def test_timesteps_and_steps_are_the_package_s(steps, shift):
    times = Schedule(shift).timesteps(steps, tokens=4)
    assert mine.timesteps(steps, shift) == times.tolist()
    x, field = drawn(1, 2, 4, 3), lambda x, t: t * x + 1
    *_, last = euler(field, x, times)
    assert_same(mine.euler(field, x, times.tolist()), last.x)


def test_guidance_is_the_package_s():
    v = drawn(4, 2, 2, 3)
    assert_same(mine.guided(v, 2.5), guided(v, 2.5))


def test_the_vector_that_steers_is_the_package_s():
    t, y, strength = np.float32([0.3, 1.0]), drawn(2, 10), np.float32([3.5, 1.0])
    np.testing.assert_allclose(mine.sinusoids(t), embeddings.timestep_embedding(t, 256), atol=2e-4)  # 1000 · 2e-7
    assert_same(mine.embedder(WEIGHTS["vector_in"], y), embeddings.mlp_embedder(WEIGHTS["vector_in"], y))
    for guidance in (None, strength):
        ours, theirs = (f(WEIGHTS, t, y, guidance) for f in (mine.condition, model.condition))
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_tokens_and_their_numbers_are_the_package_s():
    x = drawn(2, 4, 6, 3)
    tokens = mine.pack(x)
    np.testing.assert_array_equal(tokens, latents.pack(x))
    np.testing.assert_array_equal(mine.unpack(tokens, 4, 6), x)
    ids = np.concatenate([latents.text_ids(drawn(1, 5, 2)), latents.image_ids(drawn(1, 2), 4, 6)], axis=1)
    np.testing.assert_array_equal(mine.position_ids(5, 4, 6), ids)


def test_attention_is_the_package_s_and_takes_a_bias():
    q, k, v, bias = drawn(2, 3, 5, 12), drawn(2, 3, 5, 12), drawn(2, 3, 5, 12), drawn(5, 5)
    assert_same(mine.attention(q, k, v), NX.attention(q, k, v))
    assert_same(mine.attention(q, k, v, bias), NX.attention(q, k, v, bias=bias))
    np.testing.assert_array_equal(mine.split_heads(mine.merge_heads(q), 3), q)


def test_rotary_positions_are_the_package_s():
    ids, q = RNG.integers(0, 64, (2, 5, 3)).astype(np.int32), drawn(2, 3, 5, 12)
    ours, theirs = mine.rope(ids, CFG.axes_dim), rope.rope(ids, CFG.axes_dim)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    assert_same(mine.turn(q, ours), rope.apply_rope(q, theirs))


def test_modulation_is_the_package_s():
    lin, vec, x = WEIGHTS["single_blocks"][0]["modulation"]["lin"], drawn(2, 36), drawn(2, 5, 36)
    ours = mine.modulation(lin, vec, 3)
    theirs = modulation.chunks(modulation.modulation({"lin": lin}, vec), 3)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    assert_same(mine.modulate(x, *ours[:2]), modulation.modulate(x, *theirs[:2]))


def test_both_blocks_are_the_package_s():
    double, single, vec, x = WEIGHTS["double_blocks"][1], WEIGHTS["single_blocks"][0], drawn(2, 36), drawn(2, 11, 36)
    pe, mod = mine.rope(mine.position_ids(5, 4, 6), CFG.axes_dim), modulation.modulation
    pe = tuple(np.repeat(part, 2, axis=0) for part in pe)
    mods = {name: mod(double[f"{name}_mod"], vec) for name in ("img", "txt")}
    ours = mine.double_block(double, x[:, 5:], x[:, :5], vec, pe)
    theirs = blocks.double_block(double, x[:, 5:], x[:, :5], mods, pe)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    there = blocks.single_block(single, x, mod(single["modulation"], vec), pe)
    assert_same(mine.single_block(single, x, vec, pe), there)


def test_the_transformer_is_the_package_s():
    img, txt, t, y = drawn(1, 6, 8), drawn(1, 5, 12), np.float32([0.7]), drawn(1, 10)
    ids, vec = mine.position_ids(5, 4, 6).astype(np.int32), model.condition(WEIGHTS, t, y, t)
    theirs = model.flux(WEIGHTS, CFG, img, ids[:, 5:], txt, ids[:, :5], t, y, t)
    assert_same(mine.flux(WEIGHTS, img, txt, vec, mine.rope(ids, CFG.axes_dim)), theirs)


# -- where it is built ---------------------------------------------------------------------------------------------


def sections() -> dict[str, list[str]]:
    """The functions below each title of the file."""
    parts = re.split(r"^# -- (.+?) -+$", inspect.getsource(mine), flags=re.MULTILINE)[1:]
    return {title: list(functions(source)) for title, source in zip(parts[::2], parts[1::2], strict=True)}


def test_each_chapter_ends_with_a_function_of_the_file_and_its_solution_is_the_file_s():
    chapters, built = list(thumbnails.read(check.FOLDER).values())[:10], functions(inspect.getsource(mine))
    for notebook, (title, names) in zip(chapters, sections().items(), strict=True):
        heading = thumbnails.heading(notebook)[0]
        assert title.lower() in heading.lower()
        path = next(check.FOLDER.glob(f"solutions/{heading[:2]}_*.ipynb"))
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        assert [name for name in names if built[name] in code] != [], f"{path.name} has none of {names}"
        assert any("Into `mine.py`" in cell.source for cell in notebook.cells)


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_has_what_the_chapters_build_word_for_word():
    built, page = functions(inspect.getsource(mine)), functions(PAGE.read_text())
    assert {name: page.get(name) for name in built} == built


def test_the_page_imports_nothing_of_minflux_and_is_one_page():
    tree = ast.parse(PAGE.read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in imported} == {
        *("PIL", "argparse", "itertools", "json", "math", "numpy", "pathlib", "tokenizers")
    }
    assert lines_of_code(PAGE.read_text()) <= LONGEST


@needs_weights
@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("a large owl on a green background", {"seed": 3}),
        ("a cat left of an apple on a blue background", {"seed": 7, "steps": 5, "guidance": 1.0}),
        ("a bee above a hat on a pink background", {"seed": 1, "steps": 4, "width": 96, "height": 64}),
    ],
)
@pytest.mark.filterwarnings("ignore::minflux.inference.hints.Hint")
def test_the_page_draws_what_the_package_draws(prompt, settings):
    theirs = np.asarray(load("tiny", backend="numpy")(prompt, **settings), int)
    ours = onefile.draw(onefile.TINY, prompt, **settings)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 1e-3  # what lies on the edge between two levels


@pytest.mark.filterwarnings("ignore::minflux.inference.hints.Hint")
def test_the_page_opens_models_with_guidance_inside_and_a_shift_by_size(tmp_path):
    folder = tiny_model.make(tmp_path / "model", guidance=True)
    (folder / "tokenizer" / "tokenizer.json").unlink()  # FLUX.1's has none
    theirs = np.asarray(load(folder, backend="numpy")("a cat", guidance=3.0, width=96, seed=2), int)
    assert np.abs(onefile.draw(folder, "a cat", guidance=3.0, width=96, seed=2) - theirs).max() <= 1


@pytest.mark.parametrize(
    "prompt",
    ["", "a cat's 2 hats, don't — Ärger\n now", "owl " * 40, "A sign that says HELLO above a Dog.", 'a sign "abc"'],
)
def test_the_page_s_tokenizers_are_the_package_s(tmp_path, prompt):
    files = [zoo.FOLDER / "tiny" / "tokenizer" / name for name in ("vocab.json", "merges.txt")]
    onto = onefile.padded(onefile.clip_tokenizer(*map(str, files)), prompt, 24, "<|endoftext|>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of a prompt that is cut
        for ours, name, length in (
            (onto, "tokenizer", 24),
            (onefile.clip_ids(zoo.FOLDER / "tiny" / "tokenizer", prompt, 24), "tokenizer", 24),
            (onefile.t5_ids(zoo.FOLDER / "tiny" / "tokenizer_2", prompt, 20), "tokenizer_2", 20),
        ):
            theirs = Tokenizer.from_folder(zoo.FOLDER / "tiny" / name)([prompt], length)
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", [0x3F80, 0xC020]), ("F16", [0x3C00, 0xC100])])
def test_the_page_reads_half_as_many_bits(dtype, bits):
    numbers = np.array(bits, "<u2").view(np.uint8)
    np.testing.assert_array_equal(onefile.as_float32(numbers, dtype, [2], [0, 4]), np.float32([1, -2.5]))


def test_the_page_s_noise_is_pytorch_s():
    np.testing.assert_array_equal(onefile.noise(11, (4, 16)), noise(11, (4, 16)))
