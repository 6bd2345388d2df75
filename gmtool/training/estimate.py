"""What a planned training takes, before it begins: from the cost of a step to that of a run, on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from gmtool.throughput import device_name, known_speed, speed_row
from gmtool.training.checkpoint import checkpoint_bytes
from gmtool.training.cost import StepCost
from gmtool.training.micro_batch import expected_micro_batch
from gmtool.training.settings import AverageSettings, LoopSettings, OptimizerSettings


class Trained(Protocol):
    """The settings that the cost of a run depends on."""

    @property
    def loop(self) -> LoopSettings:
        """Steps and checkpoints."""

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer."""

    @property
    def averages(self) -> AverageSettings:
        """Averages of the weights."""


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of a run.

    operations: of a step, in words. micro_batch: images computed at once. memory: bytes. seconds: None for a device
    whose speed is not known, which ``speed`` tells as a row. checkpoints: the bytes of those that are kept.
    """

    operations: str
    micro_batch: int
    memory: int
    seconds: float | None
    speed: tuple[str, str]
    checkpoints: int


def estimate_run(
    config: Trained, cost: StepCost, batch_size: int, precision: torch.dtype, device: torch.device
) -> RunEstimate:
    """The estimate of a run of steps of a cost per image. precision: of the network's arithmetic."""
    memory = partial(cost.memory, averages=len(config.averages.names), moments=config.optimizer.moment_bytes)
    micro_batch = expected_micro_batch(config.loop.micro_batch, batch_size, device, memory)
    speed, step_flops = known_speed(device_name(device), str(precision).removeprefix("torch.")), batch_size * cost.flops
    return RunEstimate(
        operations=f"{step_flops / 1e12:,.4g} TFLOP ({cost.flops / 1e9:,.4g} GFLOP per image)",
        micro_batch=micro_batch,
        memory=memory(micro_batch),
        seconds=None if speed is None else config.loop.steps * step_flops / speed.train,
        speed=speed_row(speed),
        checkpoints=config.loop.keep * checkpoint_bytes(cost.parameters, config.averages, config.optimizer),
    )
