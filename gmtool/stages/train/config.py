"""Settings of ``gmtool train``: those of its components, and what is the stage's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from gmtool.errors import UserError
from gmtool.nn.settings import NetworkSettings
from gmtool.settings import Fraction, Option, Seed, Settings
from gmtool.training.settings import (
    AverageSettings,
    ComputeSettings,
    LoggingSettings,
    LoopSettings,
    MethodSettings,
    OptimizerSettings,
    ScheduleSettings,
)


@dataclass(frozen=True)
class DataSettings(Settings):
    """Training data besides the latents."""

    TITLE = "Data"

    gmm: Annotated[
        Path | None, Option("Mixture that fit-gmm wrote. Default: gmm.h5 beside the latents.", metavar="FILE")
    ] = None
    images: Annotated[
        Path | None,
        Option(
            "Train on the images of this folder or archive, encoded on the fly. The latents file then only provides "
            "the tokenizer, the statistics, the classes and the data of fit-gmm: encode --limit N is enough. An "
            "image's mode is drawn from the posterior of its own descriptor. Default: train on the latents file.",
            metavar="DIR",
        ),
    ] = None
    flip: Annotated[
        bool,
        Option(
            "Flip images horizontally at random, anew each time (with --images; of latents encode --flip stores flips)."
        ),
    ] = False
    fraction: Fraction = 1.0
    workers: Annotated[
        int | None,
        Option("Data-loading workers. Default: 0 if the latents fit in memory, else 4.", metavar="N", minimum=0),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.flip and self.images is None:
            raise UserError("--flip needs --images; to flip cached latents use encode --flip both")
        if self.images is not None and self.fraction < 1:
            raise UserError(
                "--fraction takes a part of the latents, not of --images: remove --images; or give a folder of that "
                "part alone (links suffice) to encode and to --images, and fit its latents"
            )


@dataclass(frozen=True)
class TrainComputeSettings(ComputeSettings):
    """Device, precision and memory, also of networks that do not fit on one GPU."""

    shard: Annotated[
        bool,
        Option("Shard weights and optimizer state across processes (FSDP2), for networks that do not fit on one GPU."),
    ] = False


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

    data: DataSettings = DataSettings()
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
        if self.compute.shard and self.optimizer.optimizer != "adamw":
            raise UserError(f"--optimizer {self.optimizer.optimizer} needs whole tensors: use adamw with --shard")
