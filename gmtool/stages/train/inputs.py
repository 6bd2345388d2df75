"""What a run is trained on: rows of the latents file, or images that are encoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.run import LatentStatistics, latent_statistics
from gmtool.data.fraction import open_part, part_of_data
from gmtool.data.image_loader import open_images
from gmtool.data.latent_loader import LatentBatch, latent_batches
from gmtool.data.mode_statistics import ModeTable
from gmtool.distributed import World
from gmtool.progress import Progress
from gmtool.stages.train.plan import TrainPlan
from gmtool.tokenizers.build import build_tokenizer
from gmtool.training.batches import (
    Assignments,
    BatchBuilder,
    fresh_assignments,
    mode_draws,
    mode_weights,
    stored_assignments,
)
from gmtool.training.checkpoint import Position
from gmtool.training.task import Batch

QUIET = Progress()


@dataclass(frozen=True)
class TrainInputs:
    """The open inputs of a planned run, and the processes that share it.

    statistics: of the latents and modes, on the CPU. modes: statistics of the modes, None where they are not used.
    """

    plan: TrainPlan
    latents: LatentsFile
    gmm: GmmFile | None
    world: World
    statistics: LatentStatistics
    modes: ModeTable | None

    @property
    def part(self) -> np.ndarray:
        """The rows of the latents file that are trained on."""
        return part_of_data(self.latents, self.plan.config.data.fraction, self.plan.config.seed)


def open_inputs(
    plan: TrainPlan,
    latents: LatentsFile,
    gmm: GmmFile | None,
    world: World,
    statistics: LatentStatistics | None = None,
    progress: Progress = QUIET,
) -> TrainInputs:
    """The inputs of a planned run.

    statistics: of a run that was begun before; default: those of the latents that are trained on, and how often modes
    occur among them where the run knows modes.
    """
    if statistics is None:
        rows = part_of_data(latents, plan.config.data.fraction, plan.config.seed)
        weights = None
        if gmm is not None and plan.method.uses_modes:
            weights = mode_weights(latents, gmm, plan.method.by_class, rows)
        statistics = latent_statistics(open_part(latents, rows, world, progress), weights)
    modes = None
    if gmm is not None and plan.method.uses_mode_statistics:
        modes = ModeTable(gmm, statistics, world.device, whitened=plan.method.method.coordinates.by_mode)
    return TrainInputs(plan, latents, gmm, world, statistics, modes)


@dataclass(frozen=True)
class TrainingData:
    """The batches of a run. raw: the latents of the steps from one on, in the order of a seed."""

    builder: BatchBuilder
    raw: Callable[[int, int], Iterator[LatentBatch]]
    seed: int

    def batches(self, at: Position) -> Iterator[Batch]:
        """The batches of the steps after a position."""
        seed = at.seed(self.seed)
        return self.builder.batches(self.raw(seed, at.step), at.step, seed)


def open_data(inputs: TrainInputs) -> TrainingData:
    """The data of a run, of each batch this process's share.

    Raises UserError for images that do not go with the latents file.
    """
    plan, latents, world = inputs.plan, inputs.latents, inputs.world
    config, size, stop = plan.config, plan.batch_size, plan.config.loop.steps
    share, workers = world.rows(size), config.data.workers
    if config.data.images is None:
        part = inputs.part
        builder = _builder(inputs, latents.labels, stored_assignments, part)
        return TrainingData(
            builder,
            lambda seed, start: latent_batches(latents, size, seed, start, stop, workers, part, share),
            config.seed,
        )
    tokenizer = build_tokenizer(latents.tokenizer, world.device, config.compute.precision)
    source = open_images(config.data.images, latents, tokenizer, config.data.flip)
    builder = _builder(inputs, source.labels, lambda gmm: fresh_assignments(gmm, world.device), None)
    return TrainingData(
        builder, lambda seed, start: source.batches(size, seed, start, stop, workers, share), config.seed
    )


def _builder(
    inputs: TrainInputs, labels: np.ndarray, assign: Callable[[GmmFile], Assignments], part: np.ndarray | None
) -> BatchBuilder:
    method, gmm = inputs.plan.method, inputs.gmm
    return BatchBuilder(
        labels=labels if method.condition == "class" else None,
        classes=len(inputs.latents.classes),
        mode_draws=mode_draws(assign(gmm), gmm, part) if gmm is not None and method.uses_modes else None,
        table=inputs.modes,
        statistics=inputs.statistics.to(inputs.world.device),
        own_mode=method.method.coupling.own_mode,
        source_modes=method.method.uses_modes,
        mode_mean=method.mode_mean,
        device=inputs.world.device,
    )
