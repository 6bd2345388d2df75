"""From rows of the latents file to training batches: normalised, labelled, with the modes that noise comes from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.run import LatentStatistics
from gmtool.data.latent_loader import LatentBatch
from gmtool.data.mode_statistics import ModeInputs
from gmtool.errors import UserError
from gmtool.flow.coupling import draw_modes
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.diagonal import DiagonalMixture, ModePosterior
from gmtool.runtime import to_device
from gmtool.streams import generator
from gmtool.training.task import Batch

_Item = TypeVar("_Item")


class Assignments(Protocol):
    """The assignment of samples to modes."""

    def of(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """The modes of a share's samples, and their probabilities, both (b, n), 0 beyond the last mode of a sample."""


@dataclass(frozen=True)
class StoredAssignments:
    """Each sample's modes and their probabilities (N, n), as the mixture's file has them, in memory."""

    modes: Tensor
    probabilities: Tensor

    def of(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """See `Assignments.of`."""
        rows = batch.rows[batch.share]
        return self.modes[rows], self.probabilities[rows]


@dataclass(frozen=True, eq=False)
class FreshAssignments:
    """The posterior p(k | descriptor) of each sample, computed for the very image of the batch, which may be mirrored.

    centre (D,): subtracted from the descriptors, as it was from the mixture's means.
    """

    posterior: ModePosterior
    centre: Tensor

    def of(self, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """See `Assignments.of`. Raises ValueError for a batch without descriptors."""
        if batch.descriptors is None:
            raise ValueError("a batch without descriptors")
        kept = self.posterior(batch.descriptors.float() - self.centre)
        return kept.modes, kept.probabilities


def fresh_assignments(gmm: GmmFile, device: torch.device) -> FreshAssignments:
    """The assignment of images to the modes of a mixture by their own descriptors, as `fit-gmm` would store it.

    Raises UserError when the file has no mixture over descriptors.
    """
    weights, means, variances = map(torch.from_numpy, (gmm.cls_weights, gmm.cls_mean, gmm.cls_var))
    if not gmm.cls_mean.shape[1] or not weights.any():
        raise UserError(f"{gmm.path} holds no mixture over descriptors: import its run again with --cls-gmm")
    centre = (weights @ means).float()  # where squares lose no digits
    mixture = DiagonalMixture(weights.to(device), (means - centre).to(device), variances.to(device))
    return FreshAssignments(ModePosterior(mixture, gmm.top_k), centre.to(device))


def stored_assignments(gmm: GmmFile) -> StoredAssignments:
    """The assignment of every sample that is stored in a mixture's file. Raises UserError when the file is damaged."""
    kept = gmm.kept(slice(None))
    return StoredAssignments(torch.from_numpy(kept.modes), torch.from_numpy(kept.probabilities))


@dataclass(frozen=True)
class ModeDraws:
    """Where modes are drawn from: the samples' own, and the weights of all modes (K,), on the CPU."""

    assignments: Assignments
    weights: Tensor

    def draw(self, batch: LatentBatch, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """For each sample of the share, a mode drawn by its own probabilities, and one by the weights alone.

        Both are (b,) int64. Random numbers are drawn for the whole batch, so that they do not depend on its division
        among processes.
        """
        count = len(batch.rows)
        uniform = torch.rand(count, generator=draws)[batch.share]
        modes, probabilities = self.assignments.of(batch)
        own = draw_modes(modes, probabilities, to_device(uniform, modes.device))
        return own, torch.multinomial(self.weights, count, replacement=True, generator=draws)[batch.share]


def mode_draws(assignments: Assignments, gmm: GmmFile, part: np.ndarray | None = None) -> ModeDraws:
    """Draws from a mixture's modes, by the weights in its file.

    part (n,): the rows of the latents file that are trained on, whose shares of the modes are then the weights;
    default: all. Raises UserError when the mixture's file is damaged.
    """
    weights = gmm.weights if part is None else gmm.kept(part).population(len(gmm)) / len(part)
    return ModeDraws(assignments, torch.from_numpy(weights).float())


@dataclass(frozen=True)
class BatchBuilder:
    """Turns batches of latents into training batches: normalised, labelled, with the statistics of their modes.

    labels (N,): of all samples, -1 for none; None for a task without classes. classes: their number. mode_draws: None
    for a task without modes. mode_inputs: what the task takes of them.
    """

    labels: np.ndarray | None
    classes: int
    mode_draws: ModeDraws | None
    mode_inputs: ModeInputs
    statistics: LatentStatistics
    device: torch.device

    def batches(self, raw: Iterator[LatentBatch], start: int, seed: int) -> Iterator[Batch]:
        """The training batches of ``raw``, the first of which is that of step ``start``, on the device.

        (seed, step) gives their random numbers. Raises UserError when the mixture's file is damaged.
        """
        made = (self._batch(latents, generator(seed, "modes", step)) for step, latents in enumerate(raw, start))
        return ahead(made) if self.device.type == "cuda" else made

    def _batch(self, raw: LatentBatch, draws: torch.Generator) -> Batch:
        x = self.statistics.normalise(to_device(raw.patches, self.device))
        classes = None
        if self.labels is not None:
            labels = self.labels[raw.rows[raw.share]]
            # an image that lies beside the class folders has no class: it gets the null label
            classes = torch.from_numpy(np.where(labels < 0, self.classes, labels))
        modes, free = (None, None) if self.mode_draws is None else self.mode_draws.draw(raw, draws)
        return _batch(x, classes, modes, *self.mode_inputs.of(modes, free))


@dataclass(frozen=True)
class SourceBatches:
    """Training batches without data, for what begins at the source: latents of zeros, labels and modes that are drawn.

    shape: (C, H, W) of the latents. size: of a batch of all processes, share: this one's rows of it. classes (n,)
    int64: those that are drawn, with equal probability; None for a task without classes. weights: p(mode | class) or
    p(mode), see `mode_weights`; None for a task without modes. mode_inputs: what the task takes of them.
    """

    shape: tuple[int, int, int]
    size: int
    share: slice
    classes: Tensor | None
    weights: Tensor | None
    mode_inputs: ModeInputs
    device: torch.device

    def batches(self, seed: int, start: int, stop: int) -> Iterator[Batch]:
        """The training batches of the steps ``start`` ... ``stop`` - 1; (seed, step) gives their random numbers."""
        return (self._batch(generator(seed, "source", step)) for step in range(start, stop))

    def _batch(self, draws: torch.Generator) -> Batch:
        classes = None
        if self.classes is not None:
            classes = self.classes[torch.randint(len(self.classes), (self.size,), generator=draws)]
        modes = free = None
        if self.weights is not None:
            by_class = classes is not None and len(self.weights) > 1
            rows = self.weights[classes] if by_class else self.weights[:1].expand(self.size, -1)
            # drawn for the whole batch, so that they do not depend on its division among processes
            modes, free = (
                torch.multinomial(rows, 1, replacement=True, generator=draws).squeeze(1)[self.share] for _ in range(2)
            )
        x = torch.zeros(len(range(*self.share.indices(self.size))), *self.shape, device=self.device)
        mine = None if classes is None else classes[self.share]
        return _batch(x, mine, modes, *self.mode_inputs.of(modes, free))


def _batch(
    x: Tensor, classes: Tensor | None, modes: Tensor | None, source_modes: ModeStatistics | None, mean: Tensor | None
) -> Batch:
    """A batch on the device of x; labels and modes (B,) int64 may be on another one."""
    labels, own = (None if known is None else to_device(known, x.device) for known in (classes, modes))
    return Batch(x, labels, own, source_modes, mean)


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, none of them None, each computed in a thread while the previous one is used, so that no GPU waits."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def mode_weights(latents: LatentsFile, gmm: GmmFile, by_class: bool, part: np.ndarray | None = None) -> Tensor:
    """p(mode | class) (classes, K), or p(mode) (1, K), float32: the mean over images of their modes' probabilities.

    A class without images gets the mean over all; images without a class count for none. by_class: which of the two.
    part (n,): the rows of the file that are trained on; default: all. Raises UserError when the mixture's file is
    damaged.
    """
    rows = latents.labels if by_class else np.zeros(len(latents), np.int64)
    counts = np.zeros((len(latents.classes) if by_class else 1, len(gmm)))
    labelled = np.flatnonzero(rows >= 0) if part is None else part[rows[part] >= 0]
    kept = gmm.kept(labelled)
    np.add.at(counts, (rows[labelled, None], kept.modes), kept.probabilities)
    counts[counts.sum(1) == 0] = counts.sum(0)
    return torch.from_numpy(counts / counts.sum(1, keepdims=True)).float()
