"""What the labels of a published DiTDH are: classes, the modes of a mixture, or nothing.

The weights cannot tell it. MM-FM's network that is conditioned on the modes of a mixture and the one that is not have
the same weights, those of the labels unused in the second; so a checkpoint with labels and a mixture is told apart by
the one who imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmtool.errors import UserError
from gmtool.flow.names import Condition

if TYPE_CHECKING:
    from torch import Tensor

LABELS = "y_embedder.embedding_table.weight"
"""The weights of the labels."""


@dataclass(frozen=True)
class Labels:
    """What the labels of a checkpoint are: its condition, and how many classes and modes it knows.

    constant: without a condition, the network adds one vector all the same.
    """

    condition: Condition
    classes: int = 0
    modes: int = 0
    constant: bool = False


def labels_of(weights: Mapping[str, Tensor], asked: Condition | None, modes: int) -> Labels:
    """The meaning of a checkpoint's labels: the condition ``asked`` for, or else the only one that is possible.

    modes: number of modes of the mixture source, 0 without one. Raises UserError, naming --condition, where the weights
    do not allow what is asked for, or leave more than one possibility.
    """
    rows = len(weights[LABELS]) if LABELS in weights else 0
    if asked is None and modes and rows > 1:
        raise UserError(
            f"this checkpoint has {rows} labels and comes with a mixture: specify the conditioning with --condition "
            "mode, class or none (MM-FM's unconditional networks keep labels that they do not use)"
        )
    condition = asked or ("class" if rows > 1 else "none")
    if condition == "none":
        return Labels("none", constant=rows == 1)
    if rows < 2:
        raise UserError(f"--condition {condition}: this checkpoint has no labels: remove the flag")
    if condition == "class":
        return Labels("class", classes=rows - 1)
    if rows not in (modes, modes + 1):
        wanted = f"the mixture has {modes} modes" if modes else "give the mixture by --gmm"
        raise UserError(f"--condition mode: this checkpoint has {rows} labels; {wanted}")
    return Labels("mode", modes=modes)
