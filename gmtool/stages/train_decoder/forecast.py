"""The cost of a decoder's training, before it begins: ``gmtool train-decoder --dry-run``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from gmtool.artifacts.decoder_run import WEIGHTS
from gmtool.artifacts.run import CHECKPOINTS, METRICS
from gmtool.forecast import FileSize, Forecast
from gmtool.reconstruction.cost import DINO_S8, decoder_step_cost
from gmtool.runtime import compute_dtype, resolve_device
from gmtool.settings import as_rows
from gmtool.stages.train_decoder.config import TrainDecoderConfig
from gmtool.stages.train_decoder.plan import TrainDecoderPlan, plan_decoder
from gmtool.throughput import device_name, known_speed, speed_row
from gmtool.tokenizers.build import facts_of_models
from gmtool.tokenizers.vit import facts_of
from gmtool.training.checkpoint import checkpoint_bytes
from gmtool.training.cost import StepCost
from gmtool.training.micro_batch import expected_micro_batch

METRICS_BYTES = 400
"""About a line of metrics.jsonl."""


def forecast(images: Path, folder: Path, config: TrainDecoderConfig) -> Forecast:
    """What ``train-decoder`` with the same arguments would take. Nothing is written, and no network computed.

    Raises UserError as ``train-decoder`` does for inputs that do not fit together.
    """
    device = resolve_device(config.compute.device)
    plan = plan_decoder(images, config, gpu=device.type == "cuda")
    precision = compute_dtype(config.compute.precision, device)
    cost = cost_of(plan, precision)
    averages, steps = len(config.averages.names), config.loop.steps
    moments = config.optimizer.moment_bytes
    memory = partial(cost.memory, averages=averages, moments=moments)
    micro_batch = expected_micro_batch(config.loop.micro_batch, plan.batch_size, device, memory)
    speed = known_speed(device_name(device), str(precision).removeprefix("torch."))
    seconds = None if speed is None else steps * plan.batch_size * cost.flops / speed.train
    work = [
        ("decoder", f"{cost.parameters:,} parameters"),
        *facts_of_models(plan.tokenizer),
        (
            "operations per step",
            f"{plan.batch_size * cost.flops / 1e12:,.4g} TFLOP ({cost.flops / 1e9:,.4g} GFLOP per image)",
        ),
        ("micro-batch", f"{micro_batch:,}"),
        ("steps", f"{steps:,}, of {plan.batch_size:,} images"),
        ("epochs", f"{steps * plan.batch_size / len(plan.crops.rows):,.3g} of {len(plan.crops.rows):,} images"),
        ("LPIPS from step", f"{plan.phases.perceptual:,}" if config.losses.perceptual != "none" else "never"),
        ("discriminator from step", f"{plan.phases.discriminator:,}" if plan.adversarial else "never"),
        ("adversarial loss from step", f"{plan.phases.adversarial:,}" if plan.adversarial else "never"),
        speed_row(speed),
    ]
    work += as_rows(type(config), plan.settings)
    checkpoint = checkpoint_bytes(cost.parameters, config.averages, config.optimizer)
    return Forecast(
        title=f"{folder} on {device_name(device)}",
        reads=(FileSize(plan.crops.images.root, plan.crops.images.bytes),),
        writes=(
            FileSize(folder / WEIGHTS, 4 * cost.parameters),
            FileSize(folder / CHECKPOINTS, config.loop.keep * checkpoint),
            FileSize(folder / METRICS, steps * METRICS_BYTES),
        ),
        work=tuple(work),
        choices=plan.choices,
        memory=memory(micro_batch),
        seconds=seconds,
    )


def cost_of(plan: TrainDecoderPlan, precision: torch.dtype) -> StepCost:
    """The cost of a step of a planned training; see `gmtool.reconstruction.cost`. Raises what `decoder_from` does."""
    return decoder_step_cost(
        plan.network,
        plan.latent_shape,
        facts_of(plan.tokenizer),
        precision,
        perceptual=plan.config.losses.perceptual != "none",
        discriminator=DINO_S8 if plan.adversarial else None,
    )
