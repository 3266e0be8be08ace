"""Siblings that edit, trained from the small model as BFL's are from FLUX.1: Kontext, Fill and Canny.

    kontext   sees a reference image as tokens of its own, and is told what to change
    fill      sees a masked image and its mask as channels, and is told what the whole shows
    canny     sees edges as channels, and is told what they are of

All three are trained as the flow itself, mean ‖v(x_t, t, text, seen) - (noise - x₀)‖², and start from its weights:
Kontext's needs no new ones, the other two have a wider first matrix, whose new columns are zero at first, so that in
the first step they draw as the model did.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minflux.arrays import Array, Float, Int, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.checkpoints.formats.atomic import written_whole
from minflux.checkpoints.tree import leaves, tree, tree_map
from minflux.edit.beside import mask_channels, masked_image
from minflux.edit.canny import THRESHOLDS, drawn, edges
from minflux.images import from_uint8
from minflux.inference.flux1 import Flux1
from minflux.model.flux import FluxConfig, flux
from minflux.model.latents import image_ids, pack, text_ids
from minflux.model.vae import encode
from minflux.train.encoded import Size, shards_of
from minflux.train.flow import read_text
from minflux.train.guidance import teacher_of
from minflux.train.loop import Batch, Plan, train
from minflux.train.objective import logit_normal, noised, velocity
from minflux.train.recipe import Training, optimizer, part, section
from minflux.train.velocity import CLIP_TOKENS, Mixture, counts_of, draw_shape
from minflux.train.workers import Team, assemble
from minflux.world.captions import caption
from minflux.world.edits import sample_edit
from minflux.world.layouts import render_layout
from minflux.world.render import render
from minflux.world.scenes import GRID, boxes, sample

SHARD = 512  # examples a file
CHUNK = 16  # images encoded at once
REFERENCE = (1, 0, 0)  # where a reference's tokens begin on RoPE's axes


@dataclass(frozen=True)
class Example:
    """An image to draw, what is said of it, and what is seen: another image, of a mask also where it is."""

    image: np.ndarray  # float32 (H, W, 3) in [-1, 1], as is `seen`
    prompt: str
    seen: np.ndarray
    mask: np.ndarray | None = None  # bool (H, W)


# -- what each kind is shown -----------------------------------------------------------------------------------


def kontext_example(rng: np.random.Generator, size: Size) -> Example:
    """Draw an edit: the image before is seen, the sentence says what to change."""
    edit = sample_edit(rng, *size)
    return Example(from_uint8(render_layout(edit.after)), edit.instruction, from_uint8(render_layout(edit.before)))


def fill_example(rng: np.random.Generator, size: Size) -> Example:
    """Draw a scene of which a rectangle is masked: around one item, half of the time, else anywhere."""
    scene = sample(rng, *size)
    image, mask = render(scene), np.zeros((size[1], size[0]), bool)
    around = boxes(scene)[rng.integers(len(scene.items))] if rng.random() < 0.5 else None
    left, top, right, bottom = rectangle(rng, size) if around is None else grown(around, rng)
    mask[max(0, top) : bottom, max(0, left) : right] = True
    return Example(from_uint8(image), caption(scene, rng), masked_image(image, mask)[0], mask)


def canny_example(rng: np.random.Generator, size: Size) -> Example:
    """Draw a scene: its edges are seen."""
    scene = sample(rng, *size)
    image = render(scene)
    return Example(from_uint8(image), caption(scene, rng), from_uint8(drawn(edges(image, *THRESHOLDS))))


def rectangle(rng: np.random.Generator, size: Size) -> tuple[int, int, int, int]:
    """Draw any rectangle of at least a token a side: left, top, right, bottom in pixels."""
    sides = []
    for length in size:
        extent = int(rng.integers(GRID, length + 1))
        start = int(rng.integers(length - extent + 1))
        sides.append((start, start + extent))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def grown(box: tuple[int, int, int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Widen an item's place by up to 12 pixels on each side: left, top, right, bottom."""
    left, top, width, height = box
    more = rng.integers(0, 13, 4)
    return left - int(more[0]), top - int(more[1]), left + width + int(more[2]), top + height + int(more[3])


