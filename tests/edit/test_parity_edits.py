"""Image-to-image, inpainting and FlowEdit: diffusers' latents at every step, and the published algorithm's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from PIL import Image, ImageOps

import minflux
from minflux.edit.inpaint import Inpaint, latent_mask
from minflux.edit.kontext import LAYOUTS, Reference, places
from minflux.inference.load import load
from minflux.sampling.guidance import Guidance
from tests import compare
from tests.conftest import CHOSEN

FLOAT32 = pytest.mark.parametrize("trial", [(name, "float32") for name in CHOSEN], indirect=True, ids=CHOSEN)
PROMPT, WIDTH, HEIGHT = "a cat left of an apple", 80, 48


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A random image, smooth and coarse at once."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 10, 3), np.uint8))
    return coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """A mask with a slanted edge."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(((columns + rows > 55) * 255).astype(np.uint8))


def theirs_of(kind, folder, **settings) -> list[torch.Tensor]:
    """Every step's latents (1, h, w, C) of a pipeline of diffusers."""
    pipe, steps = kind.from_pretrained(folder), []
    pipe.set_progress_bar_config(disable=True)

    def keep(pipe, index, t, tensors):
        steps.append(pipe._unpack_latents(tensors["latents"], HEIGHT, WIDTH, 8).permute(0, 2, 3, 1))
        return tensors

    pipe(
        prompt=PROMPT, width=WIDTH, height=HEIGHT, max_sequence_length=24, generator=torch.Generator().manual_seed(7),
        callback_on_step_end=keep, output_type="latent", **settings,
    )  # fmt: skip
    return steps


def ours_of(pipe, **settings):
    steps = []
    result = pipe(PROMPT, seed=7, on_step=steps.append, posterior="sample", **settings)
    return steps, result


@FLOAT32
@pytest.mark.parametrize(("steps", "strength"), [(5, 0.6), (5, 0.5), (20, 0.1), (4, 1.0)])
@pytest.mark.parametrize("kind", ["plain", "dev"])
def test_image_to_image_is_diffusers_at_every_step(trial, kind, model, dev_model, image, steps, strength):
    folder = dev_model if kind == "dev" else model
    expected = theirs_of(
        FluxImg2ImgPipeline, folder, image=image, strength=strength, num_inference_steps=steps, guidance_scale=3.5
    )
    guidance = 3.5 if kind == "dev" else 1.0
    got, _ = ours_of(load(folder, trial.nx), image=image, strength=strength, steps=steps, guidance=guidance)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("image-to-image, each step's latents", step.x, theirs, compare.MODEL)


@FLOAT32
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("kind", ["plain", "dev"])
def test_inpainting_is_diffusers_at_every_step(trial, kind, model, dev_model, image, mask, strength):
    folder = dev_model if kind == "dev" else model
    expected = theirs_of(
        FluxInpaintPipeline, folder, image=image, mask_image=mask, strength=strength, num_inference_steps=5,
        guidance_scale=3.5,
    )  # fmt: skip
    guidance = 3.5 if kind == "dev" else 1.0
    got, result = ours_of(load(folder, trial.nx), image=image, mask=mask, strength=strength, steps=5, guidance=guidance)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("inpainting, each step's latents", step.x, theirs, compare.MODEL)
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(result)[kept], np.asarray(image)[kept])
    assert (np.asarray(result)[~kept] != np.asarray(image)[~kept]).any()


@FLOAT32
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_fill_is_diffusers_at_every_step(trial, fill_model, image, mask, strength):
    expected = theirs_of(
        FluxFillPipeline, fill_model, image=image, mask_image=mask, strength=strength, num_inference_steps=4
    )
    pipe = load(fill_model, trial.nx)
    got, result = ours_of(pipe, image=image, mask=mask, strength=strength, steps=4, guidance=30.0)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("Fill, each step's latents", step.x, theirs, compare.MODEL)
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(np.asarray(result)[kept], np.asarray(image)[kept])


