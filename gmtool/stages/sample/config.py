"""Settings of ``gmtool sample``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from gmtool.errors import UserError
from gmtool.settings import Compile, Decoder, Device, Option, Precision, Seed, check_ranges

VelocitySolver = Literal["euler", "heun", "ddim", "ddpm-small", "ddpm-large", "dpmpp-2m", "dpmpp-2m-sde", "unipc"]
MixtureSolver = Literal["gm-ode", "gm-sde"]
Solver = Literal[VelocitySolver, MixtureSolver]
MIXTURE_SOLVERS: tuple[MixtureSolver, ...] = get_args(MixtureSolver)
Guidance = Literal["none", "cfg", "prob", "prob-weights", "auto"]
Protocol = Literal["full", "rae"]


@dataclass(frozen=True)
class SampleConfig:
    """How samples are drawn. None stands for a default that follows the run's objective."""

    steps: Annotated[int, Option("Network evaluations a sample (guidance doubles each).", metavar="N", minimum=1)] = 8
    solver: Annotated[
        Solver | None,
        Option(
            "On a velocity, or on a mixture's mean: euler, heun, ddim, ddpm-small, ddpm-large, dpmpp-2m "
            "(DPM-Solver++), dpmpp-2m-sde, unipc. On a mixture: gm-ode, gm-sde. Default: gm-ode for gm-kl, else euler."
        ),
    ] = None
    protocol: Annotated[
        Protocol,
        Option(
            "full: from noise to data. rae: as RAE and MM-FM sample and score, by euler: --steps counts the points of "
            "the grid (50 are 49 evaluations), it ends at t = 0.001 before the shift, and images are truncated to 8 "
            "bits, not rounded."
        ),
    ] = "full"
    order: Annotated[
        int | None,
        Option("Order of gm-ode and gm-sde: 1 or 2. Default: 2.", metavar="1|2", minimum=1, maximum=2),
    ] = None
    substeps: Annotated[
        int | None,
        Option(
            "Sub-steps of a gm-ode step, without network. Default: about 128 / steps, as published.",
            metavar="N",
            minimum=1,
        ),
    ] = None
    spectral: Annotated[
        bool, Option("Draw with noise of the learnt spectrum (gm-sde; a run trained with --spectral AXES).")
    ] = False
    guidance: Annotated[
        Guidance,
        Option(
            "none; cfg (classifier-free, solvers of a velocity); prob (probabilistic) and prob-weights (component "
            "re-weighting), gm-ode and gm-sde; auto (away from a weaker run, --guide, with any solver)."
        ),
    ] = "none"
    guidance_scale: Annotated[
        float | None,
        Option(
            "Strength. prob, and auto with gm-ode or gm-sde: in [0, 1), default 0.04. cfg, prob-weights, and auto with "
            "other solvers: at least 1, default 1.5.",
            metavar="SCALE",
        ),
    ] = None
    guide: Annotated[
        Path | None,
        Option(
            "The weaker run of --guidance auto, trained on the same latents; its newest weights. Default: none.",
            metavar="RUN",
        ),
    ] = None
    guidance_interval: Annotated[
        str | None,
        Option(
            "Times at which to guide, ends included, 0 = data, 1 = noise. Default: all; outside, a step costs one "
            "evaluation.",
            metavar="LOW,HIGH",
        ),
    ] = None
    orthogonal: Annotated[
        float,
        Option(
            "Share of the guidance direction along the mean that prob, or auto on a mixture, takes out.",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = 1.0
    num: Annotated[int, Option("Images.", metavar="N", minimum=1)] = 1000
    classes: Annotated[
        str | None,
        Option("Class numbers or names, separated by commas; samples take them in turn. Default: all.", metavar="LIST"),
    ] = None
    modes: Annotated[
        str | None,
        Option(
            "Modes of the fitted mixture, numbers separated by commas; samples take them in turn. Default: drawn, as "
            "often as they occur in the data.",
            metavar="LIST",
        ),
    ] = None
    checkpoint: Annotated[
        int | None, Option("Step of the checkpoint to sample. Default: the newest.", metavar="STEP", minimum=0)
    ] = None
    weights: Annotated[Literal["ema", "model"], Option("Averaged weights, or those of the last step.")] = "ema"
    ema: Annotated[
        str | None,
        Option(
            "Which average, where a run keeps several: its decay, or power-WIDTH. Default: the first that train was "
            "given.",
            metavar="NAME",
        ),
    ] = None
    decoder: Decoder = None
    gmm: Annotated[
        Path | None,
        Option("The mixture of a run with --source gmm. Default: where it was in training.", metavar="FILE"),
    ] = None
    batch_size: Annotated[int, Option("Images a network call; it does not change them.", metavar="N", minimum=1)] = 64
    precision: Annotated[
        Precision, Option("Arithmetic of the network. auto: bfloat16 on a GPU that has it, else float32.")
    ] = "auto"
    compile: Compile = False
    device: Device = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_guidance()
        self._check_solver()
        if self.ema is not None and self.weights == "model":
            raise UserError(f"--ema {self.ema} has no effect with --weights model: drop one of them")

    def _check_guidance(self) -> None:
        """Refuse guidance settings that do not belong together."""
        scale = self.guidance_scale
        if scale is not None and self.guidance == "none":
            raise UserError("--guidance-scale has no effect without --guidance cfg, prob, prob-weights or auto")
        if scale is not None and self.guidance != "auto":  # the range of auto depends on the solver
            check_scale(self.guidance, scale, shifts=self.guidance == "prob")
        if self.guidance_interval is not None and self.guidance == "none":
            raise UserError("--guidance-interval has no effect without --guidance")
        parse_interval(self.guidance_interval)
        if self.guidance == "auto" and self.guide is None:
            raise UserError("--guidance auto needs a weaker run: give its folder by --guide")
        if self.guidance != "auto" and self.guide is not None:
            raise UserError("--guide belongs to --guidance auto")

    def _check_solver(self) -> None:
        """Refuse settings that the solver cannot carry."""
        mixture = self.solver in MIXTURE_SOLVERS
        if self.guidance in ("prob", "prob-weights") and self.solver is not None and not mixture:
            raise UserError(
                f"--guidance {self.guidance} needs a mixture solver: take --solver gm-ode or gm-sde, not {self.solver}"
            )
        if self.guidance == "cfg" and mixture:
            raise UserError(
                f"--guidance cfg needs a solver of a velocity, such as --solver euler, not {self.solver}; for it take "
                "prob"
            )
        if self.solver is not None and not mixture and (self.order is not None or self.substeps is not None):
            raise UserError(f"--order and --substeps belong to gm-ode and gm-sde, not to --solver {self.solver}")
        if self.solver == "gm-sde" and self.substeps is not None:
            raise UserError("--substeps belongs to --solver gm-ode: gm-sde draws once a step")
        if self.protocol == "rae" and (self.solver not in (None, "euler") or self.steps < 2):
            raise UserError("--protocol rae is a grid of --solver euler, of at least --steps 2 points")
        if self.protocol == "rae" and self.guidance in ("prob", "prob-weights"):
            raise UserError(f"--guidance {self.guidance} needs a mixture solver, and --protocol rae is a grid of euler")
        if self.spectral and self.solver != "gm-sde":
            raise UserError("--spectral is how gm-sde draws: take --solver gm-sde")


def check_scale(scheme: str, scale: float, shifts: bool) -> None:
    """Raise UserError for a scale outside the range of ``scheme``.

    shifts: whether the scheme shifts a mixture, in [0, 1), or extrapolates, from 1 on.
    """
    if shifts and not 0 <= scale < 1:
        raise UserError(f"--guidance-scale of {scheme} lies in [0, 1), not {scale:g}")
    if not shifts and not 1 <= scale < math.inf:
        raise UserError(f"--guidance-scale of {scheme} is at least 1, not {scale:g}")


def parse_interval(text: str | None) -> tuple[float, float]:
    """The times of ``--guidance-interval``, (low, high); all of [0, 1] for None. Raises UserError."""
    if text is None:
        return 0.0, 1.0
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--guidance-interval is two times LOW,HIGH, such as 0.2,0.8, not {text!r}") from None
    if not 0 <= low <= high <= 1:
        raise UserError(f"--guidance-interval lies in 0 <= LOW <= HIGH <= 1, not {text}")
    return low, high
