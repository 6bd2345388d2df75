"""Score samples: metrics between their features and those of real images, each beside its real-against-real value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from torch import Tensor

from gmtool.artifacts.files import resolved, written_aside
from gmtool.artifacts.outputs import kept_to_this_process
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.evaluation.cache import feature_cache
from gmtool.evaluation.comparison import figures_of, measured
from gmtool.evaluation.extractors import extractor_row
from gmtool.evaluation.extractors.tokenizer import TokenizerExtractor
from gmtool.evaluation.feature_plan import FeaturePlan
from gmtool.evaluation.features import Extractor, Features
from gmtool.evaluation.metric import Context, Known
from gmtool.evaluation.metrics import Resampling, Row
from gmtool.evaluation.metrics.fdr6 import distances
from gmtool.evaluation.metrics.fdr6 import of_subsets as fdr6_of_subsets
from gmtool.evaluation.nearest import nearest_pairs, write_pairs
from gmtool.evaluation.reference_file import write_reference_file
from gmtool.evaluation.references import image_features, pictures_of, reference_features, some_images
from gmtool.evaluation.report import Figure, Measurement, Report, parse_report, reports_to_json
from gmtool.evaluation.scoring import RealFeatures, trained_features, warn_of_small_sets
from gmtool.evaluation.uncertainty import over_seeds, resampled, with_intervals
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.plan import EvaluatePlan, plan_evaluations
from gmtool.stages.evaluate.subjects import Subject, open_subject
from gmtool.stages.evaluate.trajectories import followed_paths, latents_of_both


def evaluate(samples: Path, config: EvaluateConfig, progress: Progress) -> Report:
    """Score one set of images; see `evaluate_all`."""
    (report,) = evaluate_all([samples], config, progress)
    return report


def evaluate_all(
    samples: Sequence[Path], config: EvaluateConfig, progress: Progress, output: Path | None = None
) -> tuple[Report, ...]:
    """Compare folders of samples, or images of any tool, with real images; write and return the reports.

    output: a file for all reports; default: ``metrics.json`` in a folder of samples, ``NAME.metrics.json`` beside
    anything else. Raises what `plan_evaluations` does, and UserError for images that cannot be read, do not fit the
    samples, or change meanwhile.
    """
    allow_tf32(False)  # figures are to be those of any other device
    reports = []
    plans = plan_evaluations(samples, config, progress, output=output)
    for number, plan in enumerate(plans, 1):
        if len(plans) > 1:
            progress.note(f"{plan.subject.path} ({number} of {len(plans)})")
        for line in plan.notes():
            progress.note(line)
        with _locked(plan):
            _expect_unchanged(plan.subject)
            report = _evaluate(plan, progress)
            if output is None and plan.world.first:
                _write(plan.subject.report, report.to_json())
        reports.append(_everywhere(report, plan.world))
    if output is not None and plan.world.first:
        _write(output, reports[0].to_json() if len(reports) == 1 else reports_to_json(tuple(reports)))
    return tuple(reports)


def _locked(plan: EvaluatePlan) -> AbstractContextManager[None]:
    """Keep the images to this process. Where the folder around them is read-only, nobody can replace them."""
    target = resolved(plan.subject.path)
    if not (plan.world.first and os.access(target.parent, os.W_OK)):
        return nullcontext()
    return kept_to_this_process(plan.subject.path, target)


def _expect_unchanged(subject: Subject) -> None:
    """Raise UserError where the images were replaced between the plan and the lock: what is known of them is void."""
    now = open_subject(subject.path)
    if (now.fingerprint, now.images.digest) != (subject.fingerprint, subject.images.digest):
        raise UserError(f"{subject.path} changed meanwhile: run the same command again")


def _write(path: Path, text: str) -> None:
    with written_aside(path) as part:
        part.write_text(text + "\n")


def _everywhere(report: Report, world: World) -> Report:
    """The first process's report."""
    return parse_report(world.tell(report.to_json()))


def _evaluate(plan: EvaluatePlan, progress: Progress) -> Report:
    """All figures of one set of images."""
    figures: list[Figure] = []
    used: dict[str, str] = {}
    subsets: dict[str, Sequence[Measurement]] = {}
    for features in plan.features:
        row = extractor_row(features.name)
        with plan.world.first_before_others():
            extractor = row.load().open_extractor(plan.config.extractor, plan.described, plan.world.device, progress)
        used[features.name] = extractor.name
        scored = _figures_on(plan, features, extractor, progress)
        figures += scored.figures
        if "frechet_distance" in scored.subsets:
            subsets[features.name] = scored.subsets["frechet_distance"]
    if plan.world.first:
        others = _figures_without_features(plan, figures, progress)
        of_subsets = fdr6_of_subsets(subsets, _context(plan, plan.config.seed))
        if of_subsets is not None:
            limits = all(
                figure.generated.limit is not None for figure in figures if figure.metric == "frechet_distance"
            )
            others = with_intervals(others, {"fdr6": of_subsets}, "jackknife", plan.count, limits)
        figures += others
    first = plan.features[0].name
    return Report(
        samples=str(plan.subject.path),
        samples_fingerprint=plan.subject.fingerprint,
        features=first,
        extractor=used[first],
        reference=str(plan.reference.path),
        reference_kind=plan.reference.kind,
        reference_fingerprint=plan.reference.fingerprint,
        seed=plan.config.seed,
        figures=tuple(figures),
        extractors=used,
    )


