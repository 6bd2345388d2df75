"""The settings of a decoder and of its training. They stand apart because flags are made from them without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gmtool.errors import UserError
from gmtool.settings import Option, Settings
from gmtool.training.schedule import Schedule

SizeName = Literal["tiny", "B", "L", "XL"]
LpipsWeights = Annotated[
    Path | None,
    Option(
        "File of torchvision's VGG16 weights for LPIPS, vgg16-397923af.pth. Default: downloaded by torchvision.",
        metavar="FILE",
    ),
]


def parse_start(text: str, steps: int, flag: str) -> int:
    """A step, or a share of ``steps`` such as 50%, as a step from 0. Raises UserError, naming the flag."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"\d+(\.\d+)?%", text) and float(text[:-1]) <= 100:
        return round(float(text[:-1]) / 100 * steps)
    raise UserError(f"{flag} is a step or a percentage of --steps, such as 20000 or 50%, not {text}")


@dataclass(frozen=True)
class DecoderSettings(Settings):
    """The decoder, and the latents that it learns from."""

    TITLE = "Decoder"

    size: Annotated[
        SizeName | None,
        Option(
            "Decoder size: a ViT of 192 x 4 (tiny), 768 x 12 (B), 1024 x 24 (L) or 1152 x 28 (XL). Default: XL on a "
            "GPU, tiny on a CPU."
        ),
    ] = None
    init: Annotated[
        str | None,
        Option(
            "Start from this decoder instead of random weights: hub id or local folder of an AutoencoderRAE, or a "
            "decoder's .pt file of RAE or MM-FM. Default: none.",
            metavar="ID|FOLDER|FILE",
        ),
    ] = None
    noise_tau: Annotated[
        float,
        Option(
            "Noise added to each training latent, with standard deviation TAU times a draw of U(0, 1). 0: none.",
            metavar="TAU",
            minimum=0.0,
        ),
    ] = 0.8

    def check(self) -> None:
        """See `Settings.check`."""
        if self.size is not None and self.init is not None:
            raise UserError("--init gives the decoder's size: remove --size")


@dataclass(frozen=True)
class LossSettings(Settings):
    """The terms of the decoder's loss that need no discriminator."""

    TITLE = "Losses"

    perceptual: Annotated[
        Literal["lpips", "none"], Option("Perceptual loss: lpips, on VGG16's features, or none (L1 alone).")
    ] = "lpips"
    perceptual_weight: Annotated[float, Option("Weight of LPIPS; that of L1 is 1.", metavar="W", minimum=0.0)] = 1.0
    perceptual_from: Annotated[
        str, Option("Step from which LPIPS is used: a number, or a percentage of --steps.", metavar="STEP|%")
    ] = "0"
    lpips_weights: LpipsWeights = None

    def check(self) -> None:
        """See `Settings.check`."""
        parse_start(self.perceptual_from, 1, "--perceptual-from")
        if self.perceptual == "none" and self.lpips_weights is not None:
            raise UserError("--lpips-weights has no effect with --perceptual none: remove one of them")