@dataclass(frozen=True)
class Kind:
    """A kind of sibling: what it is shown, and how many channels of it stand beside the latents."""

    example: Callable[[np.random.Generator, Size], Example]
    beside: Callable[[int, int], int] = lambda channels, downscale: 0


KINDS = {
    "kontext": Kind(kontext_example),
    "fill": Kind(fill_example, lambda channels, downscale: channels + downscale**2),
    "canny": Kind(canny_example, lambda channels, downscale: channels),
}


# -- examples, encoded -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Examples of one size: prompts, latents (N, h, w, C) of images and of what is seen, and masks (N, H, W) if any."""

    prompts: list[str]
    latents: np.ndarray
    seen: np.ndarray
    masks: np.ndarray | None


def examples_of(kind: Kind, size: Size, shard: int, count: int, seed: int) -> list[Example]:
    """Draw a shard's examples, the same for the same seed."""
    rng = np.random.default_rng([seed, *size, shard])
    return [kind.example(rng, size) for _ in range(count)]


def encode_examples(base: Flux1, name: str, size: Size, count: int, seed: int, folder: Path, team: Team) -> Encoded:
    """Encode `count` examples of one size, or read back what an earlier run has left; each process its share."""
    shards = [examples_of(KINDS[name], size, i, some, seed) for i, some in shards_of(count, SHARD)]
    paths = [folder / f"{name}-{size[0]}x{size[1]}-{seed}-{i}-{len(shard)}.npz" for i, shard in enumerate(shards)]
    for path, shard in team.share(list(zip(paths, shards, strict=True))):
        if not path.exists():
            write_encoded(base, shard, path)
    team.wait(base.nx)
    read = [np.load(path) for path in paths]
    examples = [example for shard in shards for example in shard]
    masks = [example.mask for example in examples if example.mask is not None]
    return Encoded(
        [example.prompt for example in examples],
        np.concatenate([shard["latents"] for shard in read]),
        np.concatenate([shard["seen"] for shard in read]),
        np.stack(masks) if masks else None,
    )


def write_encoded(base: Flux1, shard: list[Example], path: Path) -> None:
    """Encode a shard's images and what is seen, and write both."""
    images, seen = ([getattr(example, name) for example in shard] for name in ("image", "seen"))
    with written_whole(path) as file:
        np.savez(file, latents=encode_pixels(base, images), seen=encode_pixels(base, seen))


def encode_pixels(base: Flux1, images: list[np.ndarray]) -> np.ndarray:
    """Encode images in [-1, 1] to latents (N, h, w, C) float16."""
    cfg, p = base.vae
    parts = [
        base.nx.to_numpy(encode(p, cfg, base.nx.array(np.stack(images[i : i + CHUNK]))))
        for i in range(0, len(images), CHUNK)
    ]
    return np.concatenate(parts).astype(np.float16)


def encode_all(base: Flux1, name: str, counts: dict[Size, int], seed: int, folder: Path, team: Team) -> dict:
    """Encode `counts[size]` examples of each size: {size: Encoded}."""
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(counts.items(), desc="encoding examples", unit="size", disable=team.rank > 0)
    return {size: encode_examples(base, name, size, count, seed, folder, team) for size, count in bar}


def editing_batch(
    data: dict[Size, Encoded], base: Flux1, how: Training, mixture: Mixture, shift: float
) -> Callable[[np.random.Generator], Batch]:
    """Make batch(rng): latents, noise, times, ids of both tokenizers, factors of the pooled text, and what is seen."""

    def batch(rng: np.random.Generator) -> Batch:
        size, length, count = draw_shape(how, mixture, list(data), rng)
        examples = data[size]
        chosen = rng.integers(len(examples.prompts), size=count)
        prompts = [examples.prompts[i] if rng.random() >= how.prompt_dropout else "" for i in chosen]
        x0 = examples.latents[chosen].astype(np.float32)
        seen = examples.seen[chosen].astype(np.float32)
        if examples.masks is not None:
            masks = [mask_channels(mask, base.downscale) for mask in examples.masks[chosen]]
            seen = np.concatenate([seen, np.concatenate(masks)], axis=-1)
        noise = rng.standard_normal(x0.shape, np.float32)
        pooled = (rng.random(count) >= mixture.hide_pooled).astype(np.float32)
        ids = base.clip_tokenizer(prompts, CLIP_TOKENS), base.t5_tokenizer(prompts, length)
        return x0, noise, logit_normal(rng, count, shift), *ids, pooled, seen

    return batch


