"""The plan of an evaluation, resolved and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import IMAGES
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.compression import compression_note
from gmtool.evaluation.extractors import FDR, Described, extractor_row
from gmtool.evaluation.feature_plan import ON_FEATURES, FeaturePlan, plan_features
from gmtool.evaluation.metrics import METRICS, Row, label
from gmtool.evaluation.nearest import check_picture
from gmtool.evaluation.reference_file import check_reference_file
from gmtool.evaluation.references import (
    LatentsReference,
    Reference,
    open_reference,
    open_training_latents,
    trained_among,
)
from gmtool.forecast import FileSize, Forecast
from gmtool.progress import Progress
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.subjects import Subject, check_report, open_subjects
from gmtool.stages.evaluate.trajectories import run_of


@dataclass(frozen=True, eq=False)
class EvaluatePlan:
    """A resolved evaluation of one set of images.

    subject: the images; count: how many. described: the tokenizer whose latents come with them or with the reference.
    reference: what they are compared with; on_training_images: whether it holds those of the run's training. features:
    the extractors; rows: the metrics that need none. left_out: a line on each thing asked for that is not available.
    warning: where the two sets were compressed in different ways.
    """

    config: EvaluateConfig
    subject: Subject
    count: int
    described: Described | None
    reference: Reference
    on_training_images: bool
    features: tuple[FeaturePlan, ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    warning: str | None
    world: World

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return self.subject.side

    def notes(self) -> list[str]:
        """Notes for the user: why these features, and what is left out."""
        chosen = [features for features in self.features if not self.config.extractor.asked]
        return [
            *(f"features: {extractor_row(features.name).title}, because {features.choice.why}" for features in chosen),
            *self.left_out,
            *self.subject.notes,
            *([self.warning] if self.warning else []),
        ]

    def forecast(self) -> Forecast:
        """What is read, written and computed."""
        choices = tuple(features.choice for features in self.features) if self.config.extractor.automatic else ()
        subject, folder = self.subject, self.subject.folder
        reads = [subject.path] if folder is None else [folder.path / IMAGES, folder.latents]
        real = len(self.reference)
        titles = ", ".join(extractor_row(features.name).title for features in self.features)
        return Forecast(
            title=f"Would score {subject.path} against {self.reference.kind} {self.reference.path}",
            reads=tuple(
                FileSize(path, path.stat().st_size if path.is_file() else None)
                for path in [*reads, self.reference.path]
            ),
            writes=tuple(
                FileSize(path, None)
                for path in (subject.report, self.config.write_reference, self.config.nearest)
                if path
            ),
            work=(
                ("features", titles),
                ("samples", f"{self.count:,} images of {self.side} x {self.side} px"),
                ("reference", f"{real:,} images" if real else "mu and sigma alone"),
                ("metrics", ", ".join(self._metrics())),
                *(("left out", line) for line in self.left_out),
            ),
            choices=choices,
            memory=max(features.memory(self.count, real, self.config.intervals > 0) for features in self.features),
            more_memory="the extractors",
        )

    def _metrics(self) -> list[str]:
        """The names of the metrics that are computed, as far as the reference decides."""
        return [
            *(
                label(metric, features.name)
                for features in self.features
                for row in features.computed(len(self.reference) > 0, self.on_training_images)
                for metric in row.metrics
            ),
            *(metric.label for row in self.rows for metric in row.metrics),
        ]


def plan_evaluation(samples: Path, config: EvaluateConfig, progress: Progress, fetch: bool = True) -> EvaluatePlan:
    """The evaluation of one set of images; see `plan_evaluations`."""
    (plan,) = plan_evaluations([samples], config, progress, fetch)
    return plan


def plan_evaluations(
    samples: Sequence[Path],
    config: EvaluateConfig,
    progress: Progress,
    fetch: bool = True,
    output: Path | None = None,
) -> tuple[EvaluatePlan, ...]:
    """Open and check all inputs, the quick ones first; nothing is computed.

    fetch: whether missing weights of the extractors are downloaded. output: a file for all reports in the place of one
    beside each of the samples. Raises UserError for inputs that are missing, damaged or do not fit together,
    MachineError when no features that were asked for can be had.
    """
    if not samples:
        raise UserError("there is nothing to score: give what `gmtool sample` wrote, or images")
    subjects = open_subjects(samples)
    for path in [subject.report for subject in subjects] if output is None else [output]:
        check_report(path)
    if config.write_reference is not None:
        check_reference_file(config.write_reference)
    if config.nearest is not None:
        check_picture(config.nearest)
        if len(subjects) > 1:
            raise UserError("--nearest: a picture is of one set of samples: give one alone")
    world = join(config.device)
    return tuple(_plan(subject, config, progress, fetch, world) for subject in subjects)


def _plan(subject: Subject, config: EvaluateConfig, progress: Progress, fetch: bool, world: World) -> EvaluatePlan:
    count = len(subject.images)
    if count < 2:
        raise UserError(f"{subject.path} holds {count} image: a distribution takes 2 at least, see gmtool sample --num")
    reference = _reference(subject, config)
    for name, path in (("--write-reference", config.write_reference), ("--nearest", config.nearest)):
        if path is not None and not len(reference):
            raise UserError(
                f"{name} needs real images, and {reference.path} holds statistics alone: remove the flag, or give "
                "images as --reference"
            )
    if len(reference) == 1:
        raise UserError(f"{reference.path} holds 1 image: a distribution takes 2 at least")
    if config.trajectories:
        if subject.folder is None:
            raise UserError(
                f"--trajectories: {subject.path} was not drawn by gmtool: remove the flag, or leave these images out"
            )
        run_of(subject.folder)
    described = _described(subject, reference)
    lacking = {} if described is not None else {"tokenizer": f"{subject.path} comes with no latents of a tokenizer"}
    chosen = plan_features(config.extractor, described, reference, progress, world, fetch, lacking)
    return EvaluatePlan(
        config=config,
        subject=subject,
        count=count,
        described=described,
        reference=reference,
        on_training_images=subject.folder is not None and len(trained_among(reference, subject.folder)) > 0,
        features=chosen.features,
        rows=tuple(
            row
            for row in METRICS
            if row.needs not in ON_FEATURES
            and (config.trajectories or row.needs not in ("paths", "latents"))
            and (row.needs != "distances" or set(FDR) < {features.name for features in chosen.features})
        ),
        left_out=chosen.left_out,
        warning=compression_note(subject.images, reference, subject.side),
        world=world,
    )


def _reference(subject: Subject, config: EvaluateConfig) -> Reference:
    if config.reference is not None:
        return open_reference(config.reference)
    if subject.folder is None:
        raise UserError(
            f"{subject.path} does not say what it is to be compared with: give real images with --reference"
        )
    return open_training_latents(subject.folder)


def _described(subject: Subject, reference: Reference) -> Described | None:
    """The tokenizer of the samples' latents, else of the reference's."""
    path = None
    if subject.folder is not None:
        path = subject.folder.latents
        if not path.is_file():
            raise UserError(f"{path}, which tells the tokenizer, is missing: run gmtool sample again")
    elif isinstance(reference, LatentsReference):
        path = reference.path
    if path is None:
        return None
    with open_latents(path) as latents:
        return Described(latents.tokenizer, latents.descriptor_size)
