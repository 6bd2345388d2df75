"""The real images that samples are scored against, on the features of one extractor: what metrics are given of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gmtool.errors import UserError
from gmtool.evaluation.comparison import known_from_features, real_pair
from gmtool.evaluation.extractors.tokenizer import TokenizerExtractor
from gmtool.evaluation.feature_plan import FeaturePlan
from gmtool.evaluation.features import Extractor, Features, FeatureStatistics, feature_statistics
from gmtool.evaluation.metric import Known, Pair
from gmtool.evaluation.references import (
    Made,
    Reference,
    open_training_latents,
    pictures_of,
    same_tokenizer,
    trained_among,
)
from gmtool.progress import Progress
from gmtool.streams import generator


@dataclass(frozen=True, eq=False)
class RealFeatures:
    """Real images on the features of one extractor.

    plan: the extractor and the metrics on it. reference: their features, None where only statistics are known. made:
    the run or the samples that are scored, None for those of another tool. trained: the indices (n,) of the reference's
    images that this run was trained on, none where that cannot be told.
    """

    plan: FeaturePlan
    reference: Features | None
    made: Made | None
    trained: np.ndarray
    extractor: Extractor

    def known(self, generated: Features, moments: bool = True) -> Known:
        """The inputs of the metrics, for the features of generated images. moments: whether covariances are needed."""
        known = known_from_features(generated, self.reference, self._statistics, self._spatial, moments)
        return replace(known, training=self._beside_training(generated.vectors))

    def in_place(self, count: int, seed: int) -> Known:
        """The inputs of the metrics, for real images in the place of ``count`` generated ones; see `real_pair`."""
        if self.reference is None:
            return Known()
        pair = real_pair(self.reference, self._training_descriptors(count, seed), count, seed)
        real = Known() if pair is None else known_from_features(pair.images, pair.reference)
        if len(new := np.setdiff1d(np.arange(len(self.reference)), self.trained)) >= 2:
            chosen = torch.randperm(len(new), generator=generator(seed, "new images"))[:count]
            real = replace(real, training=self._beside_training(self.reference.vectors[new[chosen.numpy()]]))
        elif len(self.trained):  # all are, and those in the place of generated ones are taken from them
            real = replace(real, training=real.features)
        # a file says nothing about parts of the set that its statistics are of
        if self.plan.statistics is not None:
            real = replace(real, statistics=None)
        return real if self.plan.spatial is None else replace(real, spatial=None)

    def _beside_training(self, images: Tensor) -> Pair[Tensor] | None:
        """Features of images and of the training images; None where the reference has none of these."""
        if self.reference is None or not len(self.trained):
            return None
        whole = len(self.trained) == len(self.reference)
        return Pair(images, self.reference.vectors if whole else self.reference.vectors[self.trained])

    @cached_property
    def _statistics(self) -> FeatureStatistics | None:
        if self.plan.statistics is not None or self.reference is None:
            return self.plan.statistics
        return feature_statistics(self.reference.vectors)

    @cached_property
    def _spatial(self) -> FeatureStatistics | None:
        if self.plan.spatial is not None or self.reference is None or self.reference.spatial is None:
            return self.plan.spatial
        return feature_statistics(self.reference.spatial)

    def _training_descriptors(self, count: int, seed: int) -> Features | None:
        """Descriptors of ``count`` random images of the latents that the run was trained on, or a part of which it was.

        None if these are gone, the reference, or not comparable.
        """
        extractor = self.extractor
        if not isinstance(extractor, TokenizerExtractor) or len(self.trained) or self.made is None:
            return None
        try:
            training = open_training_latents(self.made)
        except UserError:
            return None
        if not same_tokenizer(training.file.tokenizer, extractor.spec):
            return None
        rows = torch.randperm(len(training), generator=generator(seed, "real pair"))[:count]
        return Features(torch.from_numpy(training.file.descriptors(rows.numpy())))


def trained_features(reference: Reference, extractor: Extractor, made: Made | None) -> np.ndarray:
    """Which features of a reference are of images that a run was trained on; see `trained_among`.

    The tokenizer's are those of the latents, row by row, others' those of the pictures.
    """
    pictures = reference if isinstance(extractor, TokenizerExtractor) else pictures_of(reference)
    return np.zeros(0, np.int64) if made is None or pictures is None else trained_among(pictures, made)


def warn_of_small_sets(generated: Features, reference: Features | None, progress: Progress) -> None:
    """Note that the Fréchet distance of fewer images than features is biased upward."""
    size = generated.vectors.shape[1]
    for features, whose in ((generated, "samples"), (reference, "reference images")):
        if features is not None and len(features) <= size:
            progress.note(
                f"{len(features)} {whose} do not span the {size} dimensions of the features, which biases the Fréchet "
                "distance upward: compare it with the real-against-real value beside it, or at equal numbers of images"
            )
