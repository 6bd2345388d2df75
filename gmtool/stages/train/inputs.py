"""What a run is trained on: rows of the latents file, or images that are encoded as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.manifest import Input
from gmtool.artifacts.run import LatentStatistics, Origin, latent_statistics
from gmtool.data.fraction import open_part, part_of_data
from gmtool.data.image_loader import open_images
from gmtool.data.image_sets import find_images
from gmtool.data.latent_loader import LatentBatch, latent_batches
from gmtool.data.mode_statistics import ModeInputs, ModeTable, mode_table_of
from gmtool.distributed import World
from gmtool.progress import Progress
from gmtool.sampling.teacher import LoadedTeacher
from gmtool.stages.train.plan import TrainPlan
from gmtool.tokenizers.build import build_tokenizer
from gmtool.training.batches import (
    Assignments,
    BatchBuilder,
    SourceBatches,
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

    latents: None for a student that is trained without data. statistics: of the latents and modes, on the CPU. modes:
    statistics of the modes, None where they are not used. teacher: of a student.
    """

    plan: TrainPlan
    latents: LatentsFile | None
    gmm: GmmFile | None
    world: World
    statistics: LatentStatistics
    modes: ModeTable | None
    teacher: LoadedTeacher | None = None

    @property
    def mode_inputs(self) -> ModeInputs:
        """What the run takes of samples' modes."""
        return ModeInputs(self.plan.method.method, self.modes, self.plan.method.mode_mean)

    def origin(self) -> Origin:
        """Where the latents come from: as their file says, or a teacher's record. Raises ValueError without either."""
        if self.latents is None:
            if self.teacher is None:
                raise ValueError("a run without latents needs a teacher")
            return self.teacher.run.origin
        latents, images = self.latents, self.plan.config.data.images
        labels = latents.labels[rows_of(self.plan, latents)]
        # a class without images would be sampled from an embedding that was never trained
        counts = None if images is not None else np.bincount(labels[labels >= 0], minlength=len(latents.classes))
        return Origin(
            latents.classes, latents.tokenizer, latents.descriptor_size, None if counts is None else counts.tolist()
        )


def files_of(
    plan: TrainPlan, latents: LatentsFile | None, gmm: GmmFile | None, teacher: Sequence[Input] = ()
) -> tuple[Input, ...]:
    """The files that a run reads, as its manifest names them. teacher: the weights of a student's teacher."""
    used, images = list(teacher), plan.config.data.images
    if latents is not None:
        used.append(Input("latents", str(latents.path.absolute()), latents.manifest.fingerprint))
    if gmm is not None and plan.method.uses_modes:
        used.append(Input("gmm", str(gmm.path.absolute()), gmm.manifest.fingerprint))
    if images is not None:
        used.append(Input("images", str(images.absolute()), find_images(images).fingerprint))
    return tuple(used)


def rows_of(plan: TrainPlan, latents: LatentsFile) -> np.ndarray:
    """The rows (n,) int64 of the latents file that are trained on, ascending."""
    return part_of_data(latents, plan.fraction, plan.config.seed)


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
        rows = rows_of(plan, latents)
        weights = None
        if gmm is not None and plan.method.uses_modes:
            weights = mode_weights(latents, gmm, plan.method.by_class, rows)
        statistics = latent_statistics(open_part(latents, rows, world, progress), weights)
    return TrainInputs(plan, latents, gmm, world, statistics, mode_table_of(plan.method, gmm, statistics, world.device))


@dataclass(frozen=True)
class TrainingData:
    """The batches of a run. make: those of the steps from one on, by a seed."""

    make: Callable[[int, int], Iterator[Batch]]
    seed: int

    def batches(self, at: Position) -> Iterator[Batch]:
        """The batches of the steps after a position."""
        return self.make(at.seed(self.seed), at.step)


def open_data(inputs: TrainInputs) -> TrainingData:
    """The data of a run, of each batch this process's share.

    Raises UserError for images that do not go with the latents file.
    """
    plan, latents, world = inputs.plan, inputs.latents, inputs.world
    config, size, stop = plan.config, plan.batch_size, plan.config.loop.steps
    share, workers = world.rows(size), config.data.workers
    if latents is None:
        drawn = _source_batches(inputs)
        return TrainingData(lambda seed, start: drawn.batches(seed, start, stop), config.seed)
    raw: Callable[[int, int], Iterator[LatentBatch]]
    if config.data.images is None:
        part = rows_of(plan, latents)
        builder = _builder(inputs, latents, latents.labels, stored_assignments, part)
        raw = lambda seed, start: latent_batches(latents, size, seed, start, stop, workers, part, share)  # noqa: E731
    else:
        tokenizer = build_tokenizer(latents.tokenizer, world.device, config.compute.precision)
        source = open_images(config.data.images, latents, tokenizer, config.data.flip)
        builder = _builder(inputs, latents, source.labels, lambda gmm: fresh_assignments(gmm, world.device), None)
        raw = lambda seed, start: source.batches(size, seed, start, stop, workers, share)  # noqa: E731
    return TrainingData(lambda seed, start: builder.batches(raw(seed, start), start, seed), config.seed)


def _source_batches(inputs: TrainInputs) -> SourceBatches:
    method, teacher = inputs.plan.method, inputs.teacher
    classes = teacher.run.sampled_classes if teacher is not None and method.condition == "class" else None
    return SourceBatches(
        shape=inputs.plan.architecture.shape,
        size=inputs.plan.batch_size,
        share=inputs.world.rows(inputs.plan.batch_size),
        classes=None if classes is None else torch.tensor(classes),
        weights=inputs.statistics.mode_weights if method.uses_modes else None,
        mode_inputs=inputs.mode_inputs,
        device=inputs.world.device,
    )


def _builder(
    inputs: TrainInputs,
    latents: LatentsFile,
    labels: np.ndarray,
    assign: Callable[[GmmFile], Assignments],
    part: np.ndarray | None,
) -> BatchBuilder:
    method, gmm = inputs.plan.method, inputs.gmm
    return BatchBuilder(
        labels=labels if method.condition == "class" else None,
        classes=len(latents.classes),
        mode_draws=mode_draws(assign(gmm), gmm, part) if gmm is not None and method.uses_modes else None,
        mode_inputs=inputs.mode_inputs,
        statistics=inputs.statistics.to(inputs.world.device),
        device=inputs.world.device,
    )
