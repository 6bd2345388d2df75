"""What a network predicts from its tokens: one velocity, or a Gaussian mixture over the velocity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture, from_rows
from gmtool.nn.architecture import Architecture
from gmtool.nn.blocks import linear, positions


class VelocityHead(nn.Module):
    """Tokens (B, N, D) -> velocity (B, C, H, W). linear: D -> patch^2 C numbers a token."""

    def __init__(self, architecture: Architecture, linear: nn.Module) -> None:
        super().__init__()
        self.architecture = architecture
        self.linear = linear

    def forward(self, tokens: Tensor, _embedding: Tensor) -> Tensor:
        """The velocity, float32."""
        numbers = positions(self.linear(tokens).float(), self.architecture.patch, self.architecture.grid)
        return numbers.transpose(1, 2).reshape(-1, *self.architecture.shape)


class Constant(nn.Module):
    """Rows (B, D) -> the same number for each, (B, 1) float32; nothing is learnt."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, rows: Tensor) -> Tensor:
        """The number, a row."""
        return torch.full((len(rows), 1), self.value, device=rows.device)


class MixtureHead(nn.Module):
    """Tokens (B, N, D) -> a mixture over the velocity: K means and K logits a position, one log-std a sample.

    linear: D -> patch^2 K (C + 1) numbers a token; of each position component-major means first, then logits. The
    log-std is read from the detached embedding of time and condition by SiLU, Linear, SiLU, Linear, the last one zero
    at the start (std 1); with ``constant_std`` it is the log of that number. Source: GMFlow, section 3.1.
    """

    def __init__(self, architecture: Architecture, linear: nn.Module) -> None:
        super().__init__()
        self.architecture = architecture
        self.linear = linear
        self.log_std = _log_std(architecture)

    def forward(self, tokens: Tensor, embedding: Tensor) -> GaussianMixture:
        """The mixture over the velocity, float32: means (B, K, C, H, W), log-weights (B, K, 1, H, W)."""
        channels, *size = self.architecture.shape
        components = self.architecture.components
        numbers = positions(self.linear(tokens).float(), self.architecture.patch, self.architecture.grid)
        means, logits = numbers.split([components * channels, components], dim=2)
        log_std = self.log_std(embedding.detach()).float()
        return GaussianMixture(
            means=from_rows(means.unflatten(2, (components, channels)), torch.Size(size)),
            log_weights=from_rows(torch.log_softmax(logits, dim=2).unsqueeze(3), torch.Size(size)),
            variance=(2 * log_std).exp().reshape(-1, 1, 1, 1, 1),
        )


def _log_std(architecture: Architecture) -> nn.Module:
    """An embedding (B, width) -> log-std (B, 1)."""
    if architecture.constant_std is not None:
        return Constant(math.log(architecture.constant_std))
    hidden = architecture.log_std_width or architecture.width
    return nn.Sequential(nn.SiLU(), linear(architecture.width, hidden), nn.SiLU(), linear(hidden, 1, std=0))


def output_layer(architecture: Architecture, width: int) -> nn.Linear:
    """The last linear layer of a network whose tokens have ``width`` numbers."""
    # equal components would stay equal for ever: their weights must differ from the start
    return linear(width, architecture.outputs, std=0.02 if architecture.components else 0)


def head_of(architecture: Architecture, linear: nn.Module) -> nn.Module:
    """The head that reads the numbers which ``linear`` makes of a token."""
    return (MixtureHead if architecture.components else VelocityHead)(architecture, linear)
