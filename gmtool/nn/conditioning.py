"""The conditions of a network and their null values for guidance, in training and in sampling alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gmtool.flow.names import Condition
from gmtool.nn.architecture import Architecture, Conditions


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a network.

    classes, modes: the number of labels, 0 for none; the number is also the null label. mode_mean: whether the mean of
    a sample's mode is an input. hides: the condition that dropout hides: the class, the mode, or none. Modes that
    define the flow's coordinates are never hidden.
    """

    classes: int
    modes: int
    mode_mean: bool
    hides: Condition

    def given(self, classes: Tensor | None, modes: Tensor | None, mean: Tensor | None) -> Conditions:
        """The conditions that the network uses, of labels (B,) int64 and the means of modes (B, C, H, W)."""
        return Conditions(
            classes if self.classes else None, modes if self.modes else None, mean if self.mode_mean else None
        )

    def hidden(self, conditions: Conditions, rows: Tensor) -> Conditions:
        """The conditions, in which that of ``hides`` is hidden from the samples where ``rows`` (B,) bool is true.

        Hidden labels are the null label, a hidden mean of the mode is zero.
        """
        if self.hides == "class" and conditions.classes is not None:
            return replace(conditions, classes=conditions.classes.masked_fill(rows, self.classes))
        if self.hides == "mode" and conditions.modes is not None:
            modes, mean = conditions.modes.masked_fill(rows, self.modes), conditions.context
            if mean is not None:
                mean = mean.masked_fill(rows.reshape(-1, *[1] * (mean.dim() - 1)), 0)
            return replace(conditions, modes=modes, context=mean)
        return conditions

    def all_hidden(self, conditions: Conditions) -> Conditions:
        """`hidden` for every sample."""
        known = next((t for t in (conditions.classes, conditions.modes, conditions.context) if t is not None), None)
        if known is None:
            return conditions
        return self.hidden(conditions, torch.ones(len(known), dtype=torch.bool, device=known.device))


def conditioning_of(architecture: Architecture, hides: Condition) -> Conditioning:
    """The conditions of a network of this architecture. hides: the one that dropout hides."""
    return Conditioning(architecture.classes, architecture.modes, bool(architecture.context), hides)
