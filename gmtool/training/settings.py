"""The settings of training's components. They stand apart from these because flags are made from them without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from gmtool.errors import UserError, install
from gmtool.flow.names import Condition, CouplingName, SourceName, TimeDistribution
from gmtool.forecast import Choice
from gmtool.settings import Compile, Device, Option, Settings
from gmtool.training.schedule import Curve, Schedule, parse_knots, place_knots

GPU_BATCH, CPU_BATCH = 128, 32
"""Batch sizes by default."""


def by_device(gpu: bool) -> str:
    """Why a default is as it is, where the device decides."""
    return f"the default on {'a GPU' if gpu else 'a CPU'}"


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
    workers: Annotated[
        int | None,
        Option("Data-loading workers. Default: 0 if the latents fit in memory, else 4.", metavar="N", minimum=0),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.flip and self.images is None:
            raise UserError("--flip needs --images; to flip cached latents use encode --flip both")

    def check_part(self, fraction: float | None) -> None:
        """Raise UserError for a part of --images."""
        if self.images is not None and fraction not in (None, 1):
            raise UserError(
                "--fraction takes a part of the latents, not of --images: remove --images; or give a folder of that "
                "part alone (links suffice) to encode and to --images, and fit its latents"
            )


@dataclass(frozen=True)
class MethodSettings(Settings):
    """The method: objective, source, coupling and condition."""

    TITLE = "Method"

    objective: Annotated[
        Literal["fm", "gm-kl", "mm-fm"],
        Option(
            "fm: flow matching, a velocity by least squares. gm-kl: GMFlow, a mixture over the velocity by the "
            "likelihood of a transition. mm-fm: MM-FM, fm with --source gmm --coupling mode."
        ),
    ] = "fm"
    source: Annotated[
        Literal["auto", SourceName],
        Option("Source distribution: gaussian, or gmm, the fitted mixture. auto: gmm for mm-fm or --coupling mode."),
    ] = "auto"
    coupling: Annotated[
        Literal["auto", CouplingName],
        Option(
            "How noise and data are paired: independent; mode, noise from the image's own mode; batch-ot, minibatch "
            "optimal transport. auto: mode for mm-fm, and for gm-kl with --source gmm; else independent."
        ),
    ] = "auto"
    condition: Annotated[
        Literal["auto", Condition],
        Option(
            "What the network is conditioned on. auto: class if the images have classes, else mode if a mixture has "
            "been fitted, else none; none for mm-fm, as published."
        ),
    ] = "auto"
    mode_mean: Annotated[
        bool | None,
        Option(
            "Also concatenate the mean of an image's mode to the network's input (--condition mode, or gm-kl on "
            "--source gmm). Default: yes for gm-kl on --source gmm, else no."
        ),
    ] = None
    transition_ratio: Annotated[
        float | None,
        Option(
            "lambda of the gm-kl loss, in (0, 1]: x_t goes to x_s, s = t (1 - lambda). Default: 0.5.",
            metavar="RATIO",
            minimum=1e-3,
            maximum=1.0,
        ),
    ] = None
    dropout: Annotated[
        float,
        Option(
            "Probability of dropping the condition (classifier-free guidance).",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = 0.1
    spectral_weight: Annotated[
        float | None,
        Option(
            "Weight of the spectrum's loss, which is added to that of the flow (gm-kl with --spectral). Its gradient "
            "reaches the spectrum alone, but counts in the norm that --clip bounds. Default: 1 / (2 x the latents' "
            "channels), GMFlow's ratio, whose loss of the flow is 2 x channels times ours.",
            metavar="WEIGHT",
            minimum=0.0,
        ),
    ] = None
    focal: Annotated[
        float,
        Option(
            "Weight each image by (running loss of its mode / mean over modes) to this power, clamped to [0.3, 3] "
            "(fm and mm-fm, with a fitted mixture). 0: off. MM-FM's mode-conditional run uses 2.",
            metavar="GAMMA",
            minimum=0.0,
        ),
    ] = 0.0
    time_distribution: Annotated[TimeDistribution, Option("Distribution of training times before the shift.")] = (
        "logit-normal"
    )
    time_shift: Annotated[
        float | None,
        Option(
            "s of the time shift t' = s t / (1 + (s - 1) t), for training and sampling. Default: sqrt(entries of a "
            "latent / 4096), at least 1.",
            metavar="S",
            minimum=1e-3,
            maximum=1e6,
        ),
    ] = None

    def check(self) -> None:
        """See `Settings.check`."""
        if self.objective == "mm-fm" and self.source == "gaussian":
            raise UserError("--objective mm-fm starts from the fitted mixture: remove --source gaussian, or use fm")
        if self.objective == "mm-fm" and self.coupling not in ("auto", "mode"):
            raise UserError(f"--objective mm-fm couples by mode: remove --coupling {self.coupling}, or use fm")
        if self.coupling == "mode" and self.source == "gaussian":
            raise UserError("--coupling mode draws noise from an image's mode: it needs --source gmm")
        if self.objective == "gm-kl" and self.coupling == "batch-ot":
            raise UserError("--objective gm-kl needs Gaussian transitions: use --coupling independent or mode")
        if self.objective == "gm-kl" and self.source == "gmm" and self.coupling == "independent":
            raise UserError("--objective gm-kl on --source gmm works in its modes' coordinates: use --coupling mode")
        if self.focal and self.objective == "gm-kl":
            raise UserError("--focal compares losses by ratio, and that of gm-kl may be negative: use fm or mm-fm")
        if self.transition_ratio is not None and self.objective != "gm-kl":
            raise UserError(f"--transition-ratio is lambda of gm-kl, without effect on {self.objective}: remove it")
        if self.spectral_weight is not None and self.objective != "gm-kl":
            raise UserError(f"--spectral-weight is of gm-kl, without effect on {self.objective}: remove it")

    @property
    def wants_mixture(self) -> bool:
        """Whether these settings require a fitted mixture."""
        return self.objective == "mm-fm" or self.source == "gmm" or "mode" in (self.coupling, self.condition)


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """The optimizer and its hyperparameters, except for the learning rate."""

    TITLE = "Optimizer"

    optimizer: Annotated[
        Literal["adamw", "adamw8bit", "muon"],
        Option(
            "adamw; adamw8bit: AdamW with moments in 8 bits (extra: adamw8bit); muon: Muon for the matrices of the "
            "blocks, AdamW for the rest (torch 2.9)."
        ),
    ] = "adamw"
    betas: Annotated[
        tuple[float, float],
        Option(
            "AdamW's betas: decay rates of the first and second moment.", metavar="BETA1 BETA2", minimum=0.0, below=1.0
        ),
    ] = (0.9, 0.95)
    weight_decay: Annotated[
        float, Option("Weight decay, applied to matrices only.", metavar="RATE", minimum=0.0, maximum=1e3)
    ] = 0.0
    clip: Annotated[
        float,
        Option("Clip the gradient to this norm. 0: no clipping.", metavar="NORM", minimum=0.0),
    ] = 1.0
    clip_from: Annotated[int, Option("Start clipping after this many steps; GMFlow: 1000.", metavar="N", minimum=0)] = 0

    def check(self) -> None:
        """See `Settings.check`."""
        if self.clip_from and not self.clip:
            raise UserError("--clip-from has no effect without a --clip: remove one of them")

    def check_installed(self) -> None:
        """Raise UserError for an optimizer whose library is not installed."""
        if self.optimizer == "adamw8bit" and find_spec("torchao") is None:
            raise UserError(f"--optimizer adamw8bit needs torchao: {install('adamw8bit')}, or use adamw")

    @property
    def moment_bytes(self) -> int:
        """About the bytes per parameter of the optimizer's two moments."""
        return 2 if self.optimizer == "adamw8bit" else 8

    def clip_at(self, step: int) -> float:
        """The largest norm of the gradient of step ``step`` (from 0); infinite where there is no bound."""
        return self.clip if self.clip and step >= self.clip_from else math.inf


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """The learning rate, its warm-up and its schedule."""

    TITLE = "Learning rate"

    lr: Annotated[
        float | None,
        Option("Learning rate. Default: by network size, such as 2e-4 for B to XL.", metavar="RATE", minimum=0.0),
    ] = None
    warmup: Annotated[int, Option("Steps of linear warm-up to --lr.", metavar="N", minimum=0)] = 100
    lr_knots: Annotated[
        str | None,
        Option(
            "Piecewise schedule after the warm-up: rates at steps, given as numbers or as percentages of --steps, "
            "such as 50%:2e-4,100%:2e-5. The rate stays constant after the last knot; two knots at one step make a "
            "jump. Default: constant.",
            metavar="STEP:RATE,...",
        ),
    ] = None
    lr_curve: Annotated[Curve, Option("Interpolation between two knots: linear, or half a cosine.")] = "linear"

    def check(self) -> None:
        """See `Settings.check`."""
        parse_knots(self.lr_knots)
        if self.lr_curve != "linear" and self.lr_knots is None:
            raise UserError(f"--lr-curve {self.lr_curve} has no effect without --lr-knots, such as 100%:0")

    @property
    def follows_the_steps(self) -> bool:
        """Whether the learning rate depends on the total number of steps."""
        return self.lr_knots is not None and "%" in self.lr_knots

    def resolve(self, default: float, steps: int) -> Schedule:
        """The schedule of a run of ``steps`` steps. default: the learning rate if --lr is not given.

        Raises UserError for knots that are not in the order of their steps.
        """
        rate = default if self.lr is None else self.lr
        return Schedule(rate, self.warmup, place_knots(self.lr_knots, steps), self.lr_curve)


