"""The VAE's decoder again, a band of rows at a time, for large images.

`vae.decode` holds each level several times: FLUX.1's last has up to 256 channels for every pixel, and takes 5 kB a
pixel in float32, 5 GB at 1024². Here a level is a list of bands, and all that is temporary is made for one band:
1.5 kB a pixel, and 0.3 GB.

It is the same computation, not an approximation by tiles that are decoded apart. A convolution reaches a row into the
bands above and below; a norm has the mean and variance of all bands together; in the middle each band's pixels attend
to those of all bands. So there is nothing to blend, and no seam.

Two copies of a level would be half of the memory. So some functions *use up* the bands that they are given: they take
each out of the list when its successor is computed, and leave the list empty.
"""

from collections.abc import Callable, Iterator

from minflux.arrays import Array, Float, Tree, shaped
from minflux.backend import backend_of
from minflux.model import vae
from minflux.model.linear import linear
from minflux.model.vae import VAEConfig

Bands = list[Array]  # (B, rows, W, C) each, from top to bottom
ByPixel = Callable[[Array], Array]  # works on single pixels, or doubles the rows

WHOLE = 512 * 512  # pixels; up to this an image is decoded in one piece, which takes 1.3 GB for FLUX.1
BAND = 256 * 256  # pixels of a band, about
EPS = 1e-6  # GroupNorm's


