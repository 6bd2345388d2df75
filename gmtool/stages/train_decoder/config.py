"""Settings of ``gmtool train-decoder``: those of its components, and what is the stage's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from gmtool.errors import UserError
from gmtool.reconstruction.settings import (
    AdversarialSettings,
    AugmentationSettings,
    DecoderSettings,
    LossSettings,
    phases,
)
from gmtool.settings import ImageWorkers, Option, Seed, Settings
from gmtool.tokenizers.settings import TokenizerSettings
from gmtool.training.settings import (
    AverageSettings,
    ComputeSettings,
    LoggingSettings,
    LoopSettings,
    OptimizerSettings,
    ScheduleSettings,
)


@dataclass(frozen=True)
class CropSettings(Settings):
    """What is cut out of the images, and which of them are kept for scores."""

    TITLE = "Images"

    resize: Annotated[
        int | None,
        Option(
            "Resize the short side to this before a random crop of --image-size. Default: 1.5 times --image-size.",
            metavar="PX",
            minimum=1,
        ),
    ] = None
    upscale: Annotated[bool, Option("Scale images smaller than a crop up, instead of leaving them out.")] = False
    validation: Annotated[
        Path | None,
        Option(
            "Score and preview on the images of this folder or archive. Default: on held-out images (--hold-out).",
            metavar="DIR",
        ),
    ] = None
    hold_out: Annotated[
        int | None,
        Option(
            "Number of images, evenly spaced, to hold out of training for scores and previews. Default: --eval-num, at "
            "most a tenth of the images.",
            metavar="N",
            minimum=1,
        ),
    ] = None
    workers: ImageWorkers = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.validation is not None and self.hold_out is not None:
            raise UserError("--hold-out is for scores without --validation: remove one of them")


@dataclass(frozen=True)
class TrainDecoderConfig(Settings):
    """All settings of a decoder's training."""

    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    crops: CropSettings = CropSettings()
    decoder: DecoderSettings = DecoderSettings()
    losses: LossSettings = LossSettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    loop: LoopSettings = LoopSettings(steps=50_000)
    optimizer: OptimizerSettings = OptimizerSettings(clip=0.0)
    schedule: ScheduleSettings = ScheduleSettings(warmup=1000, lr_knots="100%:2e-5", lr_curve="cosine")
    averages: AverageSettings = AverageSettings(ema=(0.9978,))
    logging: LoggingSettings = LoggingSettings(eval_every=1000, eval_num=256)
    compute: ComputeSettings = ComputeSettings()
    seed: Seed = 0

    def check(self) -> None:
        """See `Settings.check`."""
        phases(self.losses, self.adversarial, self.loop.steps)
        if self.optimizer.optimizer == "muon":
            raise UserError("--optimizer muon is only for the networks of gmtool train: use adamw")
        if self.tokenizer.descriptor is not None:
            raise UserError("--descriptor describes images for fit-gmm, which a decoder has no use for: remove it")

    @property
    def follows_the_steps(self) -> bool:
        """Whether a step depends on the total number of steps."""
        starts = (
            self.losses.perceptual_from,
            self.adversarial.discriminator_from,
            self.adversarial.adversarial_from,
        )
        return self.schedule.follows_the_steps or any("%" in start for start in starts)
