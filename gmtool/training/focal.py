"""Focal re-weighting of modes: those that are learned badly count more, those that are learned well less.

A sample of mode k has the weight w_k = (L_k / L)^gamma, divided by its mean over all modes, then limited to 0.3 ... 3.
L_k is the running mean of the mode's loss, 1 for a mode that has not been seen, and L the mean of L_k over modes; all
as they were before the step. In the first 2500 steps all weights are 1, and L_k is the plain mean of what was seen.
The weights enter the gradient alone: the loss that is reported is the plain one.

Source: MM-FM (Luo et al., CVPR 2026), public implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gmtool.distributed import World

LEAST, MOST = 0.3, 3.0
DECAY = 0.9995
"""Of the running means, once a step for each mode that appears in it."""
FIRST_STEPS = 2500
"""Steps whose weights are all 1."""


class ModeLosses(nn.Module):
    """The running mean of each mode's loss: losses (K,), the samples seen (K,) and the steps taken ().

    A module for its buffers, which a checkpoint keeps. first_steps: steps whose weights are all 1.
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
        """The weights (B,) float32 of samples of ``modes`` (B,) int64."""
        every = (self.losses / self.losses.mean().clamp(min=1e-12)) ** self.gamma
        every = (every / every.mean().clamp(min=1e-12)).clamp(LEAST, MOST)
        return torch.where(self.steps < self.first_steps, 1.0, every[modes]).float()

    def update(self, modes: Tensor, losses: Tensor, world: World) -> None:
        """Take in a step's losses (B,) of samples of ``modes`` (B,), of all processes; only those that are finite."""
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
    """Checkpoints of earlier versions hold faded sums and counts; their means are taken over, past the first steps."""
    totals = state.pop(f"{prefix}totals", None)
    if totals is not None and isinstance(module, ModeLosses):
        counts = state[f"{prefix}counts"]
        state[f"{prefix}losses"] = torch.where(counts > 0, totals / counts.clamp(min=1e-12), 1.0)
        state[f"{prefix}steps"] = torch.tensor(module.first_steps)
