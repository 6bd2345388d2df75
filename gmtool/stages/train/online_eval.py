"""Scores of samples during training: the Fréchet distance of a small set, by the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import LatentsFile
from gmtool.data.image_sets import spread
from gmtool.evaluation.features import FeatureStatistics, feature_statistics
from gmtool.evaluation.metrics.frechet_distance import frechet_distance
from gmtool.streams import generator
from gmtool.tokenizers.base import Tokenizer
from gmtool.training.logging import Logger

DISTANCE = "frechet_distance"
"""The name of the score among a run's figures."""
AT_ONCE = 64
"""Samples drawn at once, and latents read."""
REFERENCES = 10
"""Real images in the reference at most, in units of the samples."""


@dataclass(frozen=True)
class Scorer:
    """Compares ``count`` samples with training images, and as many other such images too.

    draw: makes the latents (B, C, H, W), not normalised, of the samples of some numbers. trained: the rows (n,) of the
    latents that are trained on. Features are the tokenizer's
    descriptors of images; without a tokenizer that decodes, the means of latents over their positions. The second
    distance is what a perfect generator would reach with as many samples. With less than twice as many training images
    as ``count`` half of them are taken.
    """

    draw: Callable[[range], Tensor]
    latents: LatentsFile
    trained: np.ndarray
    tokenizer: Tokenizer | None
    count: int
    loggers: Sequence[Logger]
    seed: int

    def score(self, step: int) -> None:
        """Hand the scores of ``step`` to the loggers."""
        samples = feature_statistics(torch.cat([self._draw(batch) for batch in _batches(self._size)]))
        scores = {DISTANCE: frechet_distance(samples, self._reference), f"{DISTANCE}_of_real": self._real}
        for logger in self.loggers:
            logger.write([{"step": step, **scores}], "samples")

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) and (m,) of training images, in random order: those that stand for samples, and the reference."""
        rows = self.trained[spread(len(self.trained), (1 + REFERENCES) * self._size)]
        rows = rows[torch.randperm(len(rows), generator=generator(self.seed, "score")).numpy()]
        return rows[: self._size], rows[self._size :]

    @property
    def _size(self) -> int:
        return min(self.count, len(self.trained) // 2)

    def _draw(self, indices: range) -> Tensor:
        """Features of samples."""
        drawn = self.draw(indices)
        if self.tokenizer is None:
            return drawn.mean((2, 3)).cpu()
        return self.tokenizer.describe(self.tokenizer.decode(drawn)).float().cpu()

    @cached_property
    def _real(self) -> float:
        return frechet_distance(feature_statistics(self._features(self.rows[0])), self._reference)

    @cached_property
    def _reference(self) -> FeatureStatistics:
        return feature_statistics(self._features(self.rows[1]))

    def _features(self, rows: np.ndarray) -> Tensor:
        """Features of real images."""
        if self.tokenizer is not None:
            return torch.from_numpy(self.latents.descriptors(rows))
        parts = (self.latents.patches(rows[batch.start : batch.stop]) for batch in _batches(len(rows)))
        return torch.cat([torch.from_numpy(part).float().mean((2, 3)) for part in parts])


def _batches(count: int) -> list[range]:
    return [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
