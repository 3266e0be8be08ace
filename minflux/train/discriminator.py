"""A small judge of patches: is this piece of an image an original, or redrawn by the VAE?

A few convolutions that halve the image, so each number that comes out judges one patch of it and none judges the
whole: enough to see blur. Source: Isola et al. 2016 (arXiv 1611.07004) §3.2.2, "PatchGAN".
"""

from dataclasses import dataclass

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import Backend, backend_of
from minflux.model.vae import conv3

SLOPE = 0.2  # of the leaky ReLU, below zero


@dataclass(frozen=True)
class JudgeConfig:
    """The sizes of the judge: channels after each halving of the image."""

    channels: tuple[int, ...] = (32, 64, 64)
    norm_groups: int = 4


def judge_shapes(cfg: JudgeConfig) -> dict[str, tuple[int, ...]]:
    """List every weight with its shape: the judge starts from pixels folded two by two, 12 channels."""
    shapes: dict[str, tuple[int, ...]] = {}
    into = 12
    for i, out in enumerate(cfg.channels):
        shapes |= {f"conv.{i}.weight": (out, 3, 3, into), f"conv.{i}.bias": (out,)}
        if i > 0:
            shapes |= {f"norm.{i - 1}.weight": (out,), f"norm.{i - 1}.bias": (out,)}
        into = out
    return shapes | {"verdict.weight": (1, 3, 3, into), "verdict.bias": (1,)}


@shaped
def judge(p: Tree, cfg: JudgeConfig, image: Float[Array, "B H W 3"]) -> Float[Array, "B h w 1"]:
    """Judge each patch of an image in [-1, 1]: the higher, the more it looks like an original.

    The first halving folds 2×2 pixels into channels; each later one is a convolution of stride 2.
    """
    nx = backend_of(image)
    x = leaky(conv3(p["conv"][0], fold(image)))
    for conv, norm in zip(p["conv"][1:], p["norm"], strict=True):
        x = nx.downsample(x, **conv)
        x = leaky(nx.group_norm(x, cfg.norm_groups, norm["weight"], norm["bias"]))
    return conv3(p["verdict"], x)


@shaped
def fold(image: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Put each 2×2 pixels on top of each other: (B, H, W, C) -> (B, H/2, W/2, 4 C)."""
    b, h, w, c = image.shape
    x = image.reshape(b, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


@shaped
def leaky(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """max(x, 0.2 x): the leaky ReLU."""
    return backend_of(x).maximum(x, SLOPE * x)


def hinge(nx: Backend, originals: Array, redrawn: Array) -> Array:
    """½ mean max(0, 1 - D(x)) + ½ mean max(0, 1 + D(x̂)): the judge's loss (Lim & Ye 2017, arXiv 1705.02894)."""
    return 0.5 * (nx.mean(nx.maximum(1 - originals, 0.0)) + nx.mean(nx.maximum(1 + redrawn, 0.0)))
