"""The decoder again, a band of rows at a time, for large pictures.

`vae.decode` holds each level several times: FLUX.1's last has up to 256 channels for every pixel, and takes 5 kB a
pixel in float32, 5 GB at 1024². Here a level is a list of bands, and all that is temporary is made for one band:
1.5 kB a pixel, and 0.3 GB.

It is the same computation, not an approximation by tiles that are decoded apart. A convolution reaches a row into the
bands above and below; a norm has the mean and variance of all bands together; in the middle each band's pixels attend
to those of all bands. So there is nothing to blend, and no seam.
"""

from collections.abc import Callable

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model import vae
from minflux.model.linear import linear
from minflux.model.vae import VAEConfig

Bands = list[Array]  # (B, rows, W, C) each, from top to bottom

WHOLE = 512 * 512  # pixels; up to this a picture is decoded in one piece, which takes 1.3 GB for FLUX.1
BAND = 256 * 256  # pixels of a band, about
EPS = 1e-6  # GroupNorm's


@shaped
def decode_any(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H W 3"]:
    """Decode latents as `vae.decode` does: up to `WHOLE` pixels by it, above one picture at a time and in bands."""
    _, height, width, _ = latents.shape
    if height * width * cfg.downscale**2 <= WHOLE:
        return vae.decode(p, cfg, latents)
    rows = max(1, BAND // (width * cfg.downscale**2))
    pictures = [decode_in_bands(p, cfg, latents[i : i + 1], rows) for i in range(len(latents))]
    return backend_of(latents).concatenate(pictures, axis=0)


@shaped
def decode_in_bands(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"], rows: int) -> Float[Array, "B H W 3"]:
    """Decode latents as `vae.decode` does, in bands of `rows` latents, or eight times as many pixels."""
    nx, p, groups = backend_of(latents), p["decoder"], cfg.norm_groups
    x = cut(latents / cfg.scale_factor + cfg.shift_factor, rows)
    x = conv3(p["conv_in"], x)
    x = middle(p["mid"], x, groups)
    for level in reversed(p["up"]):
        for block in level["block"]:
            x = resnet_block(block, x, groups)
        if "upsample" in level:
            x = conv3(level["upsample"]["conv"], x, nx.upsample)
    return nx.concatenate(conv3(p["conv_out"], x, norm_silu(p["norm_out"], x, groups)), axis=1)


def cut(x: Array, rows: int) -> Bands:
    """Cut into bands of `rows` rows; the last may have fewer."""
    return [x[:, top : top + rows] for top in range(0, x.shape[1], rows)]


def same(x: Array) -> Array:
    """Return x."""
    return x


# -- convolutions ----------------------------------------------------------------------------------------------


def conv3(p: Tree, bands: Bands, before: Callable[[Array], Array] = same) -> Bands:
    """A 3×3 convolution of before(x), which works on single pixels, or doubles the rows."""
    return [conv3_band(p, bands, i, before) for i in range(len(bands))]


def conv3_band(p: Tree, bands: Bands, i: int, before: Callable[[Array], Array] = same) -> Array:
    """Band i of it: with a row of each neighbour it is convolved, and what came of those rows is cut off."""
    nx = backend_of(bands[i])
    above, below = bands[:i][-1:], bands[i + 1 :][:1]  # none at the picture's edge, which is padded with zeros
    rows = nx.concatenate([*(x[:, -1:] for x in above), bands[i], *(x[:, :1] for x in below)], axis=1)
    y = vae.conv3(p, before(rows))
    each = y.shape[1] // rows.shape[1]  # rows that came of one
    y = y[:, each * len(above) : y.shape[1] - each * len(below)]
    nx.eval(y)
    return y


# -- norms -----------------------------------------------------------------------------------------------------


def group_norm(p: Tree, bands: Bands, groups: int) -> Callable[[Array], Array]:
    """Take the mean and variance of each group over all bands; return the norm, to be applied to some rows."""
    nx = backend_of(*bands)
    batch, _, _, channels = bands[0].shape
    count = sum(band.shape[1] * band.shape[2] for band in bands) * channels // groups

    def grouped(x: Array) -> Array:  # (B, rows · W, G, C/G)
        return nx.as_float32(x).reshape(batch, -1, groups, channels // groups)

    def average(f: Callable[[Array], Array]) -> Array:  # (B, 1, G, 1)
        return sum(nx.sum(f(grouped(band)), axis=(1, 3), keepdims=True) for band in bands) / count

    mean = average(same)
    deviation = nx.sqrt(average(lambda x: (x - mean) * (x - mean)) + EPS)
    nx.eval(mean, deviation)
    return lambda x: (((grouped(x) - mean) / deviation).reshape(x.shape) * p["weight"] + p["bias"]).astype(x.dtype)


def norm_silu(p: Tree, bands: Bands, groups: int) -> Callable[[Array], Array]:
    """The same, then SiLU."""
    norm, nx = group_norm(p, bands, groups), backend_of(*bands)
    return lambda x: nx.silu(norm(x))


# -- blocks ----------------------------------------------------------------------------------------------------


def resnet_block(p: Tree, x: Bands, groups: int) -> Bands:
    """x + conv(silu(norm(conv(silu(norm(x)))))), in place: the bands of x are replaced one by one."""
    nx = backend_of(*x)
    h = conv3(p["conv1"], x, norm_silu(p["norm1"], x, groups))
    before = norm_silu(p["norm2"], h, groups)
    for i, band in enumerate(x):
        shortcut = linear(band, **p["nin_shortcut"]) if "nin_shortcut" in p else band
        x[i] = shortcut + conv3_band(p["conv2"], h, i, before)
        nx.eval(x[i])
    return x


def attention_block(p: Tree, x: Bands, groups: int) -> Bands:
    """x + attention(norm(x)): each band asks, all bands answer."""
    nx, norm = backend_of(*x), group_norm(p["norm"], x, groups)

    def tokens(band: Array) -> Array:  # (B, 1, rows · W, C)
        return norm(band).reshape(band.shape[0], 1, -1, band.shape[-1])

    everything = nx.concatenate([tokens(band) for band in x], axis=2)
    k, v = linear(everything, **p["k"]), linear(everything, **p["v"])

    def attended(band: Array) -> Array:
        h = nx.attention(linear(tokens(band), **p["q"]), k, v)
        return band + linear(h.reshape(band.shape), **p["proj_out"])

    for i, band in enumerate(x):
        x[i] = attended(band)
        nx.eval(x[i])
    return x


def middle(p: Tree, x: Bands, groups: int) -> Bands:
    """Residual block, attention, residual block."""
    x = resnet_block(p["block_1"], x, groups)
    x = attention_block(p["attn_1"], x, groups)
    return resnet_block(p["block_2"], x, groups)
