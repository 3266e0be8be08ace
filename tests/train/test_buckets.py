"""Buckets: about as many tokens in each, and the nearest in shape for every image."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minflux.train.buckets import bucket_of, bucket_sizes, tokens_of

SIDES = st.integers(2, 64).map(lambda across: 16 * across)


@given(SIDES)
def test_buckets_hold_the_square_and_come_in_both_directions(side):
    sizes = bucket_sizes(side)
    assert (side, side) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    assert len(set(sizes)) == len(sizes)


@given(SIDES)
def test_every_bucket_costs_about_the_same(side):
    square = (side // 16) ** 2
    for width, height in bucket_sizes(side):
        assert width % 16 == height % 16 == 0
        assert 0.5 <= width / height <= 2
        assert (
            abs(tokens_of((width, height)) - square) <= max(width, height) / 32 + 1e-9
        )  # half a row of the longer side


@given(SIDES, st.integers(16, 4000), st.integers(16, 4000))
def test_no_bucket_cuts_an_image_less_than_its_own(side, width, height):
    sizes = bucket_sizes(side)
    own = bucket_of((width, height), sizes)
    kept = [share_kept((width, height), size) for size in sizes]
    assert share_kept((width, height), own) == pytest.approx(max(kept))


def share_kept(image, size) -> float:
    """The share of an image that is left when it covers a size and is cut."""
    ratio = image[0] * size[1] / (image[1] * size[0])
    return min(ratio, 1 / ratio)
