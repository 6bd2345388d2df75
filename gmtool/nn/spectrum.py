"""The network that predicts the power spectrum of a sample's noise from the two sizes of its predicted mixture."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import IsotropicGaussian


class SpectrumMLP(nn.Module):
    """A moment-matched Gaussian -> the log power of every channel and frequency, (B, C, H, W) float32, of mean power 1.

    Two numbers per sample enter: the mean variance, and the mean over channels of the variance of the mean over
    positions. A map smaller than ``shape`` takes the corners of the spectrum, which hold the low frequencies. The last
    layer is zero at the start: white noise. Source: GMFlow, arXiv 2504.05304, appendix A.5; its names of weights.
    """

    def __init__(self, shape: tuple[int, int, int], hidden: tuple[int, ...] = (64, 8)) -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((2, *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        last = nn.Linear(hidden[-1], math.prod(shape))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, gaussian: IsotropicGaussian) -> Tensor:
        """The log power, for a mean (B, C, H, W) and a variance (B, 1, H, W or ones)."""
        positions = gaussian.mean.flatten(2)
        # one position has no spread: by the unbiased estimate, 0 / 0
        spread = positions.var(2, correction=min(1, positions.shape[2] - 1)).mean(1)
        sizes = torch.stack([gaussian.variance.flatten(1).mean(1), spread], 1)
        logits = self.mlp(sizes).reshape(-1, *self.shape)
        for dimension, size in zip((2, 3), gaussian.mean.shape[2:], strict=True):
            low, high = logits.narrow(dimension, 0, -(-size // 2)), logits.shape[dimension] - size // 2
            logits = torch.cat([low, logits.narrow(dimension, high, size // 2)], dimension)
        flat = logits.flatten(2)
        return (torch.log_softmax(flat, 2) + math.log(flat.shape[2])).reshape(logits.shape)
