"""Settings of ``gmtool train``: those of its components, and what is the stage's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gmtool.errors import UserError
from gmtool.nn.settings import NetworkSettings
from gmtool.settings import Fraction, Seed, Settings
from gmtool.training.settings import (
    AverageSettings,
    DataSettings,
    LoggingSettings,
    LoopSettings,
    MethodSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainComputeSettings,
)


@dataclass(frozen=True)
class TrainDataSettings(DataSettings):
    """Training data, all of it or a part."""

    fraction: Fraction = 1.0

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        self.check_part(self.fraction)


class TrainerConfig(Protocol):
    """The settings that the trainer reads, of ``train`` or ``distill``."""

    @property
    def data(self) -> DataSettings:
        """The training data."""

    @property
    def loop(self) -> LoopSettings:
        """Steps and checkpoints."""

    @property
    def optimizer(self) -> OptimizerSettings:
        """The optimizer."""

    @property
    def schedule(self) -> ScheduleSettings:
        """The learning rate."""

    @property
    def averages(self) -> AverageSettings:
        """Averages of the weights."""

    @property
    def logging(self) -> LoggingSettings:
        """Logging."""

    @property
    def compute(self) -> TrainComputeSettings:
        """Device, precision and memory."""

    @property
    def seed(self) -> int:
        """The seed of all random numbers."""


@dataclass(frozen=True)
class TrainConfig(Settings):
    """All settings of a training run."""

    data: TrainDataSettings = TrainDataSettings()
    method: MethodSettings = MethodSettings()
    network: NetworkSettings = NetworkSettings()
    loop: LoopSettings = LoopSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    averages: AverageSettings = AverageSettings()
    logging: LoggingSettings = LoggingSettings()
    compute: TrainComputeSettings = TrainComputeSettings()
    seed: Seed = 0

    def check(self) -> None:
        """See `Settings.check`."""
        self.network.components_of(mixture=self.method.objective == "gm-kl")
        if self.method.spectral_weight is not None and not self.network.spectral:
            raise UserError("--spectral-weight has no effect without --spectral: remove it, or give --spectral")
        self.compute.check_optimizer(self.optimizer)
