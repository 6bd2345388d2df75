"""A resolved training run: the settings with all defaults resolved for the given data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from gmtool.artifacts.gmm import GmmFile, expect_latents, fit_another, open_gmm
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.method_record import MethodRecord
from gmtool.data.fraction import part_flags
from gmtool.errors import UserError
from gmtool.forecast import Choice
from gmtool.nn import default_lr
from gmtool.nn.architecture import Architecture
from gmtool.nn.build import architecture_for
from gmtool.runtime import planned_dtype
from gmtool.settings import as_flat
from gmtool.stages.train.config import TrainConfig, TrainerConfig
from gmtool.training.cost import StepCost, Teaching, step_cost
from gmtool.training.method import resolve_method
from gmtool.training.schedule import Schedule
from gmtool.training.settings import by_device


@dataclass(frozen=True)
class DataFacts:
    """The facts about the data that a plan depends on.

    shape (C, H, W) of the latents; samples; classes, their number. modes: of the fitted mixture, 0 for none, and
    mixture: that mixture in words. latents: what to call their file.
    """

    shape: tuple[int, int, int]
    samples: int
    classes: int
    modes: int = 0
    mixture: str | None = None
    latents: str = "LATENTS"


@dataclass(frozen=True)
class TrainPlan:
    """A resolved run; the resolved values of defaults in ``config`` are in the other fields.

    choices: what was settled by what is there. settings: all flags as they are recorded. precision: of the network's
    arithmetic. fraction: of the latents that is trained on. focal: the power of the weights of modes, 0 for none.
    stage: the command. teaching: what a step of a student asks of its teacher. lighter: what takes less memory, for
    messages.
    """

    config: TrainerConfig
    method: MethodRecord
    architecture: Architecture
    schedule: Schedule
    batch_size: int
    model: str
    facts: DataFacts
    choices: tuple[Choice, ...]
    settings: Mapping[str, Any]
    precision: torch.dtype
    fraction: float
    focal: float = 0.0
    stage: str = "train"
    teaching: Teaching | None = None
    lighter: str = "--checkpoint-activations, or a smaller --model"

    def cost(self) -> StepCost:
        """The cost of a step."""
        checkpointing = self.config.compute.checkpoint_activations
        return step_cost(self.architecture, self.method, self.precision, checkpointing, self.teaching)


def plan_training(config: TrainConfig, facts: DataFacts, gpu: bool) -> TrainPlan:
    """The plan for given data, on a GPU or a CPU. Raises UserError, naming the flag, where they cannot serve it."""
    spectral = config.network.spectral > 0
    method, choices = resolve_method(config.method, facts.shape, facts.classes, facts.mixture, facts.latents, spectral)
    if config.data.gmm is not None and not method.uses_modes:
        raise UserError(
            f"--gmm {config.data.gmm} has no effect on --objective {config.method.objective} from a Gaussian source: "
            "add --source gmm or --condition mode, or remove it"
        )
    architecture = architecture_for(
        config.network,
        facts.shape,
        classes=facts.classes if method.condition == "class" else 0,
        modes=facts.modes if method.sees_modes else 0,
        context=facts.shape[0] if method.mode_mean else 0,
        mixture=method.method.objective.mixture,
        gpu=gpu,
    )
    model = config.network.model_on(gpu)
    batch_size, own_batch = config.loop.settled_batch(gpu)
    schedule = config.schedule.resolve(default_lr(model), config.loop.steps)
    settled = (
        Choice("--model", model, by_device(gpu)) if config.network.model is None else None,
        own_batch,
        Choice("--lr", f"{schedule.rate:g}", f"that of {model}") if config.schedule.lr is None else None,
    )
    flat = {
        **as_flat(config),
        "source": method.source,
        "coupling": method.coupling,
        "condition": method.condition,
        "mode_mean": method.mode_mean,
        "transition_ratio": method.transition_ratio,
        "spectral_weight": method.spectral_weight if spectral else None,
        "time_shift": method.time_shift,
        "model": model,
        "components": architecture.components or None,
        "batch_size": batch_size,
        "lr": schedule.rate,
    }
    chosen = (*choices, *(choice for choice in settled if choice is not None))
    return TrainPlan(
        config=config,
        method=method,
        architecture=architecture,
        schedule=schedule,
        batch_size=batch_size,
        model=model,
        facts=facts,
        choices=chosen,
        settings=flat,
        precision=planned_dtype(config.compute.precision, gpu),
        fraction=config.data.fraction,
        focal=config.method.focal,
    )


def facts_of(latents: LatentsFile, gmm: GmmFile | None) -> DataFacts:
    """The facts of a latents file, and of the available mixture."""
    modes, mixture = (0, None) if gmm is None else (len(gmm), f"{gmm.path} with {len(gmm):,} modes")
    return DataFacts(latents.shape, len(latents), len(latents.classes), modes, mixture, str(latents.path))


def open_mixture(latents: LatentsFile, config: TrainConfig, stack: ExitStack) -> GmmFile | None:
    """The fitted mixture that was asked for, or that lies beside the latents; None when there is none.

    Raises UserError for one that is missing, damaged or fitted to other latents; one beside the latents is opened, and
    hence refused, only where it would be used.
    """
    path = config.data.gmm or latents.path.with_name("gmm.h5")
    unlabelled = config.method.condition == "auto" and len(latents.classes) <= 1
    needed = config.data.gmm is not None or config.method.wants_mixture
    if not (needed or (unlabelled and path.exists())):
        return None
    gmm = stack.enter_context(open_gmm(path))
    expect_latents(gmm, latents)
    return gmm


def expect_part(gmm: GmmFile, latents: LatentsFile, config: TrainConfig) -> None:
    """Raise UserError, with the repair, unless the mixture was fitted to the part of the data that is trained on.

    A mixture that was fitted to other images would leak them into the run.
    """
    fitted, asked = gmm.manifest.config, (config.data.fraction, config.seed)
    known = fitted.get("fraction", 1.0), fitted.get("seed", 0)
    if known != asked and not known[0] == asked[0] == 1:
        its, own = (" ".join(part_flags(*part)) for part in (known, asked))
        raise UserError(
            f"{gmm.path} was fitted with {its}, and this run trains with {own}: {fit_another(latents, own)}, or train "
            f"with {its}"
        )


OLDER = ("schedule", "fall", "lr_end", "lr_from")
"""Settings of runs of earlier versions that `lr_knots` replaces."""


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as this version names them.

    A spectrum that was learned without a weight had the weight 1. Raises UserError for a learning rate of an earlier
    version that cannot be written as ``lr_knots``.
    """
    current = {name: value for name, value in settings.items() if name not in OLDER}
    if settings.get("spectral") and settings.get("spectral_weight") is None:
        current["spectral_weight"] = 1.0
    if "schedule" not in settings:
        return current
    curve = "cosine" if settings["schedule"] == "cosine" else "linear"
    knots = ",".join(f"{step}:{rate!r}" for step, rate in _older_knots(settings))
    return {**current, "lr_knots": knots or None, "lr_curve": curve if knots else "linear"}


