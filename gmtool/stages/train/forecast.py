"""The cost of a training run, before it begins: ``gmtool train --dry-run``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import CHECKPOINTS, CONFIG, METRICS
from gmtool.errors import UserError
from gmtool.forecast import FileSize, Forecast
from gmtool.runtime import resolve_device
from gmtool.settings import as_rows
from gmtool.stages.encode.config import EncodeConfig
from gmtool.stages.presets import Preset
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import DataFacts, TrainPlan, expect_part, facts_of, open_mixture, plan_training
from gmtool.throughput import device_name
from gmtool.tokenizers.table import TOKENIZERS, family_of
from gmtool.training.estimate import estimate_run

METRICS_BYTES = 120
"""About a line of metrics.jsonl."""
IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
"""The data assumed for a preset when the latents do not exist yet."""


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
            facts = facts_of_preset(preset)
            plan = plan_training(config, facts, gpu)
            reads, assumed = _reads_to_come(latents_path, plan), (_assumption(latents_path, facts),)
    return forecast_of(plan, run_path, device, reads, assumed)


def facts_of_preset(preset: Preset) -> DataFacts:
    """What a preset says of ImageNet's latents. Raises UserError where it does not tell their shape."""
    encode: EncodeConfig = preset.config("encode")
    name, side = encode.tokenizer.tokenizer, encode.tokenizer.image_size or 256
    shape = family_of(name).default_shape(side) if name in TOKENIZERS else None
    if shape is None:
        raise UserError("the preset does not tell the latents' shape: run gmtool encode first, or give its LATENTS")
    samples = IMAGENET_IMAGES * (2 if encode.flip == "both" else 1)
    modes = preset.config("fit-gmm").modes if "fit-gmm" in preset.settings else 0
    return DataFacts(shape, samples, IMAGENET_CLASSES, modes, f"a mixture of {modes:,} modes" if modes else None)


def _assumption(latents_path: Path, facts: DataFacts) -> tuple[str, str]:
    shape = " x ".join(map(str, facts.shape))
    words = f"{facts.samples:,} samples of {shape} in {facts.classes:,} classes"
    return "LATENTS (assumed)", f"{words}: {latents_path} does not exist, so ImageNet's by the preset"


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
