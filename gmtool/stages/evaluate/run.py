"""Score samples: metrics between their features and those of real images, each beside its real-against-real value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gmtool.artifacts.files import written_aside
from gmtool.errors import UserError
from gmtool.evaluation.comparison import figures_of, known_from_features, real_pair
from gmtool.evaluation.extractors import extractor_row
from gmtool.evaluation.extractors.tokenizer import TokenizerExtractor
from gmtool.evaluation.features import Extractor, Features, expect_finite, extract_features, gather_features
from gmtool.evaluation.metric import Context, Known, Pair
from gmtool.evaluation.references import (
    array_batches,
    open_training_latents,
    reference_features,
    same_tokenizer,
    some_images,
)
from gmtool.evaluation.report import Report, parse_report
from gmtool.progress import Progress
from gmtool.runtime import allow_tf32
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.plan import EvaluatePlan, plan_evaluation
from gmtool.stages.evaluate.trajectories import followed_paths, latents_of_both
from gmtool.streams import generator


def evaluate(samples: Path, config: EvaluateConfig, progress: Progress) -> Report:
    """Compare a folder of samples with real images; write ``metrics.json`` into it and return the report.

    Raises what `plan_evaluation` does, and UserError for images that cannot be read or do not fit the samples.
    """
    allow_tf32(False)  # figures are to be those of any other device
    plan = plan_evaluation(samples, config, progress)
    for line in plan.notes():
        progress.note(line)
    world, batch = plan.world, config.batch_size
    with world.first_before_others():
        extractor = (
            extractor_row(plan.features.value)
            .load()
            .open_extractor(config.extractor, plan.tokenizer, world.device, progress)
        )
    reference = None
    if len(plan.reference):  # first, because this may find that the reference does not fit
        reference = reference_features(plan.reference, extractor, plan.side, batch, world, progress)
    images = plan.samples.images()
    own = images[world.rows(len(images))]
    generated = gather_features(
        extract_features(extractor, array_batches(own, batch), len(own), "the samples", progress), world
    )
    expect_finite(generated, str(samples))
    with world.first_before_others():
        if world.first:
            text = _report(plan, images, extractor, generated, reference, progress).to_json() + "\n"
            with written_aside(plan.output) as part:
                part.write_text(text)
        return parse_report(plan.output.read_text())


def _report(
    plan: EvaluatePlan,
    images: np.ndarray,
    extractor: Extractor,
    generated: Features,
    reference: Features | None,
    progress: Progress,
) -> Report:
    """All figures, from the features of all images."""
    config = plan.config
    _warn_of_small_sets(generated, reference, progress)
    known = known_from_features(generated, reference, plan.statistics)
    pair = None if reference is None else _real_pair(plan, extractor, reference)
    real = Known() if pair is None else known_from_features(pair.images, pair.reference)
    if plan.on_training_images:
        known, real = replace(known, training=known.features), replace(real, training=real.features)
    if plan.statistics is not None:  # a file says nothing about parts of the set that its statistics are of
        real = replace(real, statistics=None)
    known = replace(known, images=lambda: array_batches(images, config.batch_size))
    real = replace(real, images=some_images(plan.reference, plan.side, config.batch_size))
    if config.trajectories:
        latents = latents_of_both(plan.samples, config, progress)
        known = replace(
            known,
            paths=lambda: followed_paths(plan.samples, config, plan.world.device, progress),
            latents=None if latents is None else latents.images,
        )
        real = replace(real, latents=None if latents is None else latents.reference)
    context = Context(config.metrics, config.seed, plan.world.device)
    return Report(
        samples=str(plan.samples.path),
        samples_fingerprint=plan.samples.manifest.fingerprint,
        features=plan.features.value,
        extractor=extractor.name,
        reference=str(plan.reference.path),
        reference_kind=plan.reference.kind,
        reference_fingerprint=plan.reference.fingerprint,
        seed=config.seed,
        figures=figures_of(plan.rows, known, real, context, progress),
    )


def _real_pair(plan: EvaluatePlan, extractor: Extractor, reference: Features) -> Pair[Features] | None:
    """Real images in the place of the samples: training images if they are available and not the reference itself."""
    training = None
    if isinstance(extractor, TokenizerExtractor):
        training = _training_descriptors(plan, extractor)
    return real_pair(reference, training, plan.count, plan.config.seed)


def _training_descriptors(plan: EvaluatePlan, extractor: TokenizerExtractor) -> Features | None:
    """Descriptors of as many random training images as there are samples; None when they are gone or the reference."""
    if plan.on_training_images:
        return None
    try:
        training = open_training_latents(plan.samples)
    except UserError:
        return None
    if not same_tokenizer(training.file.tokenizer, extractor.spec):
        return None
    rows = torch.randperm(len(training), generator=generator(plan.config.seed, "real pair"))[: plan.count]
    return Features(torch.from_numpy(training.file.descriptors(rows.numpy())))


def _warn_of_small_sets(generated: Features, reference: Features | None, progress: Progress) -> None:
    size = generated.vectors.shape[1]
    for features, whose in ((generated, "samples"), (reference, "reference images")):
        if features is not None and len(features) <= size:
            progress.note(
                f"{len(features)} {whose} do not span the {size} dimensions of the features, which biases the Frechet "
                "distance upward: compare it with the real-against-real value beside it, or at equal numbers of images"
            )
