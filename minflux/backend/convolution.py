"""A 3×3 convolution as one large matrix product, for MLX on a Linux CPU.

The usual way copies each pixel's 3×3 neighbourhood into a row (im2col) and multiplies by the kernel: nine copies of
the image, and with 16 channels a product too narrow to be fast. Here a row is the (t+2)×(t+2) window of a whole t×t
tile of outputs, and the kernel is written into a matrix that yields the tile at once:

    rows (tiles, (t+2)² C)  ·  matrix ((t+2)² C, t² O)  ->  (tiles, t² O)

For t = 4 that is four times the arithmetic, on a quarter of the copies, in a product of a good shape: two to four times
faster where channels are few (docs/log.md). The gradients are two more such products.
"""

from typing import Any

import mlx.core as mx

FEW_CHANNELS = (4, 8), (2, 24)  # a tile's side, and the most channels for which it pays
FEW_CHANNELS_IN_HALF_FLOATS = (4, 24), (2, 128)  # the limits of earlier versions: other ones change last digits


def suits(x: mx.array, weight: mx.array) -> bool:
    """Return whether tiles pay for this convolution: a 3×3 kernel, few channels, and a size of whole tiles."""
    return weight.shape[1] == 3 and tile_size(x) > 1


def halves(x: mx.array) -> bool:
    """Return whether `downsample3x3` pays, for the sake of its gradient: few channels, and even sides."""
    return x.shape[1] % 2 == x.shape[2] % 2 == 0 and x.shape[3] <= 128


def tile_size(x: mx.array) -> int:
    """Choose a tile's side t, larger for fewer channels; 1 means that the usual way is as good.

    In half floats, where MLX's own kernel is slower, the limits are higher. Both tables are measured in docs/log.md.
    """
    height, width, channels = x.shape[1:]
    for t, most in FEW_CHANNELS if x.dtype == mx.float32 else FEW_CHANNELS_IN_HALF_FLOATS:
        if height % t == 0 and width % t == 0 and channels <= most:
            return t
    return 1


def windows(x: mx.array, t: int) -> mx.array:
    """Copy the (t+2)×(t+2) window of every t×t tile: (B, H, W, C) -> (B·H/t·W/t, (t+2)² C)."""
    x = mx.contiguous(mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]))
    b, height, width, c = x.shape
    tiles = (b, (height - 2) // t, (width - 2) // t, t + 2, t + 2, c)
    strides = (height * width * c, t * width * c, t * c, width * c, c, 1)
    return mx.as_strided(x, tiles, strides).reshape(-1, (t + 2) * (t + 2) * c)


def to_tiles(y: mx.array, t: int) -> mx.array:
    """Gather each t×t tile into a row: (B, H, W, O) -> (B·H/t·W/t, t² O)."""
    b, height, width, o = y.shape
    return y.reshape(b, height // t, t, width // t, t, o).transpose(0, 1, 3, 2, 4, 5).reshape(-1, t * t * o)


def from_tiles(rows: mx.array, t: int, shape: tuple[int, ...]) -> mx.array:
    """Undo `to_tiles`."""
    b, height, width, o = shape
    tiles = rows.reshape(b, height // t, width // t, t, t, o)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def spread(weight: mx.array, t: int) -> mx.array:
    """Write the kernel (O, 3, 3, C) into the matrix of a tile, once for each of its t² outputs."""
    o, _, _, c = weight.shape
    places = [
        mx.pad(weight, [(0, 0), (i, t - 1 - i), (j, t - 1 - j), (0, 0)]) for i in range(t) for j in range(t)
    ]  # t² of (O, t+2, t+2, C)
    return mx.stack(places).reshape(t * t * o, (t + 2) * (t + 2) * c).T


def gather(matrix: mx.array, t: int, o: int) -> mx.array:
    """Sum the t² places of the kernel in a tile's matrix: the transpose of `spread`, for its gradient."""
    places = matrix.T.reshape(t, t, o, t + 2, t + 2, -1)
    return mx.stack([places[i, j, :, i : i + 3, j : j + 3] for i in range(t) for j in range(t)]).sum(axis=0)


@mx.custom_function
def conv3x3(x: mx.array, weight: mx.array) -> mx.array:
    """Convolve (B, H, W, C) by (O, 3, 3, C), padded by 1: (B, H, W, O). H and W must be multiples of the tile."""
    t = tile_size(x)
    return from_tiles(windows(x, t) @ spread(weight, t), t, (*x.shape[:3], weight.shape[0]))


@conv3x3.vjp
def _(primals, gradient, output):
    x, weight = primals
    return gradients(x, weight, gradient)


def gradients(x: mx.array, weight: mx.array, gradient: mx.array) -> tuple[mx.array, mx.array]:
    """Return the gradients (dx, dw) of `conv3x3`.

    dx is the gradient convolved with the kernel turned around, and dw is the product of all windows and gradient tiles.
    """
    t = tile_size(x)
    dx: Any = conv3x3(gradient, weight[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    return dx, gather(windows(x, t).T @ to_tiles(gradient, t), t, weight.shape[0])


@mx.custom_function
def downsample3x3(x: mx.array, weight: mx.array) -> mx.array:
    """Convolve with stride 2, padded by 1 at the bottom and right, which is every other row and column of `conv3x3`."""
    return mx.conv2d(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), weight, stride=2)


@downsample3x3.vjp
def _(primals, gradient, output):
    b, height, width, o = gradient.shape
    lone = mx.pad(gradient[:, :, None, :, None], [(0, 0), (0, 0), (1, 0), (0, 0), (1, 0), (0, 0)])
    x, weight = primals
    return gradients(x, weight, lone.reshape(b, 2 * height, 2 * width, o))
