"""A network for points of a few numbers, where the flow can be looked at: an MLP on sin-cos features of x and t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.blocks import label_embedding, linear
from gmtool.nn.heads import make_head, output_layer

FREQUENCIES = 8
"""Octaves of the features."""
LOWEST = math.pi / 8
"""Radians per unit of the lowest octave: data within -8 ... 8 stay in one period."""


def octaves(values: Tensor, count: int = FREQUENCIES) -> Tensor:
    """The values, then sin and cos of 2^j pi / 8 times each, 0 <= j < count: (B, D) -> (B, (2 count + 1) D)."""
    rates = LOWEST * 2.0 ** torch.arange(count, device=values.device)
    angles = (values.unsqueeze(2) * rates).flatten(1)
    return torch.cat([values, angles.sin(), angles.cos()], dim=1)


class PointNetwork(nn.Module):
    """Points x_t (B, C, 1, 1), times t (B,), modes (B,) -> the velocity, or a mixture over it, for examples and tests.

    A point is a latent of one position, so that all of `gmtool.flow` works on it.

    channels: C, the numbers of a point.
    width, depth: hidden layers, with SiLU.
    components: of the mixture, 0 for a velocity.
    frequencies: octaves of x, 0 for x alone, which suits smooth data of more dimensions.
    modes: number of labels that it is conditioned on, 0 for none.
    """

    def __init__(
        self, channels: int, width: int, depth: int, components: int, frequencies: int = FREQUENCIES, modes: int = 0
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.from_x = linear((2 * frequencies + 1) * channels, width)
        self.from_t = linear(2 * FREQUENCIES + 1, width)
        self.from_mode = label_embedding(modes, width) if modes else None
        self.body = nn.Sequential(
            nn.SiLU(), *(layer for _ in range(depth - 1) for layer in (linear(width, width), nn.SiLU()))
        )
        self.head = make_head(output_layer(width, channels, components), (channels, 1, 1), components, width)

    def forward(self, x_t: Tensor, t: Tensor, modes: Tensor | None = None) -> Tensor | GaussianMixture:
        """The velocity (B, C, 1, 1), or a mixture over it, float32. Raises ValueError when the modes are missing."""
        embedding = self.from_t(octaves(t.unsqueeze(1)))
        if self.from_mode is not None:
            if modes is None:
                raise ValueError("this network is conditioned on modes: give their labels")
            embedding = embedding + self.from_mode(modes)
        hidden = self.body(self.from_x(octaves(x_t.flatten(1), self.frequencies)) + embedding)
        return self.head(hidden.unsqueeze(1), embedding)
