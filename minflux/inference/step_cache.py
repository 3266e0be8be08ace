"""Step caching: a step whose input has hardly changed takes from an earlier step what the blocks made of it.

The velocity changes slowly in the middle of the way. A rule looks at little, the first block or what goes into it, and
says whether to skip the rest; then what the rest added at the last step that was computed is added again. Images
change by it, the more the more is skipped, so it is an option and never the default.

`first-block`  skip while the first block's residual changes by no more than the threshold since it was last computed.
               Source: diffusers `hooks/first_block_cache.py`, after ParaAttention's.
`teacache`     add up how much the first block's modulated input changes from step to step, through a polynomial that
               was fitted to FLUX.1, and skip all blocks until the sum reaches the threshold; the first and the last
               step are always computed. Source: Liu et al. 2024 (arXiv 2411.19108), and its code for FLUX.1.

A change is mean |a - b| / mean |b|. Of classifier-free guidance's two rows, the one that changes more decides for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.errors import ArgumentError, quoted
from minflux.model.hooks import RunBlock
from minflux.model.modulation import chunks, modulate

Streams = tuple[Array, Array]  # image and text tokens
Compute = Callable[[], Any]  # runs a block

THRESHOLDS = {"first-block": 0.05, "teacache": 0.25}  # unless given: diffusers', and TeaCache's for 1.5 times the speed
LARGEST = 100.0
TWICE = ("heun", "midpoint")  # solvers that ask for two velocities a step, one of which would be mistaken for a step
# of FLUX.1, from the highest power on
POLYNOMIAL = (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01)


@dataclass(frozen=True)
class StepCache:
    """A rule and its threshold; `skipped` lists the steps that were skipped, counted from 0, since sampling began."""

    rule: str
    threshold: float
    skipped: list[int] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        """Raise `ArgumentError` for a rule that there isn't, and a threshold that skips nothing or is no number."""
        if self.rule not in RULES:
            raise ArgumentError(
                f"step_cache must be RULE[:THRESHOLD] with {' or '.join(RULES)}, got {quoted(self.rule)}"
            )
        if not 0 < self.threshold <= LARGEST:
            raise ArgumentError(f"step_cache: the threshold must be above 0 and at most {LARGEST:g}")

    def __str__(self) -> str:
        return f"{self.rule}:{self.threshold:g}"

    def runner(self, run_block: RunBlock, blocks: int, steps: int) -> RunBlock:
        """Return a `run_block` for a model of so many blocks, which is asked for its velocity in so many steps."""
        self.skipped.clear()
        return CachedBlocks(RULES[self.rule](self.threshold, steps), run_block, blocks, self.skipped)


def check_step_cache(given: Any) -> StepCache | None:
    """Return a step cache from "RULE" or "RULE:THRESHOLD", None for none; raises `ArgumentError` for anything else."""
    if given is None or isinstance(given, StepCache):
        return given
    if not isinstance(given, str):
        raise ArgumentError(f"step_cache must be RULE[:THRESHOLD] with {' or '.join(RULES)}, got {quoted(given)}")
    rule, _, threshold = given.partition(":")
    try:
        number = float(threshold) if threshold else THRESHOLDS.get(rule, 1.0)
    except ValueError:
        raise ArgumentError(f"step_cache: the threshold must be a number, got {quoted(given)}") from None
    return StepCache(rule, number)


def check_usable(
    cache: StepCache | None, solver: str, images: int, is_listening: bool, is_controlled: bool = False
) -> None:
    """Raise `ArgumentError` for a step cache with what it can't honour."""
    if cache is None:
        return
    if solver in TWICE:
        raise ArgumentError(f"step_cache goes with solvers that ask for one velocity a step, not with {solver}")
    if images > 1:
        raise ArgumentError("step_cache: one image at a time, or what is skipped of one would depend on the others")
    if is_listening:
        raise ArgumentError("step_cache goes without on_block: of a block that is skipped there is nothing to show")
    if is_controlled:
        raise ArgumentError("step_cache goes without ControlNets, which add to every block in every step")


@shaped
def change(now: Float[Array, "B L D"], before: Float[Array, "B L D"]) -> float:
    """Return mean |now - before| / mean |before|, of a batch's row where that is largest."""
    nx = backend_of(now, before)
    now, before = nx.as_float32(now), nx.as_float32(before)
    ratios = nx.mean(nx.abs(now - before), axis=(1, 2)) / nx.mean(nx.abs(before), axis=(1, 2))
    return float(nx.max(ratios))


