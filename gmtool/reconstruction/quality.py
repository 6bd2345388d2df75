"""Quality of reconstructions, per image: PSNR and SSIM.

Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation, in pixels, of SSIM's Gaussian window."""
K1, K2 = 0.01, 0.03
MOST = 100.0
"""Upper bound of PSNR, in dB."""


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared error) in dB of each image, (B,); at most 100, the value of equal images.

    The bound keeps means finite: some images may be of one colour.
    images, targets (B, C, H, W): uint8.
    """
    error = (images.float() - targets.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 10 ** (-MOST / 10)))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """The structural similarity of each image, (B,); 1 for equal images.

        (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2)),

    the mean over channels and windows inside the image (torchmetrics also uses reflected borders), with means m,
    variances s^2 and covariances s_xy within a window, weighted by a Gaussian.
    images, targets (B, C, H, W): uint8, H and W >= 11.
    """
    x, y = images.double(), targets.double()
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1).float()


def _blurred(x: Tensor) -> Tensor:
    """(B, C, H - 10, W - 10): weighted means of windows."""
    place = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, WINDOW)
    x = functional.conv2d(x, weights, groups=x.shape[1])
    return functional.conv2d(x, weights.mT, groups=x.shape[1])