@dataclass(frozen=True)
class AverageSettings(Settings):
    """Which averages of the weights are tracked."""

    TITLE = "Averages of the weights"

    ema: Annotated[
        tuple[float, ...],
        Option(
            "EMA decay per step. Repeat the flag to track several EMAs; the first one is sampled by default, others by "
            "sample --ema DECAY.",
            metavar="DECAY",
            minimum=0.0,
            below=1.0,
        ),
    ] = (0.9995,)
    ema_knots: Annotated[
        str | None,
        Option(
            "Change the decay of the first --ema at these steps, such as MM-FM's 25000:0.9995 after --ema 0.999. "
            "Default: none, a constant decay.",
            metavar="STEP:DECAY,...",
        ),
    ] = None
    ema_images: Annotated[
        tuple[int, ...],
        Option(
            "Also track an EMA with this half-life in images, ramped up as 5 % of the images seen (EDM, GMFlow: "
            "30000000). Repeat the flag to track several.",
            metavar="N",
            minimum=1,
        ),
    ] = ()
    ema_power: Annotated[
        tuple[float, ...],
        Option(
            "Also track a power-law EMA of this relative width (EDM2's sigma_rel, such as 0.05 or 0.1). Repeat the "
            "flag to track several.",
            metavar="WIDTH",
            minimum=1e-3,
            maximum=0.28,
        ),
    ] = ()

    def check(self) -> None:
        """See `Settings.check`."""
        if not self.names:
            raise UserError("no EMA is tracked: give --ema, --ema-images or --ema-power")
        if self.ema_knots is not None and not self.ema:
            raise UserError("--ema-knots are decays of the first --ema: give one, or remove them")
        self.decay_knots  # noqa: B018  # that they can be read
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise UserError(f"the EMA {twice[0]} is given twice: give different numbers")

    @property
    def names(self) -> tuple[str, ...]:
        """What ``sample --ema`` takes: the decays as numbers, then images-N and power-WIDTH.

        The first is sampled by default.
        """
        by_images = (f"images-{number}" for number in self.ema_images)
        by_power = (f"power-{width}" for width in self.ema_power)
        return (*map(str, self.ema), *by_images, *by_power)

    @property
    def decay_knots(self) -> tuple[tuple[int, float], ...]:
        """The steps at which the first decay changes, and its value from there on.

        Raises UserError where --ema-knots cannot be read, or has a decay of 1 or more.
        """
        knots = place_knots(self.ema_knots, None, "--ema-knots", "STEP:DECAY,..., such as 25000:0.9995")
        if any(decay >= 1 for _, decay in knots):
            raise UserError(f"--ema-knots are decays below 1, not {self.ema_knots}")
        return knots


