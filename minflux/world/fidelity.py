"""How near redrawn images come to their originals: PSNR, SSIM, and how much of the fine detail is left."""

from functools import cache

import numpy as np

from minflux.arrays import Float, Int, shaped

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels
STEADY = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # SSIM's constants


@shaped
def psnr(truth: Int[np.ndarray, "B H W 3"], redrawn: Int[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B"]:
    """Give 10 log₁₀(255² / mean squared error) of each image, in decibels; 100 where they are the same."""
    error = truth.astype(np.float64) - redrawn
    mean = np.maximum((error * error).mean(axis=(1, 2, 3)), 255**2 * 1e-10)
    return 10 * np.log10(255**2 / mean)


@shaped
def ssim(truth: Int[np.ndarray, "B H W 3"], redrawn: Int[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B"]:
    """Give each image's structural similarity, 1 for the same, mean over channels and windows inside the image.

    (2 μₓμᵧ + c₁)(2 σₓᵧ + c₂) / ((μₓ² + μᵧ² + c₁)(σₓ² + σᵧ² + c₂)), moments under a Gaussian of 11 × 11 pixels,
    deviation 1.5 (Wang et al. 2004, IEEE Transactions on Image Processing 13/4).
    """
    x, y = truth.astype(np.float64), redrawn.astype(np.float64)
    mean_x, mean_y = gaussian(x), gaussian(y)
    cross = gaussian(x * y) - mean_x * mean_y
    squares = gaussian(x * x + y * y) - mean_x**2 - mean_y**2
    luminance = (2 * mean_x * mean_y + STEADY[0]) / (mean_x**2 + mean_y**2 + STEADY[0])
    structure = (2 * cross + STEADY[1]) / (squares + STEADY[1])
    return (luminance * structure).mean(axis=(1, 2, 3))


def gaussian(x: np.ndarray) -> np.ndarray:
    """Smooth (B, H, W, C) by SSIM's Gaussian, keeping what lies wholly inside: (B, H - 10, W - 10, C)."""
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis=axis)
        x = windows @ kernel()
    return x


@cache
def kernel() -> np.ndarray:
    """Give the Gaussian's 11 weights, whose sum is 1."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / DEVIATION) ** 2)
    return weights / weights.sum()


@shaped
def sharpness(truth: Int[np.ndarray, "B H W 3"], redrawn: Int[np.ndarray, "B H W 3"]) -> float:
    """Give the energy of the finest detail in the redrawn images, as a share of the originals': 1 when as sharp."""
    return float(detail(redrawn) / detail(truth))


def detail(images: np.ndarray) -> float:
    """Sum the squares of the discrete Laplacian 4 x - left - right - up - down over all inner pixels."""
    x = images.astype(np.float64)
    middle = 4 * x[:, 1:-1, 1:-1]
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return np.square(middle - around).sum()
