"""The VAE: an image to latents an eighth of its size, 16 channels deep, and back.

A convolutional network, NHWC here (the checkpoint's kernels are turned to (out, kh, kw, in) on loading). Both halves
are a row of levels of residual blocks; between levels the image halves or doubles; in the middle every pixel attends
to every other. Source: Rombach et al. 2021 (arXiv 2112.10752); BFL `flux/modules/autoencoder.py`.
"""

from dataclasses import dataclass

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model.latents import pack, unpack
from minflux.model.linear import linear


@dataclass(frozen=True)
class VAEConfig:
    """The sizes of the VAE, under the names of BFL's `AutoEncoderParams` where it has them.

    Level i has ch · ch_mult[i] channels; latents are (z - shift_factor) · scale_factor. quant_conv: in Stable
    Diffusion 1's and FLUX.2's, a 1×1 convolution of what the encoder gives, and one of what the decoder takes.
    batch_norm_eps: in FLUX.2's, that of `normalised`, which is there in place of shift and scale; None without it.
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
    quant_conv: bool = False
    batch_norm_eps: float | None = None

    @property
    def downscale(self) -> int:
        """How many pixels a latent has along one side."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class Flux2VAEConfig(VAEConfig):
    """The sizes of FLUX.2's VAE, whose latents are normalised by statistics in its file.

    decoder_widths: the channels of the decoder's levels, finest first, where they are others than the encoder's.
    """

    z_channels: int = 32
    scale_factor: float = 1.0
    shift_factor: float = 0.0
    quant_conv: bool = True
    batch_norm_eps: float | None = 1e-4
    decoder_widths: tuple[int, ...] = ()


FLUX_VAE = VAEConfig()
FLUX2_VAE = Flux2VAEConfig()


@shaped
def norm_silu(norm: Tree, x: Float[Array, "B H W C"], groups: int, eps: float = 1e-6) -> Float[Array, "B H W C"]:
    """Apply GroupNorm, then SiLU: what stands before every convolution."""
    nx = backend_of(x)
    x = nx.group_norm(x, groups, norm["weight"], norm["bias"], eps)
    return nx.silu(x)


@shaped
def conv3(p: Tree, x: Float[Array, "B H W C"]) -> Float[Array, "B H W O"]:
    """Convolve with a 3×3 kernel and keep height and width."""
    nx = backend_of(x)
    return nx.conv2d(x, p["weight"], p["bias"], padding=1)


