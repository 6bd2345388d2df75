"""Settings of ``gmtool train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gmtool.errors import UserError
from gmtool.settings import Compile, Device, Option, Seed, check_ranges

Objective = Literal["fm", "gm-kl", "mm-fm"]
Source = Literal["gaussian", "gmm"]
Coupling = Literal["independent", "mode", "batch-ot"]
Condition = Literal["none", "class", "mode"]


@dataclass(frozen=True)
class TrainConfig:
    """What is learnt, by which network, for how long. None stands for a default that depends on the rest."""

    objective: Annotated[
        Objective,
        Option(
            "fm (one velocity, L2), gm-kl (GMFlow: a mixture over the velocity, KL), mm-fm (MM-FM: fm with --source "
            "gmm --coupling mode)."
        ),
    ] = "fm"
    source: Annotated[
        Source | None, Option("Where the flow starts. Default: gaussian; gmm for mm-fm or --coupling mode.")
    ] = None
    coupling: Annotated[
        Coupling | None,
        Option(
            "How noise and data are paired: independent, mode (noise from the datum's own mode), batch-ot (exact "
            "assignment in the batch). Default: independent; mode for mm-fm, and for gm-kl with --source gmm."
        ),
    ] = None
    condition: Annotated[
        Condition | None,
        Option(
            "What the network is told of a datum. Default: class when the images come in classes, else mode when a "
            "fitted mixture is there, else none; none for mm-fm, as published."
        ),
    ] = None
    images: Annotated[
        Path | None,
        Option(
            "Train on the images of this folder or archive, encoded as they are needed. LATENTS then gives the "
            "tokenizer, the statistics and the classes alone: encode --limit N is enough. Default: none, the latents "
            "of LATENTS.",
            metavar="DIR",
        ),
    ] = None
    flip: Annotated[bool, Option("Mirror each image left to right with probability 1/2 (--images).")] = False
    focal: Annotated[
        float,
        Option(
            "Weigh each datum by its mode's running loss over the mean one, to this power, within 0.3 and 3 (fm and "
            "mm-fm, with a fitted mixture); 0 for none, MM-FM's mode-conditional run takes 2.",
            metavar="GAMMA",
            minimum=0.0,
        ),
    ] = 0.0
    mode_mean: Annotated[
        bool | None,
        Option(
            "Also show the network the mean of a datum's mode, as further channels of its input (--condition mode, or "
            "gm-kl on --source gmm). Default: yes for gm-kl on --source gmm, else no."
        ),
    ] = None
    gmm: Annotated[
        Path | None, Option("The mixture that fit-gmm wrote. Default: gmm.h5 beside the latents.", metavar="FILE")
    ] = None
    components: Annotated[int, Option("Components K of the mixture head (gm-kl).", metavar="K", minimum=1)] = 8
    constant_std: Annotated[
        float | None,
        Option(
            "Standard deviation of the components over the velocity, fixed (gm-kl). Default: learnt.",
            metavar="STD",
            minimum=1e-4,
        ),
    ] = None
    spectral: Annotated[
        int,
        Option(
            "Also learn the spectrum of the noise for sample --spectral (gm-kl), transporting this many leading axes "
            "of the mixture: all channels where they are few, 1 of 768; 0 for none.",
            metavar="AXES",
            minimum=0,
        ),
    ] = 0
    transition_ratio: Annotated[
        float,
        Option(
            "lambda of the gm-kl loss, in (0, 1]: x_s is taken at s = t (1 - lambda).",
            metavar="RATIO",
            minimum=1e-3,
            maximum=1.0,
        ),
    ] = 0.5
    model: Annotated[
        Literal["tiny", "small", "S", "B", "L", "XL", "DH-tiny", "DH-S", "DH-B", "DH-L", "DH-XL"] | None,
        Option(
            "Network: a DiT of this size, or with DH- a DiTDH, whose wide shallow head suits latents of many channels. "
            "Default: tiny on a CPU, B on a GPU."
        ),
    ] = None
    patch_size: Annotated[
        int, Option("Side of the square of latent positions that make a token.", metavar="N", minimum=1)
    ] = 1
    blocks: Annotated[
        Literal["auto", "classic", "modern"],
        Option("classic: LayerNorm, GELU; modern: RMSNorm, SwiGLU, RoPE; auto: modern for a DH-, as published."),
    ] = "auto"
    qk_norm: Annotated[bool, Option("Normalise the queries and keys of attention.")] = False
    checkpoint_activations: Annotated[
        bool, Option("Keep the input of each block alone, and compute its inside again: less memory, more time.")
    ] = False
    compile: Compile = False
    shard: Annotated[
        bool,
        Option("Leave to each process a part of weights and optimiser (FSDP2), for networks that do not fit on a GPU."),
    ] = False
    fraction: Annotated[
        float,
        Option(
            "Share of the images to train on: a random part, fixed by the seed, the same share of each class. The "
            "mixture and the normalisation stay those of all.",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = 1.0
    steps: Annotated[int, Option("Optimiser steps in all.", metavar="N", minimum=1)] = 100_000
    batch_size: Annotated[
        int | None, Option("Images a step. Default: 128 on a GPU, 32 on a CPU.", metavar="N", minimum=1)
    ] = None
    micro_batch: Annotated[
        str,
        Option(
            "Images computed at once, a divisor of the batch; gradients add up to those of --batch-size. auto: the "
            "most that fit on the GPU, by trying; all on a CPU.",
            metavar="N|auto",
        ),
    ] = "auto"
    optimizer: Annotated[
        Literal["adamw", "muon"], Option("adamw, or muon for the matrices of the blocks beside it (torch 2.9).")
    ] = "adamw"
    betas: Annotated[
        tuple[float, float],
        Option("Decay a step of AdamW's two moments.", metavar="BETA1 BETA2", minimum=0.0, below=1.0),
    ] = (0.9, 0.95)
    lr: Annotated[
        float | None,
        Option("Learning rate. Default: the model's own, from 2e-3 (tiny) to 2e-4 (XL).", metavar="RATE", minimum=0.0),
    ] = None
    lr_from: Annotated[
        tuple[int, float] | None,
        Option("From this step on another rate than --lr. Default: none.", metavar="STEP RATE", minimum=0.0),
    ] = None
    warmup: Annotated[int, Option("Steps over which the learning rate rises to --lr.", metavar="N", minimum=0)] = 100
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Option("Learning rate after the warm-up: constant, or falling to --lr-end within --fall."),
    ] = "constant"
    fall: Annotated[
        tuple[int, int] | None,
        Option(
            "Steps between which the rate falls. Default: from the warm-up to the last step.",
            metavar="FIRST LAST",
            minimum=0,
        ),
    ] = None
    lr_end: Annotated[float, Option("Rate at the end of the fall.", metavar="RATE", minimum=0.0)] = 0.0
    weight_decay: Annotated[float, Option("Weight decay, on matrices alone.", metavar="RATE", minimum=0.0)] = 0.0
    clip: Annotated[
        float, Option("Largest norm of the gradient; longer ones are scaled down.", metavar="NORM", minimum=0.0)
    ] = 1.0
    skip_limit: Annotated[
        int,
        Option(
            "Steps in a row with a loss or gradient that is not finite, each left out, after which the run goes back "
            "to the last good checkpoint.",
            metavar="N",
            minimum=1,
        ),
    ] = 20
    ema: Annotated[
        tuple[float, ...],
        Option(
            "Decay a step of a moving average of the weights; repeat it for several. The first is what is sampled by "
            "default.",
            metavar="DECAY",
            minimum=0.0,
            below=1.0,
        ),
    ] = (0.9995,)
    ema_power: Annotated[
        tuple[float, ...],
        Option(
            "Also keep an average of power-law profile of this width relative to the run (EDM2's sigma_rel, such as "
            "0.05 or 0.1); repeat it for several.",
            metavar="WIDTH",
            minimum=1e-3,
            maximum=0.28,
        ),
    ] = ()
    dropout: Annotated[
        float,
        Option(
            "Share of the data whose condition is hidden, which guidance needs.",
            metavar="SHARE",
            minimum=0.0,
            maximum=1.0,
        ),
    ] = 0.1
    time_distribution: Annotated[
        Literal["logit-normal", "uniform"], Option("Distribution of training times before the shift.")
    ] = "logit-normal"
    time_shift: Annotated[
        float | None,
        Option(
            "s of t' = s t / (1 + (s - 1) t), in training and sampling. Default: sqrt(numbers in a latent / 4096), at "
            "least 1.",
            metavar="S",
            minimum=1e-3,
        ),
    ] = None
    save_every: Annotated[int, Option("Steps between checkpoints.", metavar="N", minimum=1)] = 1000
    keep: Annotated[int, Option("Checkpoints kept, the newest ones.", metavar="N", minimum=1)] = 2
    keep_every: Annotated[
        int,
        Option(
            "Checkpoints at multiples of so many steps, of --save-every too, are kept for ever; 0 for none.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    preview_every: Annotated[int, Option("Steps between preview grids; 0 for none.", metavar="N", minimum=0)] = 1000
    eval_every: Annotated[
        int,
        Option("Steps between scores of a few samples against training images; 0 for none.", metavar="N", minimum=0),
    ] = 0
    eval_num: Annotated[int, Option("Samples of such a score.", metavar="N", minimum=2)] = 1000
    tensorboard: Annotated[
        bool | None,
        Option("Write TensorBoard's events into RUN/tensorboard (extra: log). Default: where it is installed."),
    ] = None
    wandb: Annotated[
        str | None,
        Option(
            "Also log to this project of Weights & Biases (extra: wandb; WANDB_MODE=offline keeps it here). Default: "
            "none.",
            metavar="PROJECT",
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option(
            "Processes that read latents. Default: 0 when the latents fit in memory, else 4.", metavar="N", minimum=0
        ),
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option("Arithmetic of the network; losses are float32. auto: bfloat16 on a GPU that has it."),
    ] = "auto"
    tf32: Annotated[bool, Option("Let a GPU round float32 matrix products to TF32, which is faster.")] = False
    device: Device = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_combination()
        self._check_numbers()

    def _check_combination(self) -> None:
        """Refuse settings that contradict each other, naming the flag to change."""
        if self.objective == "mm-fm" and self.source == "gaussian":
            raise UserError("--objective mm-fm starts from the fitted mixture: drop --source gaussian, or take fm")
        if self.objective == "mm-fm" and self.coupling not in (None, "mode"):
            raise UserError(f"--objective mm-fm couples by mode: drop --coupling {self.coupling}, or take fm")
        if self.coupling == "mode" and self.source == "gaussian":
            raise UserError("--coupling mode draws noise from a datum's mode: it needs --source gmm")
        if self.objective == "gm-kl" and self.coupling == "batch-ot":
            raise UserError("--objective gm-kl needs Gaussian transitions: take --coupling independent or mode")
        if self.objective == "gm-kl" and self.source == "gmm" and self.coupling == "independent":
            raise UserError("--objective gm-kl on --source gmm works in its modes' coordinates: take --coupling mode")

        if self.flip and self.images is None:
            raise UserError("--flip mirrors images: it needs --images; of latents, encode --flip both makes mirrors")
        if self.images is not None and self.uses_modes:
            raise UserError("--images knows no modes, which are fitted to latents: drop it, or take --source gaussian")
        if self.images is not None and self.fraction < 1:
            raise UserError("--fraction takes a part of a latents file, not of --images: drop one of them")

        if self.focal and self.objective == "gm-kl":
            raise UserError("--focal compares losses by ratio, and that of gm-kl may be negative: take fm or mm-fm")
        if self.constant_std is not None and self.objective != "gm-kl":
            raise UserError(f"--constant-std belongs to --objective gm-kl: {self.objective} predicts no deviation")
        if self.spectral and self.objective != "gm-kl":
            raise UserError(f"--spectral belongs to --objective gm-kl: {self.objective} predicts no mixture")

        if self.shard and self.optimizer == "muon":
            raise UserError("--optimizer muon needs whole matrices: take adamw with --shard")

    def _check_numbers(self) -> None:
        """Refuse numbers that do not belong together, naming the flag to change."""
        if not (self.micro_batch == "auto" or (self.micro_batch.isdecimal() and int(self.micro_batch) > 0)):
            raise UserError(f"--micro-batch is a number of images or auto, not {self.micro_batch}")
        if self.fall is not None and self.schedule == "constant":
            raise UserError("--fall has no effect with --schedule constant: take linear or cosine")
        if self.fall is not None and self.fall[0] >= self.fall[1]:
            raise UserError(
                f"--fall goes from an earlier step to a later one, not from {self.fall[0]} to {self.fall[1]}"
            )
        if self.lr_end and self.schedule == "constant":
            raise UserError("--lr-end has no effect with --schedule constant: take linear or cosine")
        if self.keep_every % self.save_every:
            raise UserError(f"--keep-every {self.keep_every} is not a multiple of --save-every {self.save_every}")
        if not self.averages:
            raise UserError("no moving average is asked for: give --ema or --ema-power")
        if twice := [each for each in self.averages if self.averages.count(each) > 1]:
            raise UserError(f"the moving average {twice[0]} is asked for twice: give different --ema or --ema-power")

    @property
    def averages(self) -> tuple[str, ...]:
        """Names of the moving averages: the decays as numbers, then power-WIDTH; the first is sampled by default."""
        return (*map(str, self.ema), *(f"power-{each}" for each in self.ema_power))

    @property
    def falls_to_the_end(self) -> bool:
        """Whether the number of steps enters the learning rate of each."""
        return self.schedule != "constant" and self.fall is None

    @property
    def mixture(self) -> bool:
        """Whether the network predicts a mixture over the velocity."""
        return self.objective == "gm-kl"

    @property
    def union(self) -> bool:
        """Whether a mixture output meets a mixture source: all is done in mode-whitened coordinates (resolved only)."""
        return self.mixture and self.source == "gmm"

    @property
    def sees_modes(self) -> bool:
        """Whether the network is given the mode k of a datum (resolved only)."""
        return self.condition == "mode" or self.union

    @property
    def uses_frames(self) -> bool:
        """Whether means and deviations of the modes enter training: as source, or shown (resolved only)."""
        return self.source == "gmm" or bool(self.mode_mean)

    @property
    def uses_modes(self) -> bool:
        """Whether the fitted mixture enters training at all: as source, or by its modes (resolved only)."""
        return self.source == "gmm" or self.sees_modes