@dataclass(frozen=True, eq=False)
class _OnFeatures:
    """Figures on one extractor's features. subsets: the metrics of subsets of the samples, by `resampled`."""

    figures: tuple[Figure, ...]
    subsets: Mapping[str, Sequence[Measurement]]


def _figures_on(plan: EvaluatePlan, features: FeaturePlan, extractor: Extractor, progress: Progress) -> _OnFeatures:
    """The figures on one extractor's features; none in other processes than the first."""
    world, batch, cache = plan.world, plan.config.batch_size, feature_cache(plan.config.cache_size)
    reference = None
    if len(plan.reference):  # first, because this may find that the reference does not fit
        reference = reference_features(plan.reference, extractor, plan.side, batch, world, progress, cache)
    subject = plan.subject.images
    generated = image_features(subject, extractor, plan.side, batch, world, progress, "the samples", cache)
    if not world.first:
        return _OnFeatures((), {})
    if reference is not None and features is plan.features[0]:
        _write_extras(plan, extractor, generated, reference)
    warn_of_small_sets(generated, reference, progress)
    made = plan.subject.folder
    real = RealFeatures(features, reference, made, trained_features(plan.reference, extractor, made), extractor)
    known, rows = real.known(generated), features.rows
    figures = over_seeds(
        [
            figures_of(rows, known, real.in_place(plan.count, seed), _context(plan, seed), progress, features.name)
            for seed in range(plan.config.seed, plan.config.seed + plan.config.repeats)
        ]
    )
    return (
        _OnFeatures(figures, {})
        if not plan.config.intervals
        else _with_intervals(plan, figures, real, generated, progress)
    )


def _with_intervals(
    plan: EvaluatePlan, figures: tuple[Figure, ...], real: RealFeatures, generated: Features, progress: Progress
) -> _OnFeatures:
    """The figures on one extractor's features with their intervals."""
    context, config = _context(plan, plan.config.seed), plan.config
    subsets: dict[str, Sequence[Measurement]] = {}
    for resampling in get_args(Resampling):
        rows = [row for row in real.plan.rows if row.defined_on(real.plan.name) and row.resampling == resampling]
        moments = any(row.needs in ("statistics", "spatial") for row in rows)

        def measure(chosen: Tensor, rows: Sequence[Row] = rows, moments: bool = moments) -> Mapping[str, Measurement]:
            return measured(rows, real.known(generated.rows(chosen), moments), context)

        here = resampled(resampling, measure, plan.count, config.intervals, config.seed, progress)
        limits = len(generated) > generated.vectors.shape[1]
        figures = with_intervals(figures, here, resampling, plan.count, limits)
        subsets |= here
    return _OnFeatures(figures, subsets)


def _write_extras(plan: EvaluatePlan, extractor: Extractor, generated: Features, reference: Features) -> None:
    """What was asked for besides the figures: a reference file, once for all samples, and a picture of pairs."""
    target, picture, pictures = plan.config.write_reference, plan.config.nearest, pictures_of(plan.reference)
    if target is not None and not target.exists():
        write_reference_file(target, reference, pictures, plan.side)
    if picture is not None:
        # the tokenizer's features of latents are theirs, row by row, others' are the pictures'
        real = plan.reference if isinstance(extractor, TokenizerExtractor) else pictures
        if real is not None:
            pairs = nearest_pairs(generated.vectors, reference.vectors, plan.world.device)
            write_pairs(picture, pairs, plan.subject.images, real, plan.side)


def _figures_without_features(plan: EvaluatePlan, figures: Sequence[Figure], progress: Progress) -> tuple[Figure, ...]:
    """The figures of the images, the latents and the run's flow themselves, and of the figures on several features."""
    config, images, side = plan.config, plan.subject.images, plan.side
    known = Known(
        images=lambda: images.batches(side, config.batch_size, range(len(images))), distances=distances(figures)
    )
    real = Known(images=some_images(plan.reference, side, config.batch_size), distances=distances(figures, real=True))
    folder = plan.subject.folder
    if config.trajectories and folder is not None:
        latents = latents_of_both(folder, config, progress)
        known = replace(
            known,
            paths=lambda: followed_paths(folder, config, plan.world.device, progress),
            latents=None if latents is None else latents.images,
        )
        real = replace(real, latents=None if latents is None else latents.reference)
    return figures_of(plan.rows, known, real, _context(plan, config.seed), progress)


def _context(plan: EvaluatePlan, seed: int) -> Context:
    return Context(plan.config.metrics, seed, plan.world.device)
