"""What an evaluation will do, settled and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import IMAGES
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.extractors import AUTO, Described, choose_extractors, extractor_row
from gmtool.evaluation.features import FeatureStatistics
from gmtool.evaluation.library import torch_fidelity_fault
from gmtool.evaluation.metrics import METRICS, Row, label
from gmtool.evaluation.metrics.frechet_distance import covariance_root
from gmtool.evaluation.references import (
    ArrayReference,
    LatentsReference,
    Reference,
    open_reference,
    open_training_latents,
)
from gmtool.forecast import Choice, FileSize, Forecast
from gmtool.progress import Progress
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.subjects import Subject, check_report, open_subjects
from gmtool.stages.evaluate.trajectories import run_of

SPATIAL_SIZE = 2023
"""Numbers of the features of sFID."""


@dataclass(frozen=True, eq=False)
class FeaturePlan:
    """One extractor: which, and why; D of its vectors, None while its weights are not here; the metrics on it.

    statistics, spatial: those in the reference that are of its features.
    """

    choice: Choice
    size: int | None
    rows: tuple[Row, ...]
    statistics: FeatureStatistics | None
    spatial: FeatureStatistics | None

    @property
    def name(self) -> str:
        """The extractor's name."""
        return self.choice.value


@dataclass(frozen=True, eq=False)
class EvaluatePlan:
    """A resolved evaluation of one set of images.

    subject: the images; count: how many. described: the tokenizer whose latents come with them or with the reference.
    reference: what they are compared with; on_training_images: whether that is what the run was trained on. features:
    the extractors; rows: the metrics that need none. left_out: a line on each thing asked for that cannot be had.
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
    world: World

    @property
    def side(self) -> int:
        """Side of the images, in pixels."""
        return self.subject.side

    def notes(self) -> list[str]:
        """What a user should know of the choices: why these features, and what is left out."""
        chosen = [each for each in self.features if not self.config.extractor.asked]
        return [
            *(f"features: {extractor_row(each.name).title}, because {each.choice.why}" for each in chosen),
            *self.left_out,
            *self.subject.notes,
        ]

    def forecast(self) -> Forecast:
        """What is read, written and computed."""
        choices = tuple(each.choice for each in self.features) if self.config.extractor.features == AUTO else ()
        subject, folder = self.subject, self.subject.folder
        reads = [subject.path] if folder is None else [folder.path / IMAGES, folder.latents]
        titles = ", ".join(extractor_row(each.name).title for each in self.features)
        return Forecast(
            title=f"Would score {subject.path} against {self.reference.kind} {self.reference.path}",
            reads=tuple(
                FileSize(path, path.stat().st_size if path.is_file() else None)
                for path in [*reads, self.reference.path]
            ),
            writes=(FileSize(subject.report, None),),
            work=(
                ("features", titles),
                ("samples", f"{self.count:,} images of {self.side} x {self.side} px"),
                ("reference", f"{len(self.reference):,} images" if len(self.reference) else "mu and sigma alone"),
                ("metrics", ", ".join(self._metrics())),
                *(("left out", line) for line in self.left_out),
            ),
            choices=choices,
            memory=max((self._memory(each) for each in self.features), default=0),
        )

    def _memory(self, features: FeaturePlan) -> int:
        """About the bytes that the features of one extractor take."""
        size = features.size or 1024
        numbers = size + (SPATIAL_SIZE + 1008 if features.name == "inception" else 0)
        # features twice (whole, and split into real pairs), in float64 once more, a few matrices of covariances
        return 2 * (4 * numbers + 8 * size) * (self.count + len(self.reference)) + 8 * 8 * size**2

    def _metrics(self) -> list[str]:
        """The names of the metrics that are computed, as far as the reference decides."""
        return [
            *(
                label(metric, each.name)
                for each in self.features
                for row in self._computed(each)
                for metric in row.metrics
            ),
            *(metric.label for row in self.rows for metric in row.metrics),
        ]

    def _computed(self, features: FeaturePlan) -> list[Row]:
        """The metrics on some features that the reference allows."""
        with_images = len(self.reference) > 0
        allowed = {
            "statistics": with_images or features.statistics is not None,
            "spatial": with_images or features.spatial is not None,
            "features": with_images,
            "training": with_images and self.on_training_images,
            "logits": True,
        }
        return [row for row in features.rows if allowed[row.needs]]


ON_FEATURES = ("statistics", "spatial", "features", "training", "logits")
"""Needs of metrics that an extractor's features meet."""


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
    for path in [each.report for each in subjects] if output is None else [output]:
        check_report(path)
    world = join(config.device)
    return tuple(_plan(subject, config, progress, fetch, world) for subject in subjects)