@FLOAT32
def test_control_is_diffusers_at_every_step(trial, control_model, image):
    expected = theirs_of(
        FluxControlPipeline, control_model, control_image=image, num_inference_steps=4, guidance_scale=10.0
    )
    got, _ = ours_of(load(control_model, trial.nx), control=image, steps=4, guidance=10.0)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("Canny and Depth, each step's latents", step.x, theirs, compare.MODEL)


@FLOAT32
def test_an_image_and_a_control_image_are_diffusers_at_every_step(trial, control_model, image):
    edges = ImageOps.invert(image)
    expected = theirs_of(
        FluxControlImg2ImgPipeline, control_model, image=image, control_image=edges, strength=0.6,
        num_inference_steps=5, guidance_scale=10.0,
    )  # fmt: skip
    got, _ = ours_of(load(control_model, trial.nx), image=image, control=edges, strength=0.6, steps=5, guidance=10.0)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("Canny and Depth with an image, each step's latents", step.x, theirs, compare.MODEL)


KONTEXT = {"_auto_resize": False, "max_area": WIDTH * HEIGHT}


@FLOAT32
def test_kontext_is_diffusers_at_every_step(trial, dev_model, image):
    other = image.rotate(90, expand=True).crop((0, 0, 48, 64))
    expected = theirs_of(
        FluxKontextPipeline, dev_model, image=other, num_inference_steps=4, guidance_scale=2.5, **KONTEXT
    )
    pipe = load(dev_model, trial.nx)
    text = replace(pipe.encode(PROMPT), references=(Reference(pipe.encode_image(other)),))
    got = pipe.sample(text, 7, 4, guidance=2.5, width=WIDTH, height=HEIGHT)
    for step, theirs in zip(got, expected, strict=True):
        trial.close("Kontext, each step's latents", step.x, theirs, compare.MODEL)


@FLOAT32
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_by_kontext_is_diffusers_at_every_step(trial, dev_model, image, mask, strength):
    expected = theirs_of(
        FluxKontextInpaintPipeline, dev_model, image=image, mask_image=mask, image_reference=image, strength=strength,
        num_inference_steps=4, guidance_scale=2.5, **KONTEXT,
    )  # fmt: skip
    pipe = load(dev_model, trial.nx)
    latents = pipe.encode_image(image)
    inside = trial.nx.array(latent_mask(np.asarray(mask) > 0, 8))
    text = replace(pipe.encode(PROMPT), references=(Reference(latents),))
    got = pipe.sample(text, 7, 4, guidance=2.5, edit=Inpaint(latents, strength, mask=inside))
    for step, theirs in zip(got, expected, strict=True):
        trial.close("Kontext inpainting, each step's latents", step.x, theirs, compare.MODEL)


