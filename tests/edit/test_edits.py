"""Edits by the pipeline: seeds and batches, memory modes, quantised weights, every solver, and what is refused."""

import numpy as np
import pytest
from PIL import Image

import minflux
from minflux.backend import available
from minflux.edit.image_to_image import ImageToImage, skipped_steps
from minflux.errors import ArgumentError
from minflux.inference.load import load
from minflux.inference.memory import MODES
from tests.commands.runner import run

PIXELS = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), bool)
MASK[16:40, 8:32] = True
JOBS = {
    "image-to-image": lambda pipe: pipe("a cat", image=PIXELS, seed=3, steps=4),
    "inpainting": lambda pipe: pipe("a cat", image=PIXELS, mask=MASK, seed=3, steps=4),
    "drawn latents": lambda pipe: pipe("a cat", image=PIXELS, seed=3, steps=4, posterior="sample"),
    "FlowEdit": lambda pipe: pipe.edit(PIXELS, "a cat", "a dog", seed=3, steps=3, n_max=3, n_min=1),
}


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_every_memory_mode_gives_the_same_image(model, backend, job):
    images = [job(load(model, backend, memory=mode)).tobytes() for mode in MODES]
    assert images == images[:1] * len(MODES)


@pytest.fixture(scope="module")
def quantised(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised") / "model"
    assert run("convert", model, folder, "--format", "minflux", "--quantize", 8).exit_code == 0
    return folder


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_quantised_weights_edit_nearly_alike(model, quantised, backend, job):
    exact, packed = (np.asarray(job(load(folder, backend))).astype(int) for folder in (model, quantised))
    assert np.abs(exact - packed).max() > 0
    assert np.abs(exact - packed).mean() < 4


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_a_batch_is_its_single_runs(model, posterior):
    pipe = minflux.load(model)
    how = {"image": PIXELS, "mask": MASK, "steps": 3, "posterior": posterior}
    both = pipe(["a cat", "a dog"], seed=[5, 9], **how)
    alone = [pipe(prompt, seed=seed, **how) for prompt, seed in (("a cat", 5), ("a dog", 9))]
    for one, other in zip(both, alone, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_the_noise_of_a_seed_is_text_to_images_unless_the_latents_are_drawn(model):
    """At strength 1 image-to-image is text to image, for its start is noise alone."""
    pipe = minflux.load(model)
    plain = pipe("a cat", seed=3)
    assert pipe("a cat", seed=3, image=PIXELS, strength=1.0) == plain
    assert pipe("a cat", seed=3, image=PIXELS, strength=1.0, posterior="sample") != plain


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "dpm++"])
def test_outside_the_mask_every_solver_returns_to_the_image(nx, model, solver):
    pipe, steps = load(model, nx), []
    pipe("a cat", image=PIXELS, mask=MASK, solver=solver, steps=4, on_step=steps.append)
    latents = nx.to_numpy(pipe.encode_image(PIXELS))
    kept = ~MASK[::8, ::8]
    np.testing.assert_allclose(nx.to_numpy(steps[-1].x)[0][kept], latents[0][kept], atol=1e-5)


def test_an_edit_without_a_call(model):
    pipe, steps = minflux.load(model), []
    image = pipe("a cat", image=PIXELS, seed=3, steps=4, strength=0.5, on_step=steps.append)
    edit = ImageToImage(pipe.encode_image(PIXELS), 0.5)
    *_, last = pipe.sample(pipe.encode("a cat"), 3, 4, edit=edit)
    np.testing.assert_array_equal(last.x, steps[-1].x)
    np.testing.assert_array_equal(pipe.decode(last.x)[0], np.asarray(image))


def test_a_path_will_do(model, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    pipe = minflux.load(model)
    assert pipe("a cat", image=tmp_path / "a.png", steps=2) == pipe("a cat", image=PIXELS, steps=2)


@pytest.mark.parametrize(("steps", "strength", "left"), [(20, 0.6, 12), (20, 0.33, 7), (28, 0.6, 17), (50, 0.92, 46)])
def test_the_steps_that_strength_leaves(steps, strength, left):
    assert steps - skipped_steps(steps, strength) == left == steps - int(max(steps - min(steps * strength, steps), 0))


BAD = {
    "strength must be a number above 0 and at most 1, got 0": {"image": PIXELS, "strength": 0},
    "strength must be a number above 0 and at most 1, got nan": {"image": PIXELS, "strength": float("nan")},
    "strength without an image: give image": {"strength": 0.5},
    "mask without an image": {"mask": MASK},
    "posterior must be one of 'mode', 'sample', got 'mean'": {"image": PIXELS, "posterior": "mean"},
    "width must be a multiple of 16 pixels, got 60": {"image": PIXELS, "width": 60},
    "mask: nothing of it is white": {"image": PIXELS, "mask": np.zeros((64, 64), bool)},
}


@pytest.mark.parametrize(("words", "how"), BAD.items(), ids=BAD)
def test_what_a_call_refuses(model, words, how):
    with pytest.raises(ArgumentError, match=words):
        minflux.load(model)("a cat", **how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"n_max": 0}, "n_max must be a whole number of at least 1, got 0"),
        ({"n_min": 24}, "n_min must be below n_max and steps, 24 and 28, got 24"),
        ({"n_avg": 1.5}, "n_avg must be a whole number of at least 1, got 1.5"),
    ],
)
def test_counts_that_flowedit_refuses(model, how, words):
    with pytest.raises(ArgumentError, match=words):
        minflux.load(model).edit(PIXELS, "a cat", "a dog", **how)


def test_latents_of_another_size_are_refused(model):
    pipe = minflux.load(model)
    with pytest.raises(ArgumentError, match=r"edit must have shape \(1, 4, 8, 4\)"):
        pipe.sample(pipe.encode("a cat"), width=64, height=32, edit=ImageToImage(pipe.encode_image(PIXELS)))
