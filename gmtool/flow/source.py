"""The source of a flow: z ~ N(0, I), or z ~ sum_k w_k N(mu_k, diag s_k^2), a mixture fitted to the data.

A mixture source is used given the mode: which mode k a sample's noise comes from is the coupling's decision in training
and a draw from the weights in sampling, so (mu_k, s_k) travel with the samples, as `ModeStatistics`. Everything is in
the coordinates of normalised latents.

Source: MM-FM (Luo et al., CVPR 2026), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModeStatistics:
    """Mean mu_k and standard deviation s_k > 0 of the mode of each sample, both (B, C, *S)."""

    mean: Tensor
    std: Tensor


class Source(Protocol):
    """p(z | k), as a map from standard normal noise.

    gaussian: whether z ~ N(0, I). by_mode: whether z depends on the mode k.
    """

    @property
    def gaussian(self) -> bool:
        """See the class."""

    @property
    def by_mode(self) -> bool:
        """See the class."""

    def draw(self, noise: Tensor, modes: ModeStatistics | None) -> Tensor:
        """z (B, C, *S) for noise ~ N(0, I) of that shape, given the samples' modes."""


@dataclass(frozen=True)
class GaussianSource:
    """z ~ N(0, I), whatever the modes."""

    gaussian = True
    by_mode = False

    def draw(self, noise: Tensor, _modes: ModeStatistics | None) -> Tensor:
        """z = noise (B, C, *S)."""
        return noise


@dataclass(frozen=True)
class MixtureSource:
    """z ~ N(mu_k, diag s_k^2) given the mode k."""

    gaussian = False
    by_mode = True

    def draw(self, noise: Tensor, modes: ModeStatistics | None) -> Tensor:
        """z = mu_k + s_k noise (B, C, *S). Raises ValueError without modes."""
        if modes is None:
            raise ValueError("a mixture source draws from the modes of the samples: give their statistics")
        return modes.mean + modes.std * noise


@dataclass(frozen=True)
class ModeMixture:
    """A fitted mixture in memory: weights (K,), means and stds (K, C, *S)."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __len__(self) -> int:
        return len(self.weights)

    def at(self, modes: Tensor) -> ModeStatistics:
        """The statistics of modes (B,) int64."""
        return ModeStatistics(self.means[modes], self.stds[modes])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Modes k ~ weights, (count,) int64."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)