@dataclass(frozen=True)
class LoopSettings(Settings):
    """Steps, batch size and checkpoints."""

    TITLE = "Steps and checkpoints"

    steps: Annotated[
        int,
        Option(
            "Total number of optimizer steps (those of sample --steps are network evaluations).",
            metavar="N",
            minimum=1,
        ),
    ] = 100_000
    batch_size: Annotated[
        int | None,
        Option("Batch size, over all processes. Default: 128 on a GPU, 32 on a CPU.", metavar="N", minimum=1),
    ] = None
    micro_batch: Annotated[
        str,
        Option(
            "Images per forward and backward pass, a divisor of the batch; gradients accumulate to --batch-size. "
            "auto: the most that fit on the GPU, found by trial; the whole batch on a CPU.",
            metavar="N|auto",
        ),
    ] = "auto"
    skip_limit: Annotated[
        int,
        Option(
            "Non-finite steps are skipped; after this many in a row, training rolls back to the last good checkpoint.",
            metavar="N",
            minimum=1,
        ),
    ] = 20
    save_every: Annotated[int, Option("Steps between checkpoints.", metavar="N", minimum=1)] = 1000
    keep: Annotated[
        int,
        Option(
            "Number of newest checkpoints to keep; amid skipped steps also the newest from before them.",
            metavar="N",
            minimum=1,
        ),
    ] = 2
    keep_every: Annotated[
        int,
        Option(
            "Also keep every checkpoint whose step is a multiple of this, itself a multiple of --save-every. 0: off.",
            metavar="N",
            minimum=0,
        ),
    ] = 0

    def check(self) -> None:
        """See `Settings.check`."""
        if not (self.micro_batch == "auto" or (self.micro_batch.isdecimal() and int(self.micro_batch) > 0)):
            raise UserError(f"--micro-batch is a number of images or auto, not {self.micro_batch}")
        if self.keep_every % self.save_every:
            raise UserError(f"--keep-every {self.keep_every} is not a multiple of --save-every {self.save_every}")

    def settled_batch(self, gpu: bool) -> tuple[int, Choice | None]:
        """The batch size, and why where --batch-size was not given."""
        if self.batch_size is not None:
            return self.batch_size, None
        size = GPU_BATCH if gpu else CPU_BATCH
        return size, Choice("--batch-size", str(size), by_device(gpu))


