"""SigLIP's vision encoder: an image as one vector for each of its patches, of which Redux makes text tokens.

A plain transformer over square patches with learned positions, of CLIP's layers without the mask: each patch attends to
all others. The states after the last norm are taken; the head that pools them into one vector is not needed. Source:
Zhai et al. 2023 (arXiv 2303.15343); Alabdulmohsin et al. 2023 (arXiv 2305.13035) for the so400m shape; transformers
`modeling_siglip.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

from minflux.arrays import Array, Float, Tree, shaped
from minflux.model.clip import clip_layer, layer_norm
from minflux.model.hooks import OnBlock, ignore
from minflux.model.linear import linear


@dataclass(frozen=True)
class SiglipConfig:
    """The sizes of a SigLIP vision encoder, under the names of its config.json; its MLPs' activation is always one."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    hidden_act: ClassVar[str] = "gelu_pytorch_tanh"

    @property
    def grid(self) -> int:
        """Return how many whole patches there are along a side: 27, which leaves out 6 of 384 pixels."""
        return self.image_size // self.patch_size


SO400M = SiglipConfig()


@shaped
def patches(pixels: Float[Array, "B H W C"], side: int) -> Float[Array, "B L O"]:
    """Cut images into squares, row by row: (B, H, W, C) -> (B, H/P · W/P, C P²), each channel by channel.

    What is left over at the right and at the bottom is dropped.
    """
    batch, height, width, channels = pixels.shape
    rows, columns = height // side, width // side
    whole = pixels[:, : rows * side, : columns * side]
    squares = whole.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 5, 2, 4)
    return squares.reshape(batch, rows * columns, channels * side * side)


@shaped
def patch_embedding(p: Tree, cfg: SiglipConfig, pixels: Float[Array, "B H W C"]) -> Float[Array, "B L D"]:
    """Map each patch by a matrix, in files the kernel (D, C, P, P) of a convolution, and add its position."""
    kernel, bias = p["patch_embedding"]["weight"], p["patch_embedding"]["bias"]
    matrix = kernel.reshape(kernel.shape[0], -1)  # (D, C P²)
    x = linear(patches(pixels, cfg.patch_size), matrix, bias)
    return x + p["position_embedding"]["weight"]


@shaped
def siglip_encoder(
    p: Tree, cfg: SiglipConfig, pixels: Float[Array, "B H W C"], on_block: OnBlock = ignore
) -> Float[Array, "B L D"]:
    """Encode images (B, H, W, 3) to the states (B, L, D) of their patches, after the last norm.

    on_block: called after each layer with its name and {"img": (B, L, D)} (see `hooks`).
    """
    x = patch_embedding(p["embeddings"], cfg, pixels)
    for i, layer in enumerate(p["encoder"]["layers"]):
        x = clip_layer(layer, cfg, x)
        on_block(f"encoder.layers.{i}", {"img": x})
    return layer_norm(p["post_layernorm"], cfg, x)
