"""A network for points of a few numbers, where the flow can be looked at: an MLP on sin-cos features of x and t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture
from gmtool.nn.blocks import linear
from gmtool.nn.heads import head_of, output_layer

FREQUENCIES = 8
"""Octaves of the features."""
LOWEST = math.pi / 8
"""Radians per unit of the lowest octave: data within -8 ... 8 stay in one period."""


def octaves(values: Tensor) -> Tensor:
    """sin and cos of 2^j pi / 8 times each number, j = 0 ... 7, and the numbers: (B, D) -> (B, 17 D)."""
    rates = LOWEST * 2.0 ** torch.arange(FREQUENCIES, device=values.device)
    angles = (values.unsqueeze(2) * rates).flatten(1)
    return torch.cat([values, angles.sin(), angles.cos()], dim=1)


class PointNetwork(nn.Module):
    """Points x_t (B, C, 1, 1), times t (B,) -> a prediction of the velocity, as a latent of one position.

    depth layers of ``width`` with SiLU; the head is a mixture of ``components``, or a velocity for 0 of them.
    """

    def __init__(self, channels: int, width: int, depth: int, components: int) -> None:
        super().__init__()
        features = 2 * FREQUENCIES + 1
        self.from_x = linear(features * channels, width)
        self.from_t = linear(features, width)
        self.body = nn.Sequential(
            nn.SiLU(), *(layer for _ in range(depth - 1) for layer in (linear(width, width), nn.SiLU()))
        )
        architecture = Architecture((channels, 1, 1), depth, width, heads=0, components=components)
        self.head = head_of(architecture, output_layer(architecture, width))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor | GaussianMixture:
        """The velocity (B, C, 1, 1), or a mixture over it."""
        embedding = self.from_t(octaves(t.unsqueeze(1)))
        hidden = self.body(self.from_x(octaves(x_t.flatten(1))) + embedding)
        return self.head(hidden.unsqueeze(1), embedding)
