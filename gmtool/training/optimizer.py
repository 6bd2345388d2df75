"""The optimizer of a run: fused AdamW, AdamW with 8-bit moments, or Muon for the blocks' matrices and AdamW otherwise.

A step can be skipped by a flag on the device, without synchronisation: weights and state then stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gmtool.distributed import sharded_like
from gmtool.errors import UserError
from gmtool.training.adamw8bit import make_adamw8bit, plain, restored, step_unless
from gmtool.training.settings import OptimizerSettings

MUON_MOMENTUM = 0.95
"""Decay of the momentum that is orthogonalised, as in Muon's own implementation."""


@dataclass(frozen=True)
class Optimizer:
    """The parts of an optimizer, each over parameters of its own, and the parameters' names."""

    parts: tuple[torch.optim.Optimizer, ...]
    names: Mapping[Tensor, str]

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: float, skip: Tensor) -> None:
        """Take a step with the parameters' gradients, unless it is skipped.

        rate: learning rate. skip () bool, on the parameters' device: whether to leave weights and state as they are.
        """
        for part in self.parts:
            for group in part.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            if part.defaults.get("fused"):
                part.found_inf = skip.float()  # type: ignore[attr-defined]  # which the fused kernels read
                part.step()
            elif isinstance(part.param_groups[0]["lr"], Tensor):
                step_unless(part, skip)
            else:
                _muon_step_unless(part, skip)

    def state(self) -> dict[str, Tensor]:
        """The state as named tensors: "<parameter>.<exp_avg | exp_avg_sq | step | momentum_buffer>".

        Moments in 8 bits are two each; see `gmtool.training.adamw8bit.plain`.
        """
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            states = part.state_dict()["state"]
            for index, name in enumerate(self._names_of(part)):
                tensors |= {f"{name}.{key}": value for key, value in plain(states.get(index, {})).items()}
        return tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned, in place. Raises KeyError for a state of other parameters."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        by_name: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in state.items():
            name, key = full_name.rsplit(".", 1)
            by_name.setdefault(name, {})[key] = sharded_like(tensor, parameters[name])
        for part in self.parts:
            states = {
                index: restored(by_name[name], parameters[name])
                for index, name in enumerate(self._names_of(part))
                if name in by_name
            }
            part.load_state_dict({"state": states, "param_groups": part.state_dict()["param_groups"]})

    def _names_of(self, part: torch.optim.Optimizer) -> Iterator[str]:
        """The names of a part's parameters, in the order of its state."""
        return (self.names[parameter] for group in part.param_groups for parameter in group["params"])


def make_optimizer(network: nn.Module, settings: OptimizerSettings, rate: float) -> Optimizer:
    """The optimizer that the settings ask for; weight decay is applied to matrices only.

    Muon is used for the matrices of the blocks, scaled to the root mean square of AdamW's updates, AdamW for the rest.
    rate: initial learning rate. Raises UserError where the installed PyTorch has no Muon, ImportError where adamw8bit
    is asked for and torchao is not installed.
    Source: AdamW: Loshchilov and Hutter, arXiv 1711.05101; Muon at this scale: Liu et al., arXiv 2502.16982.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    orthogonal = [
        parameter for name, parameter in named if settings.optimizer == "muon" and _is_hidden_matrix(name, parameter)
    ]
    taken = set(orthogonal)
    matrices = [parameter for _, parameter in named if parameter.dim() >= 2 and parameter not in taken]
    others = [parameter for _, parameter in named if parameter.dim() < 2]
    names: dict[Tensor, str] = {parameter: name for name, parameter in named}
    if settings.optimizer == "adamw8bit":
        decayed = make_adamw8bit(matrices, settings.weight_decay, rate, settings.betas)
        return Optimizer((*decayed, *make_adamw8bit(others, 0.0, rate, settings.betas)), names)
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)]
    if orthogonal:
        parts.append(_make_muon(orthogonal, rate, settings.weight_decay))
    return Optimizer(tuple(parts), names)


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon is used for a parameter: a matrix of a block, but no embedding, head, vector or table."""
    return parameter.dim() == 2 and "blocks." in name


def _make_muon(matrices: list[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon with updates of the same root mean square as AdamW's. Source: Liu et al., arXiv 2502.16982, section 2.2."""
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"--optimizer muon needs torch 2.9, and this is {torch.__version__}: upgrade, or use adamw")
    return torch.optim.Muon(
        matrices, lr=rate, weight_decay=weight_decay, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )


@torch.no_grad()
def _muon_step_unless(part: torch.optim.Optimizer, skip: Tensor) -> None:
    """A step of Muon, whose only state is a momentum, undone on the device where ``skip`` () bool is true."""
    parameters = [
        parameter for group in part.param_groups for parameter in group["params"] if parameter.grad is not None
    ]
    before = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        # a step toward where it is leaves the momentum where it is
        momentum = part.state[parameter].get("momentum_buffer", torch.zeros_like(parameter))
        parameter.grad = torch.where(skip, momentum, parameter.grad)
    part.step()
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(torch.where(skip, old, parameter))
