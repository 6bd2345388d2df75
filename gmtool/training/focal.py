"""Focal re-weighting of modes: those that are learnt badly count more, those that are learnt well less.

A datum of mode k has the weight w_k = (l_k / l)^gamma, limited to 0.3 ... 3, where l_k is the running mean of the
mode's loss and l their mean over modes, both as they were before the step. A mode that has not been seen has weight 1.
The weights enter the gradient alone: the loss that is reported is the plain one.

MM-FM's mode-conditional run is published with gamma 2 and these limits; how it forms the weight from a mode's loss is
not, so this form is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmtool.distributed import World

LEAST, MOST = 0.3, 3.0
KEPT = 0.99
"""What one datum leaves of the running means: a mode remembers its last hundred data or so."""


class ModeLosses(nn.Module):
    """The running mean of each mode's loss, as a quotient: totals (K,) over counts (K,) of faded data.

    A module for its buffers, which a checkpoint keeps.
    """

    totals: Tensor
    counts: Tensor

    def __init__(self, modes: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("totals", torch.zeros(modes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(modes, dtype=torch.float64))

    def weights(self, modes: Tensor) -> Tensor:
        """The weights (B,) float32 of data of ``modes`` (B,) int64."""
        seen = self.counts > 0
        means = self.totals / self.counts.clamp(min=1e-12)
        average = (means * seen).sum() / seen.sum().clamp(min=1)
        every = torch.where(seen, (means / average.clamp(min=1e-12)) ** self.gamma, 1.0).clamp(LEAST, MOST)
        return every[modes].float()

    def update(self, modes: Tensor, losses: Tensor, world: World) -> None:
        """Take in a step's losses (B,) of data of ``modes`` (B,), of all processes; those not finite are left out."""
        good = torch.isfinite(losses).double()
        fresh = torch.zeros(2, *self.totals.shape, dtype=torch.float64, device=losses.device)
        fresh[0].index_add_(0, modes, losses.double().nan_to_num(0, 0, 0))
        fresh[1].index_add_(0, modes, good)
        fresh = world.sum(fresh)
        fading = KEPT ** fresh[1]
        # the data of one step fade alike: together they count (1 - fading) / (1 - KEPT)
        share = (1 - fading) / (1 - KEPT) / fresh[1].clamp(min=1)
        self.totals.mul_(fading).add_(share * fresh[0])
        self.counts.mul_(fading).add_(share * fresh[1])
