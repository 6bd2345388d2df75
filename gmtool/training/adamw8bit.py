"""AdamW with moments in 8 bits, by torchao (an extra), and how its state becomes plain tensors.

Moments of 4096 numbers and more are kept as a code of 8 bits a number and a scale for each block of 256; smaller ones
are whole. Source: Dettmers et al., arXiv 2110.02861.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CODES, SCALE = "_codes", "_scale"
"""End the names of a moment's two tensors."""
SMALLEST, BLOCK = 4096, 256
"""Numbers of the smallest moment in 8 bits, and of a block that shares a scale."""


def make_adamw8bit(
    parameters: Sequence[nn.Parameter], decay: float, rate: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """torchao's AdamW8bit, an optimizer of its own for each parameter, whose state exists, and is zero, from the start.

    decay: weight decay. rate: learning rate. Raises ImportError where torchao is not installed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # while it is imported it warns of what is none of a user's business
    try:
        from torchao.optim import AdamW8bit
    finally:
        logging.disable(before)
    parts = []
    for parameter in parameters:
        part = AdamW8bit([parameter], lr=rate, betas=betas, weight_decay=decay)
        part.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),  # there it can be put back without waiting
            "exp_avg": _zeros(parameter, True),
            "exp_avg_sq": _zeros(parameter, False),
        }
        parts.append(part)
    return parts


def _zeros(parameter: Tensor, signed: bool) -> Tensor:
    """A moment of a parameter, zero."""
    if parameter.numel() < SMALLEST or parameter.numel() % BLOCK:
        return torch.zeros_like(parameter)
    zeros: Tensor = _in_8_bits(parameter, signed, BLOCK)
    return zeros


def _in_8_bits(parameter: Tensor, signed: bool, block: int) -> Any:
    from torchao.optim.subclass_8bit import OptimState8bit

    return OptimState8bit.zeros(parameter.shape, signed, block, parameter.device)


@torch.no_grad()
def step_unless(part: torch.optim.Optimizer, skip: Tensor) -> None:
    """Take a step of one of the optimizers that `make_adamw8bit` made, unless ``skip`` () bool, on the device, is true.

    The step is always taken; if skipped, the device then restores copies of the weights and moments of its one
    parameter, so that nothing waits for the device.
    """
    (parameter,) = part.param_groups[0]["params"]
    if parameter.grad is None:
        return
    tensors = [parameter, *plain(part.state[parameter]).values()]
    before = [tensor.clone() for tensor in tensors]
    # torchao compiles its arithmetic, which is worth a compiler on a GPU alone
    with torch.compiler.set_stance("force_eager" if parameter.device.type == "cpu" else "default"):
        part.step()
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(skip, old, tensor))


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
    """The inverse of `plain`, on the parameter's device.

    Raises KeyError for a moment without its scale, ImportError for 8-bit moments where torchao is not installed.
    """
    quantised = [key.removesuffix(CODES) for key in state if key.endswith(CODES)]
    tensors = {key: value.to(parameter.device) for key, value in state.items() if not key.endswith((CODES, SCALE))}
    for key in quantised:
        codes, scale = state[key + CODES], state[key + SCALE]
        moment = _in_8_bits(parameter, key == "exp_avg", codes.numel() // len(scale))  # the first moment has a sign
        moment.codes.copy_(codes)
        moment.scale.copy_(scale)
        tensors[key] = moment
    return tensors
