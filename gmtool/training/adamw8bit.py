"""AdamW with moments in 8 bits, by torchao (an extra), and how its state becomes plain tensors.

Moments of 4096 numbers and more are kept as a code of 8 bits a number and a scale for each block of 256; smaller ones
are whole. Source: Dettmers et al., arXiv 2110.02861.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CODES, SCALE = "_codes", "_scale"
"""End the names of a moment's two tensors."""


def make_adamw8bit(groups: list[dict[str, Any]], rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """torchao's AdamW8bit; raises ImportError where torchao is not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # while it is imported it warns of what is none of a user's business
    try:
        from torchao.optim import AdamW8bit
    finally:
        logging.disable(before)
    return AdamW8bit(groups, lr=rate, betas=betas)


def step_unless(part: torch.optim.Optimizer, skip: Tensor) -> None:
    """A step, or none where ``skip`` () bool says so. Waits for the device: the moments cannot be put back otherwise
    without a second copy of them.
    """
    if bool(skip):
        return
    # torchao compiles its arithmetic, which is worth a compiler on a GPU alone
    on_cpu = part.param_groups[0]["params"][0].device.type == "cpu"
    with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
        part.step()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A parameter's state as plain tensors: a moment in 8 bits becomes two, whose names end in _codes and _scale."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if hasattr(value, "codes") and hasattr(value, "scale"):
            tensors |= {key + CODES: value.codes, key + SCALE: value.scale}
        else:
            tensors[key] = value
    return tensors


def restored(state: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """The inverse of `plain`, on the parameter's device; a state of plain tensors alone is left as it is."""
    quantised = [key.removesuffix(CODES) for key in state if key.endswith(CODES)]
    tensors = {key: value for key, value in state.items() if not key.endswith((CODES, SCALE))}
    for key in quantised:
        from torchao.optim.subclass_8bit import OptimState8bit

        codes, scale = state[key + CODES], state[key + SCALE]
        # the first moment has a sign
        zeros = OptimState8bit.zeros(parameter.shape, key == "exp_avg", codes.numel() // len(scale), parameter.device)
        zeros.codes.copy_(codes)
        zeros.scale.copy_(scale)
        tensors[key] = zeros
    return tensors
