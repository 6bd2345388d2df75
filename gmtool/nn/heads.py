"""What a network predicts from its tokens: a velocity, or a Gaussian mixture over the velocity.

    q(u | x_t) = sum_k pi_k N(u; u_k, sigma^2 I)    at each position, with one sigma per sample.

A token stands for a square of ``patch`` x ``patch`` positions of a latent of ``shape`` (C, H, W). At each position a
head needs C numbers for a velocity, and K (C + 1) for a mixture of K ``components``: the means u_k and the logits of
pi_k.
Source: GMFlow, arXiv 2504.05304, section 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gmtool.mixture.gaussian_mixture import GaussianMixture, from_rows
from gmtool.nn.blocks import linear, positions

Shape = tuple[int, int, int]
"""(C, H, W) of a latent."""


def output_layer(width: int, channels: int, components: int, patch: int = 1, velocities: int = 1) -> nn.Linear:
    """The last linear layer: tokens (..., width) -> the numbers that a head needs.

    They are patch^2 K (C + 1) for a mixture of K ``components``, else patch^2 C for each of the ``velocities``.
    """
    numbers = components * (channels + 1) or velocities * channels
    # components with equal weights would have equal gradients and stay equal: their weights must differ from the start
    return linear(width, patch**2 * numbers, std=0.02 if components else 0)


def make_head(
    linear: nn.Module,
    shape: Shape,
    components: int,
    width: int,
    *,
    patch: int = 1,
    constant_std: float | None = None,
    log_std_width: int = 0,
    velocities: int = 1,
) -> nn.Module:
    """The head for a mixture of ``components``, or for velocities if ``components`` is 0; see the module.

    The head is called with tokens (B, N, D) and an embedding (B, width) of time and condition.

    linear: tokens (B, N, D) -> the numbers that the head needs, as `output_layer` does, or the identity.
    shape: (C, H, W) of a latent. width: of the embedding. patch: see the module.
    constant_std: sigma; None learns it, by a layer of ``log_std_width`` (0: ``width``).
    velocities: number of velocities.
    """
    if not components:
        return VelocityHead(linear, shape, patch, velocities)
    log_std = LogStd(width, log_std_width or width) if constant_std is None else Constant(math.log(constant_std))
    return MixtureHead(linear, log_std, shape, components, patch)


class VelocityHead(nn.Module):
    """Tokens (B, N, D) -> velocity (B, C, H, W), or several ``velocities`` (B, n, C, H, W). linear: see `make_head`."""

    def __init__(self, linear: nn.Module, shape: Shape, patch: int = 1, velocities: int = 1) -> None:
        super().__init__()
        self.linear, self.shape, self.patch = linear, shape, patch
        self.several = (velocities,) if velocities > 1 else ()

    def forward(self, tokens: Tensor, _embedding: Tensor) -> Tensor:
        """The velocity (B, C, H, W), or the velocities (B, n, C, H, W), float32."""
        numbers = _by_position(self.linear(tokens), self.shape, self.patch)
        return numbers.transpose(1, 2).reshape(-1, *self.several, *self.shape)


class Constant(nn.Module):
    """Rows (B, D) -> a constant for each, (B, 1) float32."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, rows: Tensor) -> Tensor:
        """(B, D) -> (B, 1)."""
        return torch.full((len(rows), 1), self.value, device=rows.device)


class LogStd(nn.Sequential):
    """An embedding (B, width) -> log sigma (B, 1): SiLU, Linear, SiLU, Linear, the last initially zero, so sigma = 1.

    Source: GMFlow, arXiv 2504.05304, section 3.1.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.SiLU(), linear(width, hidden), nn.SiLU(), linear(hidden, 1, std=0))


class MixtureHead(nn.Module):
    """Tokens (B, N, D) -> a mixture over the velocity: K means and K logits per position, one log sigma per sample.

    linear: see `make_head`; at each position it gives the means, component by component, and then the logits.
    log_std: the detached embedding (B, width) of time and condition -> log sigma (B, 1).
    Source: GMFlow, arXiv 2504.05304, section 3.1.
    """

    def __init__(self, linear: nn.Module, log_std: nn.Module, shape: Shape, components: int, patch: int = 1) -> None:
        super().__init__()
        self.linear, self.log_std = linear, log_std
        self.shape, self.components, self.patch = shape, components, patch

    def forward(self, tokens: Tensor, embedding: Tensor) -> GaussianMixture:
        """The mixture, float32: means (B, K, C, H, W), log-weights (B, K, 1, H, W), variance (B, 1, 1, 1, 1)."""
        channels, *size = self.shape
        numbers = _by_position(self.linear(tokens), self.shape, self.patch)
        means, logits = numbers.split([self.components * channels, self.components], dim=2)
        # bfloat16 has steps of 1/64 between 2 and 4: of 3 % in sigma^2
        with torch.autocast(embedding.device.type, enabled=False):
            log_std = self.log_std(embedding.detach().float())
        return GaussianMixture(
            means=from_rows(means.unflatten(2, (self.components, channels)), torch.Size(size)),
            log_weights=from_rows(torch.log_softmax(logits, dim=2).unsqueeze(3), torch.Size(size)),
            variance=(2 * log_std).exp().reshape(-1, 1, 1, 1, 1),
        )


def _by_position(numbers: Tensor, shape: Shape, patch: int) -> Tensor:
    """Numbers of tokens (B, N, patch^2 D) as float32 numbers of positions (B, H W, D), row by row."""
    return positions(numbers.float(), patch, (shape[1] // patch, shape[2] // patch))
