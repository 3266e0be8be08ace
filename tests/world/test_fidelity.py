"""PSNR, SSIM and sharpness: held to their definitions on images small enough to go through pixel by pixel."""

import numpy as np
import pytest

from minflux.world.fidelity import detail, psnr, sharpness, ssim

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 16, 14, 3), dtype=np.uint8)


def test_psnr_of_a_known_error():
    brighter = np.full((2, 16, 16, 3), 100, np.uint8)
    brighter[1] += 5
    np.testing.assert_allclose(psnr(np.full_like(brighter, 90), brighter), 20 * np.log10([25.5, 17.0]))


def test_psnr_of_no_error_is_100():
    np.testing.assert_allclose(psnr(PICTURES, PICTURES), 100)


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """One image, each window and channel in turn."""
    x, y = x.astype(float), y.astype(float)
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for channel in range(3):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (z[top : top + 11, left : left + 11, channel] for z in (x, y))
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = 6.5025, 58.5225
                values.append(
                    (2 * mean_a * mean_b + c1) * (2 * both + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )  # fmt: skip
    return float(np.mean(values))


def test_ssim_is_its_definition():
    other = np.clip(PICTURES + RNG.normal(0, 40, PICTURES.shape), 0, 255).astype(np.uint8)
    expected = [ssim_by_definition(x, y) for x, y in zip(PICTURES, other, strict=True)]
    np.testing.assert_allclose(ssim(PICTURES, other), expected, rtol=1e-9)
    assert 0.1 < expected[0] < 0.95
    np.testing.assert_allclose(ssim(PICTURES, PICTURES), 1)


def test_the_detail_of_one_bright_pixel():
    """Its Laplacian is 4 at the pixel, -1 at its four neighbours: 20 in squares."""
    image = np.zeros((1, 7, 7, 3), np.uint8)
    image[0, 3, 3, 0] = 10
    assert detail(image) == pytest.approx(20 * 100)


def test_a_blurred_image_is_less_sharp():
    blurred = ((PICTURES[:, :, :-1].astype(int) + PICTURES[:, :, 1:]) // 2).astype(np.uint8)
    assert sharpness(PICTURES[:, :, 1:], blurred) < 0.7
    assert sharpness(PICTURES, PICTURES) == 1
