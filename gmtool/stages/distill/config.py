"""Settings of ``gmtool distill``: those of the student and of its teacher's guidance, and the trainer's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gmtool.errors import NoEffect, UserError
from gmtool.flow.names import PolicyName
from gmtool.sampling.settings import GuidanceSettings
from gmtool.settings import Option, Seed, Settings, flag
from gmtool.training.settings import (
    AverageSettings,
    DataSettings,
    LoggingSettings,
    LoopSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainComputeSettings,
)

COMPONENTS, POINTS = 32, 10
"""K of a student's mixture, and predictions of dx, by default; pi-Flow's."""


@dataclass(frozen=True)
class StudentSettings(Settings):
    """The student and its imitation loss; see `gmtool.flow.imitation`."""

    TITLE = "Student"

    evaluations: Annotated[int, Option("Network evaluations per sample.", metavar="N", minimum=1, maximum=64)] = 1
    last_segment: Annotated[
        float,
        Option(
            "Length of the last segment of time, next to the data, as a fraction of the others' (before the time "
            "shift).",
            metavar="SHARE",
            minimum=0.01,
            maximum=1.0,
        ),
    ] = 1.0
    policy: Annotated[
        PolicyName,
        Option(
            "Policy that an evaluation predicts: gm, a mixture, followed in closed form; dx, predictions of the data "
            "on a grid of times; dx-poly, a polynomial in time."
        ),
    ] = "gm"
    components: Annotated[
        int | None,
        Option(
            f"Components K of the mixture (gm). Default: {COMPONENTS}, or the teacher's own mixture as it is.",
            metavar="K",
            minimum=1,
        ),
    ] = None
    points: Annotated[
        int | None,
        Option(
            f"Number of predictions of the data (dx), or of coefficients (dx-poly). Default: {POINTS}.",
            metavar="N",
            minimum=1,
        ),
    ] = None
    coordinates: Annotated[
        Literal["auto", "plain", "whitened"],
        Option(
            "Coordinates of the policy: plain, those of the teacher's flow; whitened, each mode's. auto: whitened for "
            "a teacher on --source gmm that is conditioned on the mode."
        ),
    ] = "auto"
    states: Annotated[
        int, Option("Number of states per segment at which policy and teacher are compared.", metavar="N", minimum=1)
    ] = 2
    component_dropout: Annotated[
        float,
        Option(
            "Probability of dropping a component of the policy on the way to these states (gm).",
            metavar="SHARE",
            minimum=0.0,
            below=1.0,
        ),
    ] = 0.05
    window: Annotated[
        int,
        Option(
            "Compare the policy's mean velocity over a window of N sub-steps (1/128 each). 0: at a point.",
            metavar="N",
            minimum=0,
            maximum=128,
        ),
    ] = 0
    teacher_steps: Annotated[
        int,
        Option(
            "Training steps over which the teacher's share of the trajectory decays from 1 to 0. 0: off.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    data_free: Annotated[
        bool,
        Option(
            "Train without latents: start from noise, with drawn classes and modes, and follow the student through all "
            "segments."
        ),
    ] = False
    latents: Annotated[
        Path | None,
        Option("Latents that the teacher was trained on. Default: the path used in its training.", metavar="FILE"),
    ] = None
    teacher_checkpoint: Annotated[
        int | None, Option("Step of the teacher's checkpoint. Default: the newest.", metavar="STEP", minimum=0)
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.policy != "gm" and self.components is not None:
            raise NoEffect("components", f"--components are of a mixture, not of --policy {self.policy}: use --points")
        if self.policy == "gm" and self.points is not None:
            raise NoEffect("points", "--points are those of --policy dx or dx-poly: use --components")
        if self.data_free and self.latents is not None:
            raise NoEffect("latents", "--data-free uses no latents: remove --latents, or --data-free")
        if self.window and self.policy != "gm":
            raise NoEffect("window", f"--window is of --policy gm, not of {self.policy}: remove it")


@dataclass(frozen=True)
class StudentDataSettings(DataSettings):
    """Training data, as much of it as the teacher's or less."""

    fraction: Annotated[
        float | None,
        Option(
            "Fraction of the images to use: a random subset, fixed by --seed, with the same fraction of each class. "
            "Default: that which the teacher was trained on.",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        self.check_part(self.fraction)


@dataclass(frozen=True)
class DistillConfig(Settings):
    """All settings of a distillation."""

    student: StudentSettings = StudentSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    data: StudentDataSettings = StudentDataSettings()
    loop: LoopSettings = LoopSettings(steps=20_000)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    averages: AverageSettings = AverageSettings()
    logging: LoggingSettings = LoggingSettings()
    compute: TrainComputeSettings = TrainComputeSettings()
    seed: Seed = 0

    def check(self) -> None:
        """See `Settings.check`."""
        if self.student.data_free:
            for name in ("images", "flip"):
                if getattr(self.data, name):
                    raise NoEffect(name, f"{flag(name)} has no effect with --data-free: remove one of them")
            if self.data.fraction not in (None, 1):
                raise NoEffect("fraction", "--fraction has no effect with --data-free: remove one of them")
            if self.logging.eval_every:
                raise UserError("--eval-every compares with training images: remove it, or --data-free")
        self.compute.check_optimizer(self.optimizer)
