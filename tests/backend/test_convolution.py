"""The 3×3 convolution by tiles: the same numbers and gradients as MLX's own, for every size of tile."""

import numpy as np
import pytest

from tests.compare import COMPONENT, relative_error

mx = pytest.importorskip("mlx.core")
tiles = pytest.importorskip("minflux.backend.convolution")

SIZES = {  # (height, width, channels, outputs) -> t
    (8, 4, 3, 5): 4,
    (4, 12, 8, 10): 4,  # the gradient's own convolution has 10 channels, and smaller tiles
    (6, 2, 5, 3): 2,
    (4, 4, 9, 2): 2,
    (2, 4, 24, 25): 2,
    (4, 4, 25, 2): 1,
    (5, 7, 3, 2): 1,
    (8, 6, 1, 1): 2,
}
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def random(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def assert_close(got: mx.array, expected: mx.array) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert relative_error(np.array(got), np.array(expected)) <= COMPONENT


def own_conv(x, weight):
    return mx.conv2d(x, weight, padding=1)


def own_downsample(x, weight):
    return mx.conv2d(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), weight, stride=2)


@every_size
def test_the_tile_grows_as_channels_get_fewer(size):
    assert tiles.tile_size(random(2, *size[:3])) == SIZES[size]


@pytest.mark.parametrize(("channels", "t"), [(24, 4), (25, 2), (128, 2), (129, 1)])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_half_floats_go_by_tiles_for_more_channels(channels, t, dtype):
    assert tiles.tile_size(mx.zeros((1, 4, 4, channels), dtype=dtype)) == t


@every_size
def test_values(size):
    height, width, channels, outputs = size
    x, weight = random(2, height, width, channels), random(outputs, 3, 3, channels)
    assert_close(tiles.conv3x3(x, weight), own_conv(x, weight))


@every_size
def test_gradients(size):
    height, width, channels, outputs = size
    primals = [random(2, height, width, channels), random(outputs, 3, 3, channels)]
    cotangent = random(2, height, width, outputs)
    got, expected = (mx.vjp(f, primals, [cotangent])[1] for f in (tiles.conv3x3, own_conv))
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("size", [size for size in SIZES if size[0] % 2 == size[1] % 2 == 0], ids=str)
def test_gradients_of_downsampling(size):
    height, width, channels, outputs = size
    primals = [random(2, height, width, channels), random(outputs, 3, 3, channels)]
    cotangent = random(2, height // 2, width // 2, outputs)
    got, expected = (mx.vjp(f, primals, [cotangent])[1] for f in (tiles.downsample3x3, own_downsample))
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs)


def test_tiles_there_and_back():
    y = random(2, 8, 4, 3)
    rows = tiles.to_tiles(y, 4)
    assert rows.shape == (2 * 2 * 1, 4 * 4 * 3)
    np.testing.assert_array_equal(np.array(tiles.from_tiles(rows, 4, y.shape)), np.array(y))


@pytest.mark.parametrize(
    ("shape", "kernel", "expected"),
    [((1, 8, 8, 16), 3, True), ((1, 8, 8, 25), 3, False), ((1, 7, 8, 16), 3, False), ((1, 8, 8, 16), 1, False)],
)
def test_when_it_pays(shape, kernel, expected):
    assert tiles.suits(mx.zeros(shape), mx.zeros((4, kernel, kernel, shape[-1]))) is expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 8, 128), True), ((1, 8, 8, 129), False), ((1, 7, 8, 8), False), ((1, 8, 7, 8), False)],
)
def test_when_halving_pays(shape, expected):
    assert tiles.halves(mx.zeros(shape)) is expected
