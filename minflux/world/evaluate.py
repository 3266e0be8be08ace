"""Five measures of a model of this world, the five that FLUX.1's announcement claims of itself.

- **Prompt following**: of held-out prompts, how many images the reader finds right in everything.
- **Sizes**: the same at images of other shapes.
- **Typography**: of held-out signs, how many words are right in every letter.
- **Diversity**: from other noise, how far an item moves whose place the prompt leaves open.
- **Quality**: how much fine detail there is, against true images, and how well what is found fits its sprite.

A "drawer" is anything that takes a list of prompts with seed, width and height, and gives an image of each: a
`Pipeline`, or in the tests a stand-in that knows the right answers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from minflux.errors import ArgumentError
from minflux.world import reader
from minflux.world.captions import caption, plain_caption
from minflux.world.fidelity import detail
from minflux.world.render import render_batch
from minflux.world.scenes import DEFAULT_SIDE, Scene, sample

Drawer = Callable[..., Sequence[Any]]
Size = tuple[int, int]  # width and height

SIZES: tuple[Size, ...] = ((DEFAULT_SIDE, DEFAULT_SIDE), (96, 160), (160, 96), (64, 64))
AT_ONCE = 25
PROMPT_SEED = 20_000  # added to the seed, so that prompts and noise are drawn apart
SEEDS = 8  # images of one prompt, for diversity
Z_95 = 1.959964  # 95% of a normal distribution lies within this many standard deviations


@dataclass(frozen=True)
class Drawn:
    """Prompts of one size, with what was wanted, what was drawn, and each check's outcome."""

    wanted: list[Scene]
    prompts: list[str]
    images: np.ndarray  # uint8 (N, H, W, 3)
    marks: list[dict[str, bool]]

    def share(self, check: str) -> float:
        """Return the share of images that pass a check."""
        return float(np.mean([mark[check] for mark in self.marks]))


def draw(pipe: Drawer, prompts: Sequence[str], size: Size, seed: int, **how: Any) -> np.ndarray:
    """Draw an image of each prompt with noise seeds `seed`, `seed` + 1, …: uint8 (N, H, W, 3)."""
    images: list[np.ndarray] = []
    for i in tqdm(range(0, len(prompts), AT_ONCE), desc=f"drawing {size[0]}×{size[1]}", unit="batch"):
        batch = pipe(list(prompts[i : i + AT_ONCE]), seed=seed + i, width=size[0], height=size[1], **how)
        images += [np.asarray(image) for image in batch]
    return np.stack(images)


def follow(pipe: Drawer, size: Size, count: int, seed: int = 0, kind: str | None = None, **how: Any) -> Drawn:
    """Draw `count` held-out prompts of one size, of one kind of scene or any, and read the images."""
    rng = np.random.default_rng(PROMPT_SEED + seed)
    wanted = [sample(rng, *size, held_out=True, kind=kind) for _ in range(count)]
    prompts = [caption(scene, rng) for scene in wanted]
    images = draw(pipe, prompts, size, seed, **how)
    marks = [reader.score(scene, image) for scene, image in zip(wanted, images, strict=True)]
    return Drawn(wanted, prompts, images, marks)


def typography(pipe: Drawer, count: int, seed: int = 0, **how: Any) -> float:
    """Return the share of `count` held-out signs, alone or with a thing, whose word is right in every letter."""
    halves = count - count // 2, count // 2
    kinds = ("sign", "sign and thing")
    drawn = [follow(pipe, SIZES[0], n, seed, kind, **how) for n, kind in zip(halves, kinds, strict=True) if n]
    return float(np.mean([mark["letters"] for d in drawn for mark in d.marks]))


@dataclass(frozen=True)
class Diversity:
    """How images of one prompt differ: the mean deviation of an item's place, and the share of pairs that are alike.

    The deviation is in sides of the image; the training scenes' own is 0.10. Two images are alike when their items lie
    less than a pixel apart.
    """

    deviation: float
    alike: float


def diversity(pipe: Drawer, prompts: int, seed: int = 0, **how: Any) -> Diversity:
    """Draw `prompts` prompts of one small thing, `SEEDS` times each, and see where it lies."""
    rng = np.random.default_rng(PROMPT_SEED + seed)
    places = []
    for i in range(prompts):
        prompt = plain_caption(small_thing(rng))
        images = draw(pipe, [prompt] * SEEDS, SIZES[0], seed + SEEDS * i, **how)
        found = [reading.found[0] for reading in reader.read_batch(images) if reading.found]
        places.append(np.array([(item.x, item.y) for item in found]).reshape(-1, 2))
    several = [p for p in places if len(p) > 1]
    if not several:
        return Diversity(0.0, 1.0)
    return Diversity(
        float(np.mean([p.std(axis=0) for p in several])) / DEFAULT_SIDE, float(np.mean([alike(p) for p in several]))
    )


def small_thing(rng: np.random.Generator) -> Scene:
    """Draw a scene of one small thing: its place is as free as can be."""
    while True:
        scene = sample(rng, kind="single")
        if scene.items[0].extent(scene.short)[0] < scene.short / 3:
            return scene


def alike(places: np.ndarray) -> float:
    """Return the share of pairs of places (N, 2) that are less than a pixel apart both ways."""
    apart = np.abs(places[:, None] - places[None]).max(axis=-1)
    return float((apart[np.triu_indices(len(places), 1)] < 1).mean())


def quality(drawn: Drawn) -> tuple[float, float]:
    """Return the images' fine detail as a share of that of the scenes wanted, and the mean share that items explain.

    The first is of images that are all right, for an empty one has no detail; both are nan where there is none.
    """
    right = [i for i, mark in enumerate(drawn.marks) if mark["all"]]
    if not right:
        return float("nan"), float("nan")
    images = drawn.images[right]
    shares = [item.share for reading in reader.read_batch(images) for item in reading.found]
    return detail(images) / detail(render_batch([drawn.wanted[i] for i in right])), float(np.mean(shares))


def confidence_interval(successes: int, trials: int) -> tuple[float, float]:
    """Bound a success rate k/n with 95% confidence by Wilson's score interval, as (low, high) in 0..1.

    With p = k/n and z = 1.96: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n) (Wilson, 1927).
    Raises `ArgumentError` unless 0 ≤ k ≤ n and n ≥ 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ArgumentError(f"successes: {successes} of {trials} trials makes no rate")
    p, z2n = successes / trials, Z_95**2 / trials
    middle = p + z2n / 2
    reach = math.sqrt(z2n * (p * (1 - p) + z2n / 4))
    return max(0.0, (middle - reach) / (1 + z2n)), min(1.0, (middle + reach) / (1 + z2n))