@FLOAT32
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_references_are_what_the_transformer_of_diffusers_makes_of_them(trial, dev_model, image, layout):
    theirs, pipe = FluxPipeline.from_pretrained(dev_model), load(dev_model, trial.nx)
    images = [image, image.rotate(90, expand=True), image.crop((0, 0, 32, 32))]
    latents = [pipe.encode_image(one) for one in images]
    begin = places([(one.width // 16, one.height // 16) for one in images], layout)
    text = replace(pipe.encode(PROMPT), references=tuple(map(Reference, latents, begin)))
    x = trial.randn(1, 6, 10, 4)
    got = pipe.velocity(text, (6, 10), Guidance(2.5))(trial.array(x), 0.7)

    ids, tokens = [grid_of((0, 0, 0), 3, 5)], [packed(x)]
    for one, place in zip(latents, begin, strict=True):
        ids.append(grid_of(place, one.shape[1] // 2, one.shape[2] // 2))
        tokens.append(packed(trial.tensor(one)))
    txt, pooled, txt_ids = theirs.encode_prompt(PROMPT, None, max_sequence_length=24)
    expected = theirs.transformer(
        hidden_states=torch.cat(tokens, 1), timestep=torch.tensor([0.7]), guidance=torch.tensor([2.5]),
        pooled_projections=pooled, encoder_hidden_states=txt, txt_ids=txt_ids, img_ids=torch.cat(ids),
    ).sample[:, :15]  # fmt: skip
    expected = theirs._unpack_latents(expected, 48, 80, 8).permute(0, 2, 3, 1)
    trial.close("Kontext, several references", got, expected, compare.MODEL)


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, h, w, C) as diffusers packs them."""
    _, height, width, channels = latents.shape
    return FluxPipeline._pack_latents(latents.permute(0, 3, 1, 2), 1, channels, height, width)


def grid_of(place, rows: int, columns: int) -> torch.Tensor:
    """Position ids of a reference, written out."""
    first, top, left = place
    return torch.tensor([[first, top + row, left + column] for row in range(rows) for column in range(columns)])


def flowedit_in_torch(folder, image, *, steps, n_max, n_min, n_avg, guidances) -> list[torch.Tensor]:
    """FlowEdit as its authors publish it, on diffusers' FluxPipeline: the edit's latents (1, h, w, C) at each step."""
    pipe = FluxPipeline.from_pretrained(folder)
    pixels = pipe.image_processor.preprocess(image)
    raw = pipe.vae.encode(pixels).latent_dist.mode()
    latents = (raw - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    shape = latents.shape
    x_src = pipe._pack_latents(latents, *shape)
    ids = pipe._prepare_latent_image_ids(1, shape[2] // 2, shape[3] // 2, "cpu", torch.float32)
    texts = [pipe.encode_prompt(p, None, max_sequence_length=24) for p in ("a cat", "a dog")]
    times = [float(t) for t in minflux.load(folder).schedule.timesteps(steps, x_src.shape[1])]
    generator = torch.Generator().manual_seed(7)

    def velocity(x, t, which):
        txt, pooled, txt_ids = texts[which]
        strength = torch.tensor([guidances[which]]) if pipe.transformer.config.guidance_embeds else None
        return pipe.transformer(
            hidden_states=x, timestep=torch.tensor([t]), guidance=strength, pooled_projections=pooled,
            encoder_hidden_states=txt, txt_ids=txt_ids, img_ids=ids, return_dict=False,
        )[0]  # fmt: skip

    def draw():
        return pipe._pack_latents(torch.randn(shape, generator=generator), *shape)

    edit, ordinary, out = x_src.clone(), None, []
    for i in range(steps):
        t, t_next = times[i], times[i + 1]
        if steps - i > n_max:
            continue
        if steps - i > n_min:
            delta = 0
            for _ in range(n_avg):
                noised_source = (1 - t) * x_src + t * draw()
                noised_target = edit + noised_source - x_src
                delta = delta + (velocity(noised_target, t, 1) - velocity(noised_source, t, 0)) / n_avg
            edit = edit + (t_next - t) * delta
            out.append(edit)
            continue
        if steps - i == n_min:
            noise = draw()
            ordinary = edit + ((1 - t) * x_src + t * noise) - x_src
        ordinary = ordinary + (t_next - t) * velocity(ordinary, t, 1)
        out.append(ordinary - t_next * (noise - x_src))
    return [pipe._unpack_latents(x, HEIGHT, WIDTH, 8).permute(0, 2, 3, 1) for x in out]


@FLOAT32
@pytest.mark.parametrize(
    "counts",
    [{"n_max": 4, "n_min": 0, "n_avg": 1}, {"n_max": 9, "n_min": 2, "n_avg": 2}, {"n_max": 3, "n_min": 1, "n_avg": 1}],
    ids=lambda counts: "-".join(map(str, counts.values())),
)
def test_flowedit_is_the_published_algorithm_at_every_step(trial, dev_model, image, counts):
    expected = flowedit_in_torch(dev_model, image, steps=6, guidances=(1.5, 5.5), **counts)
    steps = []
    load(dev_model, trial.nx).edit(image, "a cat", "a dog", seed=7, steps=6, on_step=steps.append, **counts)
    for step, theirs in zip(steps, expected, strict=True):
        trial.close("FlowEdit, each step's latents", step.x, theirs, compare.MODEL)
    assert (expected[-1] - expected[0]).abs().max() > 0.01
