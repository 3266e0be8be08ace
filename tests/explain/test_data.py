"""Packing: what comes back is what went in, to within half a level."""

import json

import numpy as np
import pytest

from minflux.explain.data import pack, pack_shares, pack_signed, unpack, unpack_shares, unpack_signed

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3, 4)])
def test_arrays_come_back(dtype, shape):
    array = (RNG.random(shape) * 255).astype(dtype)
    packed = json.loads(json.dumps(pack(array)))
    found = unpack(packed)
    assert found.shape == shape
    np.testing.assert_array_equal(found, array.astype(found.dtype))


def test_an_array_that_is_not_laid_out_in_order_comes_back():
    array = RNG.random((3, 4)).astype(np.float32).T
    np.testing.assert_array_equal(unpack(pack(array)), array)


def test_shares_come_back_to_half_a_level():
    x = RNG.random((3, 4, 9)).astype(np.float32) ** 4
    x[0, 0] = 0
    found = unpack_shares(pack_shares(x))
    assert (np.abs(found - x) <= x.max(axis=-1, keepdims=True) / 509).all()
    np.testing.assert_array_equal(found[0, 0], 0)


def test_signed_numbers_come_back_to_half_a_level():
    x = RNG.standard_normal((3, 4, 9)).astype(np.float32)
    x[0, 0] = 0
    found = unpack_signed(pack_signed(x))
    assert (np.abs(found - x) <= np.abs(x).max(axis=-1, keepdims=True) / 253).all()
    np.testing.assert_array_equal(found[0, 0], 0)