@shaped
def resnet_block(p: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W O"]:
    """Compute x + conv(silu(norm(conv(silu(norm(x)))))); a 1×1 convolution of x where the channels change."""
    h = norm_silu(p["norm1"], x, groups)
    h = conv3(p["conv1"], h)  # (B, H, W, O)
    h = norm_silu(p["norm2"], h, groups)
    h = conv3(p["conv2"], h)
    return h + shortcut(p, x)


def shortcut(p: Tree, x: Array) -> Array:
    """Bring a residual block's input to the channels of its output, by a 1×1 convolution if there is one."""
    return linear(x, **p["nin_shortcut"]) if "nin_shortcut" in p else x


@shaped
def attention_block(p: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W C"]:
    """Let every pixel attend to every other, with one head as wide as the channels, and add the result to x."""
    nx = backend_of(x)
    batch, height, width, channels = x.shape
    h = nx.group_norm(x, groups, p["norm"]["weight"], p["norm"]["bias"])
    h = h.reshape(batch, 1, height * width, channels)  # one head: (B, 1, H·W, C)
    q, k, v = (linear(h, **p[name]) for name in "qkv")
    h = nx.attention(q, k, v).reshape(x.shape)
    return x + linear(h, **p["proj_out"])


@shaped
def middle(p: Tree, x: Float[Array, "B H W C"], groups: int) -> Float[Array, "B H W C"]:
    """Apply a residual block, attention and a residual block, at the smallest size."""
    x = resnet_block(p["block_1"], x, groups)
    x = attention_block(p["attn_1"], x, groups)
    return resnet_block(p["block_2"], x, groups)


@shaped
def encode_moments(p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"]) -> tuple[Array, Array]:
    """Encode an image in [-1, 1] to the mean and log-variance of its raw latents, each (B, H/8, W/8, 16)."""
    nx, encoder, groups = backend_of(image), p["encoder"], cfg.norm_groups
    x = conv3(encoder["conv_in"], image)
    for level in encoder["down"]:
        for block in level["block"]:
            x = resnet_block(block, x, groups)
        if "downsample" in level:
            x = nx.downsample(x, **level["downsample"]["conv"])
    x = middle(encoder["mid"], x, groups)
    x = norm_silu(encoder["norm_out"], x, groups)
    moments = conv3(encoder["conv_out"], x)  # (B, H/8, W/8, 32)
    if cfg.quant_conv:
        moments = linear(moments, **p["quant_conv"])
    mean, log_variance = nx.split(moments, [cfg.z_channels], axis=-1)
    return mean, log_variance


@shaped
def encode(p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"]) -> Float[Array, "B H8 W8 Z"]:
    """Encode an image in [-1, 1] to latents: (mean - shift) · scale, the distribution's mean being its mode."""
    mean, _ = encode_moments(p, cfg, image)
    return scaled(p, cfg, mean)


@shaped
def encode_sample(
    p: Tree, cfg: VAEConfig, image: Float[Array, "B H W 3"], noise: Float[Array, "B H8 W8 Z"]
) -> Float[Array, "B H8 W8 Z"]:
    """Encode an image to latents drawn from their distribution, mean + exp(log-variance / 2) · noise, scaled.

    The log-variance is kept within -30 and 20, as in diffusers' `DiagonalGaussianDistribution`.
    """
    nx = backend_of(image)
    mean, log_variance = encode_moments(p, cfg, image)
    log_variance = nx.minimum(nx.maximum(log_variance, -30), 20)
    drawn = mean + nx.exp(log_variance / 2) * noise.astype(mean.dtype)
    return scaled(p, cfg, drawn)


@shaped
def scaled(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H8 W8 Z"]:
    """Bring raw latents to a size that a transformer works with: (z - shift) · scale, or `normalised` as in FLUX.2."""
    if cfg.batch_norm_eps is not None:
        return normalised(p["bn"], latents, cfg.batch_norm_eps)
    return cfg.scale_factor * (latents - cfg.shift_factor)


@shaped
def unscaled(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H8 W8 Z"]:
    """Undo `scaled`, for the decoder to take latents."""
    if cfg.batch_norm_eps is None:
        latents = latents / cfg.scale_factor + cfg.shift_factor
    else:
        latents = normalised(p["bn"], latents, cfg.batch_norm_eps, undo=True)
    return linear(latents, **p["post_quant_conv"]) if cfg.quant_conv else latents


@shaped
def normalised(
    p: Tree, latents: Float[Array, "B H8 W8 Z"], eps: float, undo: bool = False
) -> Float[Array, "B H8 W8 Z"]:
    """Compute (z - mean) / sqrt(variance + eps), each number of a 2×2 patch by statistics of its own; undo: back again.

    They are those that a BatchNorm kept while the VAE was trained, (4 Z,) each, in the order of a token's numbers.
    """
    _, height, width, _ = latents.shape
    mean = p["running_mean"]
    deviation = backend_of(mean).sqrt(p["running_var"] + eps).astype(latents.dtype)
    mean, tokens = mean.astype(latents.dtype), pack(latents)  # (B, I, 4 Z)
    tokens = tokens * deviation + mean if undo else (tokens - mean) / deviation
    return unpack(tokens, height, width)


@shaped
def decode(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H W 3"]:
    """Decode latents to an image, about [-1, 1]; undoes the scale and shift first."""
    features = decode_features(p, cfg, latents)
    return conv3(p["decoder"]["conv_out"], features)


@shaped
def decode_features(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H W C"]:
    """Decode latents up to the last convolution, which alone makes colours of channels."""
    nx, decoder, groups = backend_of(latents), p["decoder"], cfg.norm_groups
    x = unscaled(p, cfg, latents)
    x = conv3(decoder["conv_in"], x)
    x = middle(decoder["mid"], x, groups)
    for level in reversed(decoder["up"]):  # up.0 is the finest level, and comes last
        for block in level["block"]:
            x = resnet_block(block, x, groups)
        if "upsample" in level:
            x = conv3(level["upsample"]["conv"], nx.upsample(x))
    return norm_silu(decoder["norm_out"], x, groups)
