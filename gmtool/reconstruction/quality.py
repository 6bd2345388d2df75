"""How near reconstructions are to their images: PSNR and SSIM, an image each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
"""Side and deviation, in pixels, of SSIM's Gaussian window."""
K1, K2 = 0.01, 0.03
MOST = 100.0
"""Of PSNR, in dB."""


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared error) in dB, (B,), of images uint8 (B, C, H, W); 100 for equal ones.

    The bound keeps the mean of many finite: among them may be an image of one colour.
    """
    error = (images.float() - targets.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 10 ** (-MOST / 10)))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """The structural similarity, (B,), of images uint8 (B, C, H, W), H and W >= 11: 1 for equal ones.

    Over windows that lie inside the image (torchmetrics also counts reflected borders), weighted by a Gaussian; the
    mean over windows and channels. Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural
    Similarity, 2004.
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
