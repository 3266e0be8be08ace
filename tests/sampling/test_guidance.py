"""Classifier-free guidance."""

import numpy as np

from minflux.sampling.guidance import guided


def test_guidance_goes_from_the_negative_past_the_positive(nx):
    v = nx.array(np.array([[1, 2], [0, 5]], np.float32))  # positive, then negative
    for scale, expected in ((1.0, [[1, 2]]), (0.0, [[0, 5]]), (3.0, [[3, -4]])):
        np.testing.assert_array_equal(nx.to_numpy(guided(v, scale)), expected)