# -- the loss ----------------------------------------------------------------------------------------------------


@shaped
def editing_loss(
    p: Tree,
    configs: tuple,
    is_reference: bool,
    x0: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    clip_ids: Int[Array, "B S"],
    t5_ids: Int[Array, "B T"],
    pooled: Float[Array, "B"],
    seen: Float[Array, "B H W K"],
) -> Array:
    """mean ‖v(x_t, t, text, seen) - (noise - x₀)‖², with x_t = (1 - t) x₀ + t noise.

    p holds "transformer", "clip" and "t5"; seen: a reference's latents, or channels beside the latents.
    """
    nx = backend_of(x0, noise, t)
    x_t = noised(x0, noise, t)
    txt, y = read_text(p, configs, clip_ids, t5_ids, pooled)
    if is_reference:
        found = velocity_seeing(p["transformer"], configs[0], x_t, t, txt, y, seen)
    else:
        found = velocity(p["transformer"], configs[0], nx.concatenate([x_t, seen], axis=-1), t, txt, y)
    error = found - pack(noise - x0)
    return nx.mean(error * error)


@shaped
def velocity_seeing(
    p: Tree,
    cfg: FluxConfig,
    x_t: Float[Array, "B H W C"],
    t: Float[Array, "B"],
    txt: Float[Array, "B T E"],
    y: Float[Array, "B P"],
    reference: Float[Array, "B H W C"],
) -> Float[Array, "B I O"]:
    """Return the velocity of latents, as tokens, beside a reference's clean latents."""
    nx = backend_of(x_t, t)
    _, height, width, _ = reference.shape
    own, other = image_ids(x_t, *x_t.shape[1:3]), image_ids(x_t, height, width, REFERENCE)
    tokens = nx.concatenate([pack(x_t), pack(reference)], axis=1)
    found = flux(p, cfg, tokens, nx.concatenate([own, other], axis=1), txt, text_ids(txt), t, y)
    return found[:, : own.shape[1]]


# -- training ----------------------------------------------------------------------------------------------------


def widened(cfg: FluxConfig, p: Tree, channels: int, nx: Backend) -> tuple[FluxConfig, Tree]:
    """Return the transformer with `channels` more of latents in its first matrix, whose columns for them are zero."""
    flat = dict(leaves(p))
    weight = flat["img_in.weight"]
    more = nx.zeros((weight.shape[0], 4 * channels), dtype=weight.dtype)
    flat["img_in.weight"] = nx.concatenate([weight, more], axis=1)
    return replace(cfg, in_channels=cfg.in_channels + 4 * channels), tree(flat)


def train_editing(
    recipe: dict[str, Any], name: str, folder: Path, base: Flux1, on_sample: Callable[..., None] | None = None
) -> tuple[tuple, Tree]:
    """Train a sibling of `base`, of one of `KINDS`, by the recipe's section of that name in `folder`, or go on.

    Returns configs and averaged weights of transformer and text encoders. `on_sample(configs, ema, step)` may draw
    images on the way.
    """
    nx, kind = base.nx, KINDS[name]
    how = section(Training, part(recipe, f"{name}.training"))
    mixture = section(Mixture, part(recipe, f"{name}.mixture"))
    start = teacher_of(base)
    cfg, transformer = widened(*base.flux, kind.beside(base.channels, base.downscale), nx)
    configs, p = (cfg, *start.configs[1:]), {**start.p, "transformer": transformer}
    with assemble(how.workers) as team:
        data = encode_all(base, name, counts_of(mixture, how.scenes), how.seed, folder / "latents", team)
        weights = train(
            nx,
            team,
            Plan(folder, how.steps, how.seed, how.checkpoint_every, how.sample_every),
            optimizer(part(recipe, f"{name}.optimizer")),
            tree_map(nx.array, p),
            editing_batch(data, base, how, mixture, mixture.shift or base.schedule.shift),
            lambda p, *arrays: editing_loss(p, configs, name == "kontext", *arrays),
            on_sample and (lambda p, step: on_sample(configs, p, step)),
        )
    return configs, weights