@dataclass(frozen=True)
class LoggingSettings(Settings):
    """Loggers, previews and scores during training."""

    TITLE = "Logging"

    preview_every: Annotated[int, Option("Steps between preview grids. 0: off.", metavar="N", minimum=0)] = 1000
    eval_every: Annotated[
        int,
        Option(
            "Steps between evaluations: train scores a few samples against training images, train-decoder the "
            "reconstructions of held-out images. 0: off.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    eval_num: Annotated[int, Option("Number of images for --eval-every.", metavar="N", minimum=2)] = 1000
    tensorboard: Annotated[
        bool | None,
        Option("Write TensorBoard events to RUN/tensorboard (extra: log). Default: if it is installed."),
    ] = None
    wandb: Annotated[
        str | None,
        Option(
            "Also log to this Weights & Biases project (extra: wandb; WANDB_MODE=offline logs locally). Default: none.",
            metavar="PROJECT",
        ),
    ] = None

    def check_installed(self) -> None:
        """Raise UserError if a requested logger is not installed."""
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UserError(f"--tensorboard needs TensorBoard: {install('log')}")
        if self.wandb is not None and find_spec("wandb") is None:
            raise UserError(f"--wandb needs Weights & Biases: {install('wandb')}")


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """Device, precision and memory."""

    TITLE = "Computation"

    device: Device = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("Precision of the network; losses are float32. auto: bfloat16 on a GPU that supports it, else float32."),
    ] = "auto"
    tf32: Annotated[bool, Option("Allow TF32 in float32 matrix products on a GPU: faster, less exact.")] = False
    compile: Compile = False
    checkpoint_activations: Annotated[
        bool,
        Option("Activation checkpointing: store only the blocks' inputs, recompute the rest in the backward pass."),
    ] = False


@dataclass(frozen=True)
class TrainComputeSettings(ComputeSettings):
    """Device, precision and memory, also of networks that do not fit on one GPU."""

    shard: Annotated[
        bool,
        Option("Shard weights and optimizer state across processes (FSDP2), for networks that do not fit on one GPU."),
    ] = False

    def check_optimizer(self, settings: OptimizerSettings) -> None:
        """Raise UserError for an optimizer that shards do not suffice."""
        if self.shard and settings.optimizer != "adamw":
            raise UserError(f"--optimizer {settings.optimizer} needs whole tensors: use adamw with --shard")
