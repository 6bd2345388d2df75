"""The cost of a decoder's training, before it begins: ``gmtool train-decoder --dry-run``."""

from __future__ import annotations

from pathlib import Path

from gmtool.artifacts.decoder_run import WEIGHTS
from gmtool.artifacts.run import CHECKPOINTS, METRICS
from gmtool.forecast import FileSize, Forecast
from gmtool.reconstruction.cost import DINO_S8, decoder_step_cost
from gmtool.runtime import resolve_device
from gmtool.settings import as_rows
from gmtool.stages.train_decoder.config import TrainDecoderConfig
from gmtool.stages.train_decoder.plan import TrainDecoderPlan, plan_decoder
from gmtool.throughput import device_name
from gmtool.tokenizers.build import facts_of_models
from gmtool.tokenizers.vit import facts_of
from gmtool.training.cost import StepCost
from gmtool.training.estimate import estimate_run

METRICS_BYTES = 400
"""About a line of metrics.jsonl."""


def forecast(images: Path, folder: Path, config: TrainDecoderConfig) -> Forecast:
    """What ``train-decoder`` with the same arguments would take. Nothing is written, and no network computed.

    Raises UserError as ``train-decoder`` does for inputs that do not fit together.
    """
    device = resolve_device(config.compute.device)
    plan = plan_decoder(images, config, gpu=device.type == "cuda")
    cost, steps = cost_of(plan), config.loop.steps
    estimate = estimate_run(config, cost, plan.batch_size, plan.precision, device)
    work = [
        ("decoder", f"{cost.parameters:,} parameters"),
        *facts_of_models(plan.tokenizer),
        ("operations per step", estimate.operations),
        ("micro-batch", f"{estimate.micro_batch:,}"),
        ("steps", f"{steps:,}, of {plan.batch_size:,} images"),
        ("epochs", f"{steps * plan.batch_size / len(plan.crops.rows):,.3g} of {len(plan.crops.rows):,} images"),
        ("LPIPS from step", f"{plan.phases.perceptual:,}" if config.losses.perceptual != "none" else "never"),
        ("discriminator from step", f"{plan.phases.discriminator:,}" if plan.adversarial else "never"),
        ("adversarial loss from step", f"{plan.phases.adversarial:,}" if plan.adversarial else "never"),
        estimate.speed,
    ]
    work += as_rows(type(config), plan.settings)
    return Forecast(
        title=f"{folder} on {device_name(device)}",
        reads=(FileSize(plan.crops.images.root, plan.crops.images.bytes),),
        writes=(
            FileSize(folder / WEIGHTS, 4 * cost.parameters),
            FileSize(folder / CHECKPOINTS, estimate.checkpoints),
            FileSize(folder / METRICS, steps * METRICS_BYTES),
        ),
        work=tuple(work),
        choices=plan.choices,
        memory=estimate.memory,
        seconds=estimate.seconds,
    )


def cost_of(plan: TrainDecoderPlan) -> StepCost:
    """The cost of a step of a planned training; see `gmtool.reconstruction.cost`. Raises what `decoder_from` does."""
    return decoder_step_cost(
        plan.network,
        plan.latent_shape,
        facts_of(plan.tokenizer),
        plan.precision,
        perceptual=plan.config.losses.perceptual != "none",
        discriminator=DINO_S8 if plan.adversarial else None,
    )