@shaped
def decode_any(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"]) -> Float[Array, "B H W 3"]:
    """Decode latents by `vae.decode` up to `WHOLE` pixels; above that, one image at a time and in bands."""
    _, height, width, _ = latents.shape
    if height * width * cfg.downscale**2 <= WHOLE:
        return vae.decode(p, cfg, latents)
    rows = max(1, BAND // (width * cfg.downscale**2))
    images = [decode_in_bands(p, cfg, latents[i : i + 1], rows) for i in range(len(latents))]
    return backend_of(latents).concatenate(images, axis=0)


@shaped
def decode_in_bands(p: Tree, cfg: VAEConfig, latents: Float[Array, "B H8 W8 Z"], rows: int) -> Float[Array, "B H W 3"]:
    """Decode latents as `vae.decode` does, in bands of `rows` latents, or eight times as many pixels."""
    x = cut(vae.unscaled(p, cfg, latents), rows)
    nx, p, groups = backend_of(latents), p["decoder"], cfg.norm_groups
    x = convolve(p["conv_in"], x)
    x = middle_in_bands(p["mid"], x, groups)
    for level in reversed(p["up"]):
        for block in level["block"]:
            x = resnet_in_bands(block, x, groups)
        if "upsample" in level:
            x = convolve(level["upsample"]["conv"], x, nx.upsample)
    last = convolve(p["conv_out"], x, norm_silu_over(p["norm_out"], x, groups))
    return nx.concatenate(last, axis=1)


def cut(x: Array, rows: int) -> Bands:
    """Cut an image into bands of `rows` rows; the last may have fewer."""
    return [x[:, top : top + rows] for top in range(0, x.shape[1], rows)]


def use_up(bands: Bands) -> Iterator[Array]:
    """Yield the bands from top to bottom, each taken out of the list, so that nothing else holds it."""
    while bands:
        yield bands.pop(0)


def computed(band: Array) -> Array:
    """Compute a band now, so that what it was made of is let go before the next one."""
    backend_of(band).eval(band)
    return band


# -- convolutions ----------------------------------------------------------------------------------------------


def as_it_is(x: Array) -> Array:
    """Return x itself: the `before` of a convolution that nothing comes before."""
    return x


def convolve(p: Tree, bands: Bands, before: ByPixel = as_it_is) -> Bands:
    """Apply `before` to each band, then a 3×3 convolution that sees one row of each neighbour."""
    return [convolve_band(p, bands, i, before) for i in range(len(bands))]


def convolve_band(p: Tree, bands: Bands, i: int, before: ByPixel = as_it_is) -> Array:
    """Convolve band i with one extra row above and below, and drop the extra output rows.

    At the image's edge there is no row to add, and the convolution pads with zeros.
    """
    above = [band[:, -1:] for band in bands[:i][-1:]]
    below = [band[:, :1] for band in bands[i + 1 :][:1]]
    x = backend_of(bands[i]).concatenate([*above, bands[i], *below], axis=1)
    y = vae.conv3(p, before(x))
    each = y.shape[1] // x.shape[1]  # output rows of an input row: 1, or 2 where `before` doubles them
    top, bottom = each * len(above), each * len(below)
    return computed(y[:, top : y.shape[1] - bottom])


# -- norms -----------------------------------------------------------------------------------------------------


def group_norm_over(p: Tree, bands: Bands, groups: int) -> ByPixel:
    """Take the mean and variance of each group over all bands, and return the norm, to be applied to some rows."""
    nx = backend_of(*bands)
    batch, _, _, channels = bands[0].shape
    count = sum(band.shape[1] * band.shape[2] for band in bands) * channels // groups

    def grouped(x: Array) -> Array:  # (B, rows · W, G, C/G)
        return nx.as_float32(x).reshape(batch, -1, groups, channels // groups)

    def average(f: ByPixel) -> Array:  # (B, 1, G, 1)
        sums = [nx.sum(f(grouped(band)), axis=(1, 3), keepdims=True) for band in bands]
        return sum(sums) / count

    mean = average(as_it_is)
    variance = average(lambda x: (x - mean) * (x - mean))
    deviation = nx.sqrt(variance + EPS)
    nx.eval(mean, deviation)

    def norm(x: Array) -> Array:
        y = (grouped(x) - mean) / deviation
        y = y.reshape(x.shape) * p["weight"]
        y = y + p["bias"]  # each step takes the one before's place, so that two bands are held at most
        return y.astype(x.dtype)

    return norm


def norm_silu_over(p: Tree, bands: Bands, groups: int) -> ByPixel:
    """Take the statistics of all bands, and return their norm followed by SiLU."""
    nx, norm = backend_of(*bands), group_norm_over(p, bands, groups)
    return lambda x: nx.silu(norm(x))


# -- blocks ----------------------------------------------------------------------------------------------------


def resnet_in_bands(p: Tree, x: Bands, groups: int) -> Bands:
    """Compute x + conv(silu(norm(conv(silu(norm(x)))))) of all bands; uses up x."""
    h = convolve(p["conv1"], x, norm_silu_over(p["norm1"], x, groups))
    before = norm_silu_over(p["norm2"], h, groups)

    def residual(i: int, band: Array) -> Array:
        return computed(vae.shortcut(p, band) + convolve_band(p["conv2"], h, i, before))

    return [residual(i, band) for i, band in enumerate(use_up(x))]


def attention_in_bands(p: Tree, x: Bands, groups: int) -> Bands:
    """Compute x + attention(norm(x)), where each band asks and all bands answer; uses up x."""
    nx, norm = backend_of(*x), group_norm_over(p["norm"], x, groups)

    def tokens(band: Array) -> Array:  # (B, 1, rows · W, C)
        return norm(band).reshape(band.shape[0], 1, -1, band.shape[-1])

    everything = nx.concatenate([tokens(band) for band in x], axis=2)  # (B, 1, H · W, C)
    k, v = linear(everything, **p["k"]), linear(everything, **p["v"])

    def attended(band: Array) -> Array:
        q = linear(tokens(band), **p["q"])
        h = nx.attention(q, k, v).reshape(band.shape)
        return computed(band + linear(h, **p["proj_out"]))

    return [attended(band) for band in use_up(x)]


def middle_in_bands(p: Tree, x: Bands, groups: int) -> Bands:
    """Apply a residual block, attention and a residual block to all bands; uses up x."""
    x = resnet_in_bands(p["block_1"], x, groups)
    x = attention_in_bands(p["attn_1"], x, groups)
    return resnet_in_bands(p["block_2"], x, groups)
