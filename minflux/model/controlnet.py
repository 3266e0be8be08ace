"""ControlNet: a copy of FLUX.1's first blocks that sees a control image too, and says what to add to FLUX.1's image.

    img_in(x) + pos_embed_input(control image) -> blocks -> after each of them, a projection of the image: a residual

The transformer has more blocks than there are residuals, N of a kind to n, so each is added several times: after block
i residual i // ⌈N / n⌉, or in XLabs' ControlNets i mod n. The projections began as zeros, so that training began with
FLUX.1 as it is.

Three families differ in little. InstantX's see the control image as latents. XLabs' have double blocks alone, and see
it as pixels, which convolutions shrink as much as the VAE would. Union ones were trained on many kinds of control
image, and a token before the text says which one it is.

Sources: Zhang et al. 2023 (arXiv 2302.05543); XLabs' x-flux `src/flux/controlnet.py`; diffusers
`models/controlnets/controlnet_flux.py`, `models/transformers/transformer_flux.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.flux import FluxConfig, through_blocks
from minflux.model.hooks import OnBlock, ignore
from minflux.model.latents import pack
from minflux.model.linear import linear

PROJECTIONS = {"double_blocks": "controlnet_blocks", "single_blocks": "controlnet_single_blocks"}  # a kind's, by name
HINT_STRIDES = {"0": 1, "2": 1, "4": 2, "6": 1, "8": 2, "10": 1, "12": 2, "14": 1}  # of the convolutions on pixels


@dataclass(frozen=True)
class ControlNetConfig(FluxConfig):
    """The sizes of a ControlNet: those of a transformer with few blocks, and two of its own.

    modes: how many kinds of control image a Union ControlNet tells apart, 0 for any other. hint_channels: how many
    channels the convolutions make of pixels, 0 for a ControlNet that sees latents.
    """

    guidance_embed: bool = False
    modes: int = 0
    hint_channels: int = 0

    @property
    def sees_pixels(self) -> bool:
        """Whether the control image goes in as pixels rather than latents."""
        return self.hint_channels > 0


# -- the control image -------------------------------------------------------------------------------------------


@shaped
def embed_hint(p: Tree, shown: Float[Array, "B H W C"]) -> Float[Array, "B I D"]:
    """Embed a control image, latents, or pixels in [-1, 1] where the ControlNet has convolutions for them."""
    dtype = p["pos_embed_input"]["weight"].dtype
    shown = shown.astype(dtype)
    latents = shrink(p["input_hint_block"], shown) if "input_hint_block" in p else shown
    return linear(pack(latents), **p["pos_embed_input"])


@shaped
def shrink(p: Tree, pixels: Float[Array, "B H W C"]) -> Float[Array, "B H8 W8 O"]:
    """Convolve pixels down to an eighth of their height and width, eight times 3×3 with SiLU between."""
    nx = backend_of(pixels)
    x = pixels
    for place, stride in HINT_STRIDES.items():
        x = x if place == "0" else nx.silu(x)
        x = nx.conv2d(x, **p[place], stride=stride, padding=1)
    return x


# -- what to add -------------------------------------------------------------------------------------------------


@shaped
def controlnet(
    p: Tree,
    img: Float[Array, "B I C"],
    hint: Float[Array, "B I D"],
    txt: Float[Array, "B T E"],
    mod: Tree,
    pe: tuple,
    mode: int | None = None,
    on_block: OnBlock = ignore,
) -> dict[str, Array]:
    """Predict what to add to the image tokens of a transformer: {"double_blocks.0": (B, I, D), …}, by its own blocks.

    img: packed latents at time t; hint: the control image (see `embed_hint`); txt: T5's output; mod: its modulations
    (see `block_modulations`); pe: the rotations of the joint sequence, which begins with the mode's token at (0, 0, 0)
    where there is a mode; mode: which kind of control image a Union ControlNet is shown. on_block: called after each
    block with {"img", "txt", "mod", "residual"}.
    """
    nx = backend_of(img, hint, txt)
    img = linear(img.astype(hint.dtype), **p["img_in"]) + hint  # (B, I, D)
    txt = linear(txt.astype(hint.dtype), **p["txt_in"])  # (B, T, D)
    if mode is not None:
        txt = nx.concatenate([mode_token(p, mode, like=txt), txt], axis=1)  # (B, 1 + T, D)
    found = {}

    def project(name: str, seen: dict[str, Any]) -> None:
        found[name] = linear(seen["img"], **projection(p, name))
        on_block(name, seen | {"residual": found[name]})

    through_blocks(p, img, txt, mod, pe, project)
    return found


def mode_token(p: Tree, mode: int, like: Array) -> Array:
    """Return the token of a mode (B, 1, D) for text tokens `like` (B, T, D)."""
    row = p["controlnet_mode_embedder"]["weight"][mode]  # (D,)
    return backend_of(like).broadcast_to(row.astype(like.dtype), (len(like), 1, len(row)))


def projection(p: Tree, name: str) -> Tree:
    """Return the weights that make a residual of the image after the block called `name`."""
    kind, number = name.split(".")
    return p[PROJECTIONS[kind]][int(number)]


def spread(residuals: Mapping[str, Array], cfg: FluxConfig, repeats: bool) -> dict[str, Array]:
    """Return which residual is added after which block of a transformer of the sizes `cfg`, by the block's name.

    repeats: after its double blocks the residuals come again and again, as in XLabs' ControlNets, not each several
    times in a row.
    """
    double = [residual for name, residual in residuals.items() if name.startswith("double_blocks")]
    single = [residual for name, residual in residuals.items() if name.startswith("single_blocks")]
    doubles = [double[place(i, len(double), cfg.depth, repeats)] for i in range(cfg.depth) if double]
    singles = [single[place(i, len(single), cfg.depth_single_blocks)] for i in range(cfg.depth_single_blocks) if single]
    named = {f"double_blocks.{i}": residual for i, residual in enumerate(doubles)}
    return named | {f"single_blocks.{i}": residual for i, residual in enumerate(singles)}


def place(i: int, count: int, depth: int, repeats: bool = False) -> int:
    """Return which of `count` residuals is added after block i of `depth`.

    >>> [place(i, 2, 5) for i in range(5)], [place(i, 2, 5, repeats=True) for i in range(5)]
    ([0, 0, 0, 1, 1], [0, 1, 0, 1, 0])
    """
    times = -(-depth // count)  # ⌈depth / count⌉
    return i % count if repeats else i // times
