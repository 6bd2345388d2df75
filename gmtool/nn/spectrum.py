"""The network that predicts the power spectrum of a sample's noise from two statistics of its predicted mixture.

Source: GMFlow, arXiv 2504.05304, appendix A.5.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import IsotropicGaussian


class SpectrumMLP(nn.Module):
    """A moment-matched Gaussian -> the log power s of every channel and frequency, (B, C, H, W) float32.

        s = log_softmax(MLP) + log(H W),    over the frequencies of a channel, whose mean power is therefore 1

    The input is two numbers per sample: the mean variance, and the variance of the mean over positions, averaged over
    channels. A map smaller than ``shape`` uses the corners of the spectrum, which hold the low frequencies. The last
    layer is initially zero: white noise. Weights are named as in GMFlow's implementation.
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
        """The log power (B, C, H, W) of a Gaussian with mean (B, C, H, W) and variance (B, 1, H, W) or (B, 1, 1, 1)."""
        positions = gaussian.mean.flatten(2)
        # the unbiased estimate of the variance over a single position would be 0 / 0
        spread = positions.var(2, correction=min(1, positions.shape[2] - 1)).mean(1)
        sizes = torch.stack([gaussian.variance.flatten(1).mean(1), spread], 1)
        logits = self.mlp(sizes).reshape(-1, *self.shape)
        for dimension, size in zip((2, 3), gaussian.mean.shape[2:], strict=True):
            low, high = logits.narrow(dimension, 0, -(-size // 2)), logits.shape[dimension] - size // 2
            logits = torch.cat([low, logits.narrow(dimension, high, size // 2)], dimension)
        flat = logits.flatten(2)
        return (torch.log_softmax(flat, 2) + math.log(flat.shape[2])).reshape(logits.shape)
