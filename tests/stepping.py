"""Small networks that are trained in memory, by the settings of the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gmtool.artifacts.method_record import MethodRecord
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import build_network
from gmtool.nn.network import Network
from gmtool.settings import make
from gmtool.stages.train.config import TrainConfig
from gmtool.training.method import resolve_method
from gmtool.training.state import make_state
from gmtool.training.step import Stepper
from gmtool.training.task import Forward, Prepared, Task, task_of


def method_for(architecture: Architecture, settings: Mapping[str, Any]) -> MethodRecord:
    """What settings of training come to for latents of a network's shape, its classes, and a mixture."""
    settings = {"condition": "class" if architecture.classes else "none", **settings}
    return resolve_method(make(TrainConfig, settings).method, architecture.shape, architecture.classes, "a mixture")[0]


def stepper_for(network: Network, settings: Mapping[str, Any], micro_batch: int | None = None) -> Stepper:
    """What takes the steps that settings of training ask for."""
    config = make(TrainConfig, settings)
    schedule = config.schedule.resolve(1e-3, config.loop.steps)
    state = make_state(network, config.optimizer, config.averages, schedule.rate, config.loop.batch_size or 32)
    task = task_of(method_for(network.architecture, settings), network)
    return Stepper(task, state, schedule, config.optimizer.clip_at, micro_batch=micro_batch)


def small_stepper(architecture: Architecture, settings: Mapping[str, Any], micro_batch: int | None = None) -> Stepper:
    """`stepper_for` a new network."""
    return stepper_for(build_network(architecture, 0), settings, micro_batch)


Losses = Callable[[Forward, Prepared], Tensor]
"""`Task.losses` of a task."""


@dataclass(frozen=True)
class AlteredTask(Task):
    """A task whose losses are ``alter`` (the true ones, forward, prepared)."""

    alter: Callable[[Losses, Forward, Prepared], Tensor]

    def losses(self, forward: Forward, prepared: Prepared) -> Tensor:
        return self.alter(super().losses, forward, prepared)


def with_losses(stepper: Stepper, alter: Callable[[Losses, Forward, Prepared], Tensor]) -> Stepper:
    """The stepper with other losses; see `AlteredTask`."""
    return replace(stepper, task=AlteredTask(**vars(stepper.task), alter=alter))
