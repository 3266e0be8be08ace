"""The autoencoder: a picture to latents an eighth of its size, 16 channels deep, and back.

A convolutional network, NHWC here (the checkpoint's kernels are turned to (out, kh, kw, in) on loading). Both halves
are a row of levels of residual blocks; between levels the picture halves or doubles; in the middle every pixel attends
to every other. Source: Rombach et al. 2021 (arXiv 2112.10752); BFL `flux/modules/autoencoder.py`.
"""

from dataclasses import dataclass

from minflux.backend import backend_of
from minflux.model.layers import linear
from minflux.shapes import Array, Float, Tree, shaped


@dataclass(frozen=True)
class VAEConfig:
    """The sizes of the autoencoder, under the names of BFL's `AutoEncoderParams` where it has them.

    Level i has ch · ch_mult[i] channels; latents are (z - shift_factor) · scale_factor.
    """

    in_channels: int = 3
    ch: int = 128
    out_ch: int = 3
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159
    norm_groups: int = 32

    @property
    def downscale(self) -> int:
        """Pixels a latent, along one side."""
        return 2 ** (len(self.ch_mult) - 1)


FLUX_VAE = VAEConfig()


@shaped
def norm_silu(norm: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W C"]:
    """GroupNorm (eps 1e-6), then SiLU: what stands before every convolution."""
    nx = backend_of(x)
    return nx.silu(nx.group_norm(x, groups, norm["weight"], norm["bias"]))


@shaped
def conv3(p: Tree, x: Float[Array, "B H W C"]) -> Float[Array, "B H W O"]:
    """A 3×3 convolution that keeps height and width."""
    return backend_of(x).conv2d(x, p["weight"], p["bias"], padding=1)


@shaped
def resnet_block(p: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W O"]:
    """x + conv(silu(norm(conv(silu(norm(x)))))), x passing through a 1×1 convolution where the channels change."""
    h = conv3(p["conv1"], norm_silu(p["norm1"], x, groups))
    h = conv3(p["conv2"], norm_silu(p["norm2"], h, groups))
    return h + (linear(x, **p["nin_shortcut"]) if "nin_shortcut" in p else x)


@shaped
def attention_block(p: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W C"]:
    """Every pixel attends to every other, one head as wide as the channels."""
    nx = backend_of(x)
    h = nx.group_norm(x, groups, p["norm"]["weight"], p["norm"]["bias"])
    h = h.reshape(x.shape[0], 1, -1, x.shape[-1])  # (B, 1, H·W, C)
    h = nx.attention(linear(h, **p["q"]), linear(h, **p["k"]), linear(h, **p["v"]))
    return x + linear(h.reshape(x.shape), **p["proj_out"])


@shaped
def middle(p: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W C"]:
    """Residual block, attention, residual block, at the smallest size."""
    x = resnet_block(p["block_1"], x, groups)
    x = attention_block(p["attn_1"], x, groups)
    return resnet_block(p["block_2"], x, groups)


@shaped
def encode_moments(p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"]) -> tuple[Array, Array]:
    """Encode a picture in [-1, 1] to the mean and log-variance of its raw latents, each (B, H/8, W/8, 16)."""
    nx = backend_of(image)
    p = p["encoder"]
    x = conv3(p["conv_in"], image)
    for level in p["down"]:
        for block in level["block"]:
            x = resnet_block(block, x, cfg.norm_groups)
        if "downsample" in level:
            x = nx.downsample(x, **level["downsample"]["conv"])
    x = middle(p["mid"], x, cfg.norm_groups)
    moments = conv3(p["conv_out"], norm_silu(p["norm_out"], x, cfg.norm_groups))
    return moments[..., : cfg.z_channels], moments[..., cfg.z_channels :]


@shaped
def encode(p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"]) -> Float[Array, "B H8 W8 Z"]:
    """Encode a picture in [-1, 1] to latents: (mean - shift) · scale, the distribution's mean being its mode."""
    mean, _ = encode_moments(p, cfg, image)
    return cfg.scale_factor * (mean - cfg.shift_factor)


@shaped
def decode(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H W 3"]:
    """Decode latents to a picture, about [-1, 1]; undoes the shift and scale first."""
    return conv3(p["decoder"]["conv_out"], decode_features(p, cfg, latents))


@shaped
def decode_features(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H W C"]:
    """Decode latents up to the last convolution, which alone makes colours of channels."""
    nx = backend_of(latents)
    p = p["decoder"]
    x = conv3(p["conv_in"], latents / cfg.scale_factor + cfg.shift_factor)
    x = middle(p["mid"], x, cfg.norm_groups)
    for level in reversed(p["up"]):  # up.0 is the finest level, and comes last
        for block in level["block"]:
            x = resnet_block(block, x, cfg.norm_groups)
        if "upsample" in level:
            x = conv3(level["upsample"]["conv"], nx.upsample(x))
    return norm_silu(p["norm_out"], x, cfg.norm_groups)
