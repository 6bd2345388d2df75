"""How noise and data are paired in training.

independent  noise and data are independent                                (Lipman et al., arXiv 2210.02747)
mode         noise comes from the data sample's own mode                   (MM-FM, section 3.2)
batch-ot     the noise of a mini-batch is permuted so that sum |x_i - z_p(i)|^2 is least
             (Tong et al., arXiv 2302.00482; Pooladian et al., arXiv 2304.14772)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Coupling(Protocol):
    """How noise and data are paired in training.

    own_mode: whether the noise of a mixture source comes from the data sample's own mode; else its mode is drawn from
    the weights, independently of the data. whole_batch: whether `pair` depends on all samples of a batch, so that
    several processes must pair their samples together.
    """

    @property
    def own_mode(self) -> bool:
        """See the class."""

    @property
    def whole_batch(self) -> bool:
        """See the class."""

    def pair(self, x: Tensor, z: Tensor) -> Tensor:
        """z (B, C, *S) in the order in which it is paired with the data x (B, C, *S)."""


@dataclass(frozen=True)
class Independent:
    """z as it was drawn, from modes drawn independently of the data."""

    own_mode = False
    whole_batch = False

    def pair(self, _x: Tensor, z: Tensor) -> Tensor:
        """z (B, C, *S) itself."""
        return z


@dataclass(frozen=True)
class ModeCoupling:
    """z as it was drawn, from each data sample's own mode, k ~ p(k | x)."""

    own_mode = True
    whole_batch = False

    def pair(self, _x: Tensor, z: Tensor) -> Tensor:
        """z (B, C, *S) itself."""
        return z


@dataclass(frozen=True)
class BatchOT:
    """The optimal assignment between the data and the noise of a mini-batch."""

    own_mode = False
    whole_batch = True

    def pair(self, x: Tensor, z: Tensor) -> Tensor:
        """z (B, C, *S), permuted by `batch_optimal_transport`."""
        return z[batch_optimal_transport(x, z)]


def draw_modes(modes: Tensor, probabilities: Tensor, uniform: Tensor) -> Tensor:
    """k ~ p(k | x), one per sample: (B,) int64.

    modes, probabilities (B, n): a sample's modes and their probabilities, which sum to 1 (hard assignment: n = 1).
    uniform (B,) in [0, 1).
    """
    cumulated = probabilities.cumsum(1)
    # against the sum as rounded, so that a uniform number near 1 cannot fall on the padding, whose probability is 0
    chosen = (uniform.unsqueeze(1) * cumulated[:, -1:] >= cumulated).sum(1, keepdim=True).clamp(max=modes.shape[1] - 1)
    return modes.gather(1, chosen).squeeze(1).long()


def batch_optimal_transport(x: Tensor, z: Tensor) -> Tensor:
    """The permutation p (B,) that minimises sum_i |x_i - z_p(i)|^2: exact assignment in the mini-batch.

    x, z (B, ...).
    """
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x.flatten(1).double(), z.flatten(1).double()).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, device=z.device)
