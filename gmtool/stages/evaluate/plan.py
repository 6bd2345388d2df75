"""What an evaluation will do, settled and checked before anything is computed."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gmtool.artifacts.files import check_writable
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import IMAGES, SamplesFolder, open_samples
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.extractors import AUTO, choose_extractor, extractor_row
from gmtool.evaluation.features import FeatureStatistics
from gmtool.evaluation.library import torch_fidelity_fault
from gmtool.evaluation.metrics import METRICS, Row, label
from gmtool.evaluation.metrics.frechet_distance import covariance_root
from gmtool.evaluation.references import ArrayReference, Reference, open_reference, open_training_latents
from gmtool.forecast import Choice, FileSize, Forecast
from gmtool.progress import Progress
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.trajectories import run_of

REPORT = "metrics.json"
"""The report's file in the folder of samples."""


@dataclass(frozen=True, eq=False)
class EvaluatePlan:
    """A resolved evaluation.

    samples: the folder; count, side: its images, and their side in pixels. tokenizer: of the run that drew them.
    reference: what they are compared with; on_training_images: whether that is what the run was trained on;
    statistics: those in it that are of the features used. features: the extractor and why it is this one;
    feature_size: D of its vectors. rows: the metrics, of which those are computed that the reference allows; left_out:
    a line on those that are not among them, or "".
    """

    config: EvaluateConfig
    samples: SamplesFolder
    count: int
    side: int
    tokenizer: TokenizerSpec
    reference: Reference
    on_training_images: bool
    statistics: FeatureStatistics | None
    features: Choice
    feature_size: int
    rows: tuple[Row, ...]
    left_out: str
    world: World

    @property
    def output(self) -> Path:
        """The report's file."""
        return self.samples.path / REPORT

    def notes(self) -> list[str]:
        """What a user should know of the choices: why these features, and which metrics are left out."""
        title = extractor_row(self.features.value).title
        chosen = self.config.extractor.asked is None
        return [
            *([f"features: {title}, because {self.features.why}"] if chosen else []),
            *([self.left_out] if self.left_out else []),
        ]

    def forecast(self) -> Forecast:
        """What is read, written and computed."""
        chosen = (self.features,) if self.config.extractor.features == AUTO else ()
        images = self.samples.path / IMAGES
        reads = [images, self.samples.latents, self.reference.path]
        features = 4 * self.feature_size * (self.count + len(self.reference))
        return Forecast(
            title=f"Would score {self.samples.path} against {self.reference.kind} {self.reference.path}",
            reads=tuple(FileSize(path, path.stat().st_size if path.is_file() else None) for path in reads),
            writes=(FileSize(self.output, None),),
            work=(
                ("features", extractor_row(self.features.value).title),
                ("samples", f"{self.count:,} images of {self.side} x {self.side} px"),
                ("reference", f"{len(self.reference):,} images" if len(self.reference) else "mu and sigma alone"),
                ("metrics", ", ".join(self._metrics())),
                *((("left out", self.left_out),) if self.left_out else ()),
            ),
            choices=chosen,
            # the images as they are, features twice (whole, and split into real pairs), a few matrices of covariances
            memory=3 * self.count * self.side**2 + 2 * features + 8 * 8 * self.feature_size**2,
        )

    def _metrics(self) -> list[str]:
        """The names of the metrics that are computed, as far as the reference decides."""
        on_images = ("features", "logits", "images") if len(self.reference) else ("logits", "images")
        needs = {"statistics", *on_images, *(("paths", "latents") if self.config.trajectories else ())}
        if self.features.value != "inception":
            needs.discard("logits")
        if self.on_training_images:
            needs.add("training")
        return [label(metric, self.features.value) for row in self.rows if row.needs in needs for metric in row.metrics]


def plan_evaluation(samples: Path, config: EvaluateConfig, progress: Progress, fetch: bool = True) -> EvaluatePlan:
    """Open and check all inputs, the quick ones first; nothing is computed.

    fetch: whether missing weights of the extractor are downloaded. Raises UserError for inputs that are missing,
    damaged or do not fit together, MachineError when features were asked for that cannot be had.
    """
    folder = open_samples(samples)
    _check_report(samples / REPORT)
    world = join(config.device)
    count, side = folder.image_shape()
    if count < 2:
        raise UserError(f"{samples} holds {count} image: a distribution takes 2 at least, see gmtool sample --num")
    reference = open_training_latents(folder) if config.reference is None else open_reference(config.reference)
    if len(reference) == 1:
        raise UserError(f"{reference.path} holds 1 image: a distribution takes 2 at least")
    if not folder.latents.is_file():
        raise UserError(f"{folder.latents}, which tells the tokenizer, is missing: run gmtool sample again")
    if config.trajectories:
        run_of(folder)
    with open_latents(folder.latents) as latents, world.first_before_others():  # which may fetch weights
        features = choose_extractor(config.extractor, progress, fetch)
        size = extractor_row(features.value).load().feature_size(latents)
        tokenizer = latents.tokenizer
    fault = torch_fidelity_fault()
    rows = tuple(row for row in METRICS if fault is None or not row.library)
    return EvaluatePlan(
        config=config,
        samples=folder,
        count=count,
        side=side,
        tokenizer=tokenizer,
        reference=reference,
        on_training_images=_holds_training_images(reference, folder),
        statistics=_fitting_statistics(reference, features.value, size),
        features=features,
        feature_size=size,
        rows=rows,
        left_out="" if fault is None else f"{_names(rows, features.value)} are left out: {fault}",
        world=world,
    )


def _check_report(path: Path) -> None:
    """Raise UserError unless the report can be written to ``path``, where nothing but an earlier report may be."""
    check_writable(path, "metrics file")
    if not path.exists():
        return
    with suppress(OSError, ValueError, TypeError):
        if {"samples_fingerprint", "figures"} <= set(json.loads(path.read_bytes())):
            return
    raise UserError(f"{path} exists, and the report would replace it: move it away, or choose another name")


def _holds_training_images(reference: Reference, samples: SamplesFolder) -> bool:
    """Whether the reference is the latents that the samples' run was trained on, or the images that they are of."""
    try:
        training = open_training_latents(samples)
    except UserError:
        return False
    images = training.file.manifest.input("images")
    return reference.fingerprint in (training.fingerprint, None if images is None else images.fingerprint)


def _names(rows: tuple[Row, ...], features: str) -> str:
    """The metrics that are in the table but not among ``rows``, and that these features allow."""
    missing = [row for row in METRICS if row not in rows and (row.needs != "logits" or features == "inception")]
    return ", ".join(label(metric, features) for row in missing for metric in row.metrics)


def _fitting_statistics(reference: Reference, features: str, size: int) -> FeatureStatistics | None:
    """The statistics in the reference that are of features of ``size`` numbers; None when there are others or none.

    Raises UserError when they are no mean and covariance of anything, and when the reference is left with nothing to
    compare with.
    """
    statistics = reference.statistics if isinstance(reference, ArrayReference) else None
    if statistics is None:
        return None
    if len(statistics.mean) == size:
        try:
            covariance_root(statistics.covariance)
        except ValueError as error:
            raise UserError(f"--reference {reference.path}: sigma is no covariance: {error}") from error
        return statistics
    if len(reference):
        return None
    found = len(statistics.mean)
    raise UserError(
        f"{reference.path} holds statistics of {found} numbers, but the features of {features} have {size}: give "
        f"{'--features inception, or ' if found == 2048 and features != 'inception' else ''}another --reference"
    )
