"""The cost of a training run, before it begins: ``gmtool train --dry-run``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import CHECKPOINTS, CONFIG, METRICS
from gmtool.forecast import FileSize, Forecast
from gmtool.runtime import resolve_device
from gmtool.settings import as_rows
from gmtool.stages.assumed import IMAGENET_CLASSES, AssumedLatents, assumed_latents
from gmtool.stages.presets import Preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import DataFacts, TrainPlan, expect_part, facts_of, open_mixture, plan_training
from gmtool.throughput import device_name
from gmtool.training.estimate import estimate_run

METRICS_BYTES = 120
"""About a line of metrics.jsonl."""


def forecast(
    latents_path: Path,
    run_path: Path,
    config: TrainConfig,
    preset: Preset | None = None,
) -> Forecast:
    """The cost of ``train`` with the same arguments. Nothing is written, and the network is not evaluated.

    preset: where the latents do not exist, it says what they would be. Raises UserError as ``train`` does for inputs
    that do not fit together.
    """
    device = resolve_device(config.compute.device)
    gpu = device.type == "cuda"
    with ExitStack() as stack:
        if latents_path.exists() or preset is None:
            latents = stack.enter_context(open_latents(latents_path))
            gmm = open_mixture(latents, config, stack)
            plan = plan_training(config, facts_of(latents, gmm), gpu)
            if gmm is not None and plan.method.uses_modes and not (run_path / CONFIG).exists():
                expect_part(gmm, latents, config)
            used = [latents.path, *([gmm.path] if gmm is not None and plan.method.uses_modes else [])]
            reads = tuple(FileSize(path, path.stat().st_size) for path in used)
            assumed: tuple[tuple[str, str], ...] = ()
        else:
            to_come = assumed_latents(preset.config("encode"), latents_path)
            plan = plan_training(config, facts_of_preset(preset, to_come), gpu)
            reads, assumed = _reads_to_come(latents_path, plan), (to_come.row("LATENTS"),)
    return forecast_of(plan, run_path, device, reads, assumed)


def facts_of_preset(preset: Preset, latents: AssumedLatents) -> DataFacts:
    """What a preset says of latents that are not there, and of their mixture."""
    modes = preset.config("fit-gmm").modes if "fit-gmm" in preset.settings else 0
    mixture = f"a mixture of {modes:,} modes" if modes else None
    return DataFacts(latents.layout.shape, latents.layout.capacity, IMAGENET_CLASSES, modes, mixture)


def _reads_to_come(latents_path: Path, plan: TrainPlan) -> tuple[FileSize, ...]:
    channels, height, width = plan.facts.shape
    size = channels * height * width
    latents = FileSize(latents_path, 2 * size * plan.facts.samples)
    if not plan.method.uses_modes:
        return (latents,)
    return (latents, FileSize(latents_path.with_name("gmm.h5"), 8 * size * plan.facts.modes))


def forecast_of(
    plan: TrainPlan,
    run_path: Path,
    device: torch.device,
    reads: tuple[FileSize, ...],
    assumed: tuple[tuple[str, str], ...] = (),
) -> Forecast:
    """What a resolved run would take; assumed: facts of what is not there yet, as pairs of a name and words."""
    config, steps = plan.config, plan.config.loop.steps
    cost = plan.cost()
    estimate = estimate_run(config, cost, plan.batch_size, plan.precision, device)
    work = [
        ("parameters", f"{cost.parameters:,}"),
        ("operations per step", estimate.operations),
        ("images computed at once", f"{estimate.micro_batch:,}"),
        ("steps", f"{steps:,}"),
        ("images per step (effective batch)", f"{plan.batch_size:,}"),
    ]
    if plan.facts.samples:
        images = round(plan.fraction * plan.facts.samples)
        work.append(("epochs", f"{steps * plan.batch_size / max(1, images):,.3g} of {images:,} images"))
    work.append(estimate.speed)
    work += as_rows(type(config), plan.settings)
    return Forecast(
        title=f"{run_path} on {device_name(device)}",
        reads=reads,
        writes=(
            FileSize(run_path / CHECKPOINTS, estimate.checkpoints),
            FileSize(run_path / METRICS, steps * METRICS_BYTES),
        ),
        work=(*assumed, *work),
        choices=plan.choices,
        memory=estimate.memory,
        seconds=estimate.seconds,
    )