def _older_knots(settings: Mapping[str, Any]) -> list[tuple[int | str, float]]:
    """The knots of an earlier version's schedule: a fall along a line or a cosine, and a step at which the rate that
    falls jumps to another one.

    Raises UserError for the one that knots cannot make: a jump within a cosine.
    """
    rate, end = settings["lr"], settings["lr_end"]
    first, last = settings["fall"] or (settings["warmup"], settings["steps"])
    falls = settings["schedule"] != "constant" and first < last
    jump, later = settings["lr_from"] or (None, rate)
    knots: list[tuple[int | str, float]] = []
    if jump is not None and (not falls or jump <= first):
        knots += [(jump, rate), (jump, later)]
    elif jump is not None and jump < last:
        if settings["schedule"] == "cosine":
            raise UserError(
                f"the run's --lr-from {jump} {later} within its --fall {first} {last} along a cosine, of an earlier "
                "version, cannot be resumed; it can be sampled"
            )
        left = (last - jump) / (last - first)
        knots += [(first, rate), (jump, end + (rate - end) * left), (jump, end + (later - end) * left)]
    if falls:
        if settings["fall"] is not None and not knots:
            knots.append((first, rate))
        elif knots and jump <= first:
            knots.append((first, later))
        knots.append((last if settings["fall"] is not None else "100%", end))
    return knots
