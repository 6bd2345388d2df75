"""Focal re-weighting of modes: modes with a high loss count more, modes with a low loss less.

The loss of a sample of mode k is multiplied by

    w_k = clamp(v_k / mean_j v_j, 0.3, 3),    v_k = (L_k / mean_j L_j)^gamma,

with L_k the running mean of the mode's loss before the step, and 1 for a mode not seen yet. In the first 2500 steps all
weights are 1, and L_k is the plain mean. The weights affect the gradient only: the reported loss is unweighted.
Source: MM-FM (Luo et al., CVPR 2026), public implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gmtool.distributed import World

LEAST, MOST = 0.3, 3.0
DECAY = 0.9995
"""Decay of the running means per step, for the modes that occur in it."""
FIRST_STEPS = 2500
"""Number of first steps, whose weights are all 1."""


class ModeLosses(nn.Module):
    """The running mean of each mode's loss, as a module so that checkpoints hold its buffers.

    losses (K,): L_k; counts (K,): samples seen of each mode; steps (): steps taken.
    gamma: the exponent. first_steps: number of first steps, whose weights are all 1.
    """

    losses: Tensor
    counts: Tensor
    steps: Tensor

    def __init__(self, modes: int, gamma: float, first_steps: int = FIRST_STEPS) -> None:
        super().__init__()
        self.gamma, self.first_steps = gamma, first_steps
        self.register_buffer("losses", torch.ones(modes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(modes, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_from_earlier)  # type: ignore[no-untyped-call]

    def weights(self, modes: Tensor) -> Tensor:
        """w_k (B,) float32 of samples of the modes k (B,) int64; see the module."""
        every = (self.losses / self.losses.mean().clamp(min=1e-12)) ** self.gamma
        every = (every / every.mean().clamp(min=1e-12)).clamp(LEAST, MOST)
        return torch.where(self.steps < self.first_steps, 1.0, every[modes]).float()

    def update(self, modes: Tensor, losses: Tensor, world: World) -> None:
        """Update L_k with the losses of a step, of all processes; losses that are not finite are left out.

        modes (B,) int64: of the samples. losses (B,): unweighted.
        """
        good = torch.isfinite(losses).double()
        fresh = torch.zeros(2, *self.losses.shape, dtype=torch.float64, device=losses.device)
        fresh[0].index_add_(0, modes, losses.double().nan_to_num(0, 0, 0))
        fresh[1].index_add_(0, modes, good)
        sums, counts = world.sum(fresh)
        seen = self.counts + counts
        plain = (self.losses * self.counts + sums) / seen.clamp(min=1)
        running = DECAY * self.losses + (1 - DECAY) * sums / counts.clamp(min=1)
        new = torch.where((self.steps < self.first_steps) | (self.counts == 0), plain, running)
        self.losses.copy_(torch.where(counts > 0, new, self.losses))
        self.counts.copy_(seen)
        self.steps.add_(1)


def _from_earlier(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Convert the decayed sums and counts in checkpoints of earlier versions to means; the first steps are over."""
    totals = state.pop(f"{prefix}totals", None)
    if totals is not None and isinstance(module, ModeLosses):
        counts = state[f"{prefix}counts"]
        state[f"{prefix}losses"] = torch.where(counts > 0, totals / counts.clamp(min=1e-12), 1.0)
        state[f"{prefix}steps"] = torch.tensor(module.first_steps)
