"""Score samples: metrics between their features and those of real images, each beside its real-against-real value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.files import check_writable, written_aside
from gmtool.artifacts.latents import open_latents
from gmtool.artifacts.samples import METRICS, SamplesFolder, open_samples
from gmtool.distributed import World, join
from gmtool.errors import UserError
from gmtool.evaluation.comparison import RealPair, Settings, figures_of, real_pair
from gmtool.evaluation.features import (
    Extractor,
    Features,
    TokenizerExtractor,
    choose_extractor,
    extract_features,
    gather_features,
)
from gmtool.evaluation.fidelity import FeatureStatistics, require_torch_fidelity
from gmtool.evaluation.references import (
    ArrayReference,
    LatentsReference,
    Reference,
    array_batches,
    open_reference,
    open_training_latents,
    reference_features,
    same_tokenizer,
)
from gmtool.evaluation.report import Figure, Measurement, Report, parse_report
from gmtool.evaluation.saturation import saturation
from gmtool.progress import Progress
from gmtool.stages.evaluate.config import EvaluateConfig
from gmtool.stages.evaluate.trajectories import run_of, trajectory_figures
from gmtool.streams import generator

SATURATION_IMAGES = 2000
"""Real images whose values are looked at: evenly spaced ones of a larger reference."""


@dataclass(frozen=True)
class _Inputs:
    """Everything that is compared, opened and checked."""

    folder: SamplesFolder
    images: np.ndarray
    reference: Reference
    statistics: FeatureStatistics | None
    extractor: Extractor
    world: World


def evaluate(samples: Path, config: EvaluateConfig, progress: Progress) -> Report:
    """Compare a folder of samples with real images; write ``metrics.json`` into it and return the report.

    Raises UserError for inputs that are missing, damaged or do not fit together, MachineError when Inception was asked
    for and cannot be had.
    """
    inputs = _open_inputs(samples, config, progress)
    world, side, batch = inputs.world, inputs.images.shape[1], config.batch_size
    reference = None
    if len(inputs.reference):  # first, because this may find that the reference does not fit
        reference = reference_features(inputs.reference, inputs.extractor, side, batch, world, progress)
    images = inputs.images[world.rows(len(inputs.images))]
    generated = gather_features(
        extract_features(inputs.extractor, array_batches(images, batch), len(images), "the samples", progress), world
    )
    with world.first_before_others():
        if world.first:
            text = _report(inputs, generated, reference, config, progress).to_json() + "\n"
            with written_aside(samples / METRICS) as part:
                part.write_text(text)
        return parse_report((samples / METRICS).read_text())


def _report(
    inputs: _Inputs, generated: Features, reference: Features | None, config: EvaluateConfig, progress: Progress
) -> Report:
    """All figures, from the features of all images."""
    _warn_of_small_sets(generated, reference, progress)
    real = None if reference is None else _real_pair(inputs, reference, config.seed)
    settings = Settings(config.neighbours, config.seed, inputs.world.device)
    return Report(
        samples=str(inputs.folder.path),
        samples_fingerprint=inputs.folder.manifest.fingerprint,
        features="tokenizer" if isinstance(inputs.extractor, TokenizerExtractor) else "inception",
        extractor=inputs.extractor.name,
        reference=str(inputs.reference.path),
        reference_kind=inputs.reference.kind,
        reference_fingerprint=inputs.reference.fingerprint,
        seed=config.seed,
        figures=(
            *figures_of(generated, reference, inputs.statistics, real, settings, progress),
            *_saturation_figures(inputs, config.batch_size),
            *(trajectory_figures(inputs.folder, config, inputs.world.device, progress) if config.trajectories else ()),
        ),
    )


def _open_inputs(samples: Path, config: EvaluateConfig, progress: Progress) -> _Inputs:
    """Open and check all inputs, the quick ones first; nothing is computed before this has passed."""
    folder = open_samples(samples)
    _check_metrics(samples / METRICS)
    world = join(config.device)
    images = folder.images()
    if len(images) < 2:
        raise UserError(
            f"{samples} holds {len(images)} image: a distribution takes 2 at least, see gmtool sample --num"
        )
    reference = open_training_latents(folder) if config.reference is None else open_reference(config.reference)
    if not folder.latents.is_file():
        raise UserError(f"{folder.latents}, which tells the tokenizer, is missing: run gmtool sample again")
    if config.trajectories:
        run_of(folder)
    require_torch_fidelity()
    with open_latents(folder.latents) as latents, world.first_before_others():  # which may fetch weights
        extractor = choose_extractor(config, latents.tokenizer, world.device, progress)
    return _Inputs(folder, images, reference, _fitting_statistics(reference, extractor), extractor, world)


def _check_metrics(path: Path) -> None:
    """Raise UserError unless the report can be written to ``path``, where nothing but an earlier report may be."""
    check_writable(path, "metrics file")
    if not path.exists():
        return
    with suppress(OSError, ValueError, TypeError):
        if {"samples_fingerprint", "figures"} <= set(json.loads(path.read_bytes())):
            return
    raise UserError(f"{path} exists, and the report would replace it: move it away, or choose another name")


def _fitting_statistics(reference: Reference, extractor: Extractor) -> FeatureStatistics | None:
    """The statistics in the reference that are of ``extractor``'s features; None when there are other ones or none.

    Raises UserError when the reference is then left with nothing to compare with.
    """
    statistics = reference.statistics if isinstance(reference, ArrayReference) else None
    if len(reference) == 1:
        raise UserError(f"{reference.path} holds 1 image: a distribution takes 2 at least")
    if statistics is None or len(statistics.mean) == extractor.size:
        return statistics
    if len(reference):
        return None
    size = len(statistics.mean)
    raise UserError(
        f"{reference.path} holds statistics of {size} numbers, but the features here are {extractor.name}: give "
        f"{'--features inception, or ' if size == 2048 else ''}another --reference"
    )


def _real_pair(inputs: _Inputs, reference: Features, seed: int) -> RealPair | None:
    """Real images in the place of the samples: training images when they are at hand and not the reference itself."""
    training = None
    if isinstance(inputs.extractor, TokenizerExtractor):
        training = _training_descriptors(inputs, inputs.extractor, seed)
    return real_pair(reference, training, len(inputs.images), seed)


def _training_descriptors(inputs: _Inputs, extractor: TokenizerExtractor, seed: int) -> Features | None:
    """Descriptors of as many random training images as there are samples; None when they are gone or the reference."""
    try:
        training = open_training_latents(inputs.folder)
    except UserError:
        return None
    images = training.file.manifest.input("images")
    known = {training.fingerprint} | ({images.fingerprint} if images is not None else set())
    if inputs.reference.fingerprint in known or not same_tokenizer(training.file.tokenizer, extractor.spec):
        return None
    rows = torch.randperm(len(training), generator=generator(seed, "real pair"))[: len(inputs.images)]
    return Features(torch.from_numpy(training.file.descriptors(rows.numpy())))


def _saturation_figures(inputs: _Inputs, batch: int) -> tuple[Figure, Figure]:
    """Mean magnitude and saturated share of the samples' values, beside those of some real images at the same size."""
    found = _saturation(array_batches(inputs.images, batch))
    pictures = _pictures(inputs.reference)
    real: tuple[Measurement | None, Measurement | None] = None, None
    if pictures is not None and len(pictures):
        thinned = pictures.thinned(math.ceil(len(pictures) / SATURATION_IMAGES))
        real = _saturation(thinned.batches(inputs.images.shape[1], batch, range(len(thinned))))
    return Figure("magnitude", found[0], real[0]), Figure("saturated_share", found[1], real[1])


def _saturation(batches: Iterator[Tensor]) -> tuple[Measurement, Measurement]:
    found = saturation(batches)
    return Measurement(found.magnitude, None, found.images, None), Measurement(found.share, None, found.images, None)


def _pictures(reference: Reference) -> Reference | None:
    """The images of the reference; None for latents whose images are gone, which their descriptors do without."""
    if not isinstance(reference, LatentsReference):
        return reference
    try:
        return reference.pictures()
    except UserError:
        return None


def _warn_of_small_sets(generated: Features, reference: Features | None, progress: Progress) -> None:
    size = generated.vectors.shape[1]
    for features, whose in ((generated, "samples"), (reference, "reference images")):
        if features is not None and len(features) <= size:
            progress.note(
                f"{len(features)} {whose} do not span the {size} dimensions of the features, which biases the Frechet "
                "distance upward: compare it with the real-against-real value beside it, or at equal numbers of images"
            )