# -- rules -----------------------------------------------------------------------------------------------------


class Rule(Protocol):
    """Decides at a step's first block, and sees what its last block gives where it was computed."""

    def begin(self, compute: Compute, streams: Streams, mod: Tree) -> tuple[Streams, bool]:
        """Return the streams after the first block, and whether they are those after the last one, by the cache."""

    def end(self, streams: Any) -> None:
        """Note the streams after the last block: two of a double block, or the joint one of a single block."""


class FirstBlock:
    """Skips while the first block adds the same."""

    def __init__(self, threshold: float, steps: int):
        self.threshold = threshold
        self.moved: Array | None = None  # what the first block added to the image
        self.rest: Array | None = None  # what the others added to both streams

    def begin(self, compute: Compute, streams: Streams, mod: Tree) -> tuple[Streams, bool]:
        """Run the first block; see `Rule`."""
        img, txt = compute()
        moved = img - streams[0]
        if self.rest is not None and change(moved, self.moved) <= self.threshold:
            return apart(joint((img, txt)) + self.rest, txt.shape[1]), True
        self.moved, self.after_first = moved, joint((img, txt))
        return (img, txt), False

    def end(self, streams: Any) -> None:
        """Note what the other blocks added."""
        self.rest = joint(streams) - self.after_first


class TeaCache:
    """Skips until the changes of the first block's input add up to the threshold."""

    def __init__(self, threshold: float, steps: int):
        self.threshold, self.steps = threshold, steps
        self.step, self.sum = 0, 0.0
        self.modulated: Array | None = None
        self.added: Array | None = None  # what all blocks added to the image

    def begin(self, compute: Compute, streams: Streams, mod: Tree) -> tuple[Streams, bool]:
        """Run the first block unless the step is skipped; see `Rule`."""
        img, txt = streams
        shift, scale, *_ = chunks(mod["img"], 6)
        modulated, before = modulate(img, shift, scale), self.modulated
        self.modulated, self.step = modulated, self.step + 1
        if before is not None:
            self.sum += polynomial(change(modulated, before))
        is_last = self.step == self.steps
        if self.added is not None and not is_last and self.sum < self.threshold:
            return (img + self.added, txt), True
        self.sum, self.before_first = 0.0, img
        return compute(), False

    def end(self, streams: Any) -> None:
        """Note what all blocks added."""
        count = self.before_first.shape[1]
        self.added = joint(streams)[:, -count:] - self.before_first


def polynomial(x: float) -> float:
    """Return TeaCache's polynomial at x, which makes of the input's change an estimate of the output's."""
    y = 0.0
    for factor in POLYNOMIAL:
        y = y * x + factor
    return y


def joint(streams: Any) -> Array:
    """Return both streams as a single block has them, text first."""
    if not isinstance(streams, tuple):
        return streams
    img, txt = streams
    return backend_of(img, txt).concatenate([txt, img], axis=1)


def apart(x: Array, text: int) -> Streams:
    """Undo `joint`, of so many text tokens."""
    txt, img = backend_of(x).split(x, [text], axis=1)
    return img, txt


RULES: dict[str, Callable[[float, int], Rule]] = {"first-block": FirstBlock, "teacache": TeaCache}


# -- blocks ----------------------------------------------------------------------------------------------------


class CachedBlocks:
    """A `run_block` that counts its calls: at the first block of a step the rule decides about the others."""

    def __init__(self, rule: Rule, run_block: RunBlock, blocks: int, skipped: list[int]):
        self.rule, self.run_block, self.blocks, self.skipped = rule, run_block, blocks, skipped
        self.calls = 0
        self.is_skipping = False

    def __call__(self, block: Callable[..., Any], p: Tree, *arguments: Any) -> Any:
        """Run a block, or hand its streams on as they are where the step is skipped."""
        *streams, mod, _, _, _ = arguments
        step, place = divmod(self.calls, self.blocks)
        self.calls += 1
        compute = partial(self.run_block, block, p, *arguments)
        if place == 0:
            return self.begin(step, compute, streams, mod)
        if self.is_skipping:
            return streams[0] if len(streams) == 1 else tuple(streams)
        result = compute()
        if place == self.blocks - 1:
            self.rule.end(result)
        return result

    def begin(self, step: int, compute: Compute, streams: Sequence[Array], mod: Tree) -> Streams:
        """Run a step's first block, or take its and all others' result from the cache."""
        img, txt = streams
        result, self.is_skipping = self.rule.begin(compute, (img, txt), mod)
        if self.is_skipping:
            self.skipped.append(step)
        return result