def _plan(subject: Subject, config: EvaluateConfig, progress: Progress, fetch: bool, world: World) -> EvaluatePlan:
    count = len(subject.images)
    if count < 2:
        raise UserError(f"{subject.path} holds {count} image: a distribution takes 2 at least, see gmtool sample --num")
    reference = _reference(subject, config)
    if len(reference) == 1:
        raise UserError(f"{reference.path} holds 1 image: a distribution takes 2 at least")
    if config.trajectories:
        if subject.folder is None:
            raise UserError(f"--trajectories: {subject.path} was not drawn by gmtool: leave it out, or score it alone")
        run_of(subject.folder)
    described = _described(subject, reference)
    lacking = {} if described is not None else {"tokenizer": f"{subject.path} comes with no latents of a tokenizer"}
    with world.first_before_others():  # which may fetch weights
        chosen = choose_extractors(config.extractor, progress, fetch, refused=lacking)
    fault = torch_fidelity_fault()
    features = tuple(_features(each, config, described, reference, fault is None) for each in chosen.choices)
    if not len(reference) and not any(each.statistics or each.spatial for each in features):
        raise _no_statistics(reference, features)
    lost = [] if fault is None else [f"{_library_metrics(features)} are left out: {fault}"]
    return EvaluatePlan(
        config=config,
        subject=subject,
        count=count,
        described=described,
        reference=reference,
        on_training_images=subject.folder is not None and _holds_training_images(reference, subject),
        features=features,
        rows=tuple(
            row
            for row in METRICS
            if row.needs not in ON_FEATURES and (config.trajectories or row.needs not in ("paths", "latents"))
        ),
        left_out=(*(f"left out: {line}" for line in chosen.missing), *lost),
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


def _features(
    choice: Choice, config: EvaluateConfig, described: Described | None, reference: Reference, library: bool
) -> FeaturePlan:
    row = extractor_row(choice.value)
    size = row.load().feature_size(config.extractor, described)
    rows = [each for each in METRICS if each.needs in ON_FEATURES and (library or not each.library)]
    rows = [each for each in rows if row.allows(each) and (each.needs not in ("logits", "spatial") or row.classifies)]
    statistics = reference.statistics if isinstance(reference, ArrayReference) else None
    spatial = reference.spatial if isinstance(reference, ArrayReference) and row.classifies else None
    return FeaturePlan(
        choice,
        size,
        tuple(rows),
        _fitting(statistics, size, reference, "sigma"),
        _fitting(spatial, SPATIAL_SIZE, reference, "sigma_s"),
    )


def _holds_training_images(reference: Reference, subject: Subject) -> bool:
    """Whether the reference is the latents that the samples' run was trained on, or the images that they are of."""
    assert subject.folder is not None
    try:
        training = open_training_latents(subject.folder)
    except UserError:
        return False
    images = training.file.manifest.input("images")
    return reference.fingerprint in (training.fingerprint, None if images is None else images.fingerprint)


def _library_metrics(features: Sequence[FeaturePlan]) -> str:
    """The metrics on these features that need torch-fidelity."""
    found = [
        label(metric, each.name)
        for each in features
        for row in METRICS
        if row.library
        and extractor_row(each.name).allows(row)
        and (row.needs != "logits" or extractor_row(each.name).classifies)
        for metric in row.metrics
    ]
    return ", ".join(found)


def _fitting(
    statistics: FeatureStatistics | None, size: int | None, reference: Reference, name: str
) -> FeatureStatistics | None:
    """The statistics, where they are of features of ``size`` numbers. Raises UserError where they are no covariance."""
    if statistics is None or len(statistics.mean) != size:
        return None
    try:
        covariance_root(statistics.covariance)
    except ValueError as error:
        raise UserError(f"--reference {reference.path}: {name} is no covariance: {error}") from error
    return statistics


def _no_statistics(reference: Reference, features: Sequence[FeaturePlan]) -> UserError:
    """The error of a reference that holds nothing to compare these features with."""
    statistics = reference.statistics if isinstance(reference, ArrayReference) else None
    found = 0 if statistics is None else len(statistics.mean)
    names = [each.name for each in features]
    wanted = " and ".join(f"{each.name} have {each.size}" for each in features)
    other = "--features inception, or " if found == 2048 and "inception" not in names else ""
    return UserError(
        f"{reference.path} holds statistics of {found} numbers, but the features of {wanted}: give {other}another "
        "--reference"
    )
