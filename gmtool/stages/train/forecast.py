"""What a training run will take, before it is begun: ``gmtool train --dry-run``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.run import CHECKPOINTS, METRICS
from gmtool.runtime import compute_dtype, resolve_device
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.plan import architecture_for, resolve
from gmtool.stages.train.run import open_mixture
from gmtool.throughput import Speed, device_name, known_speed
from gmtool.training.cost import StepCost, step_cost

METRICS_BYTES = 120
"""About a line of metrics.jsonl."""


@dataclass(frozen=True)
class FileSize:
    """A file or folder that is read or written, and its bytes."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """A run that was not begun.

    config: its settings, nothing left open. images: of the latents file. micro_batch: images computed at once, and
    memory: about the bytes that takes. speed: what `gmtool bench` found on the device, None when it was not run there.
    """

    config: TrainConfig
    device: str
    images: int
    cost: StepCost
    micro_batch: int
    memory: int
    reads: tuple[FileSize, ...]
    writes: tuple[FileSize, ...]
    speed: Speed | None

    @property
    def batch(self) -> int:
        """Images a step."""
        assert self.config.batch_size is not None  # resolved
        return self.config.batch_size

    @property
    def step_flops(self) -> int:
        """Operations of a step."""
        return self.batch * self.cost.flops

    @property
    def epochs(self) -> float:
        """How often each image is seen."""
        return self.config.steps * self.batch / self.images

    @property
    def seconds(self) -> float | None:
        """Seconds that all steps take at the measured speed; None when it is not known."""
        return None if self.speed is None else self.config.steps * self.step_flops / self.speed.train


def forecast(latents_path: Path, run_path: Path, config: TrainConfig) -> Forecast:
    """What ``train`` with the same arguments would take. Nothing is written, and no number of the network computed.

    Raises UserError as ``train`` does for inputs that do not fit together.
    """
    with ExitStack() as stack:
        latents = stack.enter_context(open_latents(latents_path))
        gmm = open_mixture(latents, config, stack)
        device = resolve_device(config.device)
        config = resolve(config, latents, gmm, device)
        precision = compute_dtype(config.precision, device)
        cost = step_cost(architecture_for(config, latents, gmm), config, precision)
        assert config.batch_size is not None  # resolved
        averages = len(config.averages)
        micro_batch = _micro_batch(config.micro_batch, config.batch_size, cost, averages, device)
        reads = [latents.path, *([gmm.path] if gmm is not None and config.uses_modes else [])]
        checkpoint = 4 * (3 + averages) * cost.parameters
        return Forecast(
            config=config,
            device=device_name(device),
            images=len(latents),
            cost=cost,
            micro_batch=micro_batch,
            memory=cost.memory(micro_batch, averages),
            reads=tuple(FileSize(path, path.stat().st_size) for path in reads),
            writes=(
                FileSize(run_path / CHECKPOINTS, config.keep * checkpoint),
                FileSize(run_path / METRICS, config.steps * METRICS_BYTES),
            ),
            speed=known_speed(device_name(device), str(precision).removeprefix("torch.")),
        )


def _micro_batch(wanted: str, batch: int, cost: StepCost, averages: int, device: torch.device) -> int:
    """Images computed at once: those asked for; with auto all, on a GPU the most that fit by the estimate."""
    if wanted != "auto":
        return int(wanted)
    if device.type != "cuda":
        return batch
    room = torch.cuda.mem_get_info(device)[1]
    divisors = (each for each in range(batch, 1, -1) if batch % each == 0)
    return next((each for each in divisors if cost.memory(each, averages) <= room), 1)