@dataclass(frozen=True)
class AdversarialSettings(Settings):
    """The discriminator, and the adversarial term of the decoder's loss."""

    TITLE = "Adversarial loss"

    adversarial: Annotated[
        Literal["dino", "none"], Option("Discriminator: dino, on the features of a frozen DINO ViT, or none.")
    ] = "dino"
    adversarial_weight: Annotated[
        float, Option("Weight of the adversarial loss, times the adaptive weight.", metavar="W", minimum=0.0)
    ] = 0.75
    adaptive_limit: Annotated[
        float, Option("Upper bound of the adaptive weight; 0 turns the adversarial term off.", metavar="W", minimum=0.0)
    ] = 1e4
    discriminator_from: Annotated[
        str,
        Option("Step from which the discriminator is trained: a number, or a percentage of --steps.", metavar="STEP|%"),
    ] = "37.5%"
    adversarial_from: Annotated[
        str,
        Option(
            "Step from which the adversarial loss is part of the decoder's: a number, or a percentage of --steps.",
            metavar="STEP|%",
        ),
    ] = "50%"
    discriminator_loss: Annotated[Literal["hinge", "vanilla"], Option("Loss of the discriminator.")] = "hinge"
    discriminator_weights: Annotated[
        str | None,
        Option(
            "The discriminator's frozen ViT: hub id, local folder, or a .pth file of DINO's authors. Default: "
            "facebook/dino-vits8.",
            metavar="ID|FOLDER|FILE",
        ),
    ] = None
    discriminator_blocks: Annotated[
        tuple[int, ...],
        Option(
            "Index, from 0, of a block of the ViT whose tokens are read in addition to those of the last one. Repeat "
            "the flag for several. Default: the last block of each quarter, 2 5 8 11 of 12.",
            metavar="N",
            minimum=0,
        ),
    ] = ()
    discriminator_kernel: Annotated[
        int, Option("Kernel width of the heads' convolution, in tokens; odd.", metavar="N", minimum=1)
    ] = 9
    discriminator_lr: Annotated[
        float | None,
        Option(
            "Learning rate of the discriminator; warm-up and schedule are the decoder's, in proportion. Default: --lr.",
            metavar="RATE",
            minimum=0.0,
        ),
    ] = None
    discriminator_betas: Annotated[
        tuple[float, float],
        Option("AdamW's betas for the discriminator.", metavar="BETA1 BETA2", minimum=0.0, below=1.0),
    ] = (0.9, 0.95)
    discriminator_weight_decay: Annotated[
        float,
        Option("Weight decay of the discriminator's matrices.", metavar="RATE", minimum=0.0, maximum=1e3),
    ] = 0.0

    def check(self) -> None:
        """See `Settings.check`."""
        for name in ("discriminator_from", "adversarial_from"):
            parse_start(getattr(self, name), 1, f"--{name.replace('_', '-')}")
        if self.discriminator_kernel % 2 == 0:
            raise UserError(f"--discriminator-kernel must be odd, not {self.discriminator_kernel}")
        if self.adversarial == "none" and self.discriminator_weights is not None:
            raise UserError("--discriminator-weights has no effect with --adversarial none: remove one of them")

    def schedule(self, decoder: Schedule) -> Schedule:
        """The discriminator's schedule: the decoder's, in proportion to ``discriminator_lr`` where that is given."""
        if self.discriminator_lr is None or not decoder.rate:
            return decoder
        factor = self.discriminator_lr / decoder.rate
        knots = tuple((step, factor * rate) for step, rate in decoder.knots)
        return Schedule(self.discriminator_lr, decoder.warmup, knots, decoder.curve)


@dataclass(frozen=True)
class AugmentationSettings(Settings):
    """What is done to all images that the discriminator sees."""

    TITLE = "Augmentation for the discriminator"

    translation: Annotated[
        float,
        Option(
            "Shift images by up to this fraction of their side, in whole pixels.",
            metavar="SHARE",
            minimum=0.0,
            maximum=0.5,
        ),
    ] = 0.125
    recolour: Annotated[bool, Option("Change brightness, saturation and contrast randomly.")] = True
    cutout: Annotated[
        float, Option("Set a square with this fraction of the side to zero.", metavar="SHARE", minimum=0.0, maximum=1.0)
    ] = 0.0
    augment_chance: Annotated[
        float,
        Option("Probability, per batch, of each of these augmentations.", metavar="P", minimum=0.0, maximum=1.0),
    ] = 1.0


@dataclass(frozen=True)
class Phases:
    """The steps, from 0, from which on LPIPS is used, the discriminator trained, and its loss used."""

    perceptual: int
    discriminator: int
    adversarial: int


def phases(losses: LossSettings, adversarial: AdversarialSettings, steps: int) -> Phases:
    """The phases of a run of ``steps`` steps. Raises UserError where the decoder would follow an untrained network."""
    phases = Phases(
        parse_start(losses.perceptual_from, steps, "--perceptual-from"),
        parse_start(adversarial.discriminator_from, steps, "--discriminator-from"),
        parse_start(adversarial.adversarial_from, steps, "--adversarial-from"),
    )
    if adversarial.adversarial != "none" and phases.adversarial < phases.discriminator:
        raise UserError(
            f"--adversarial-from {adversarial.adversarial_from} lies before --discriminator-from "
            f"{adversarial.discriminator_from}: the decoder would learn from an untrained discriminator"
        )
    return phases
