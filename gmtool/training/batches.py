"""From rows of the latents file to training batches: normalised, labelled, with the modes that noise comes from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.gmm import GmmFile
from gmtool.artifacts.latents import LatentsFile
from gmtool.artifacts.run import LatentStatistics
from gmtool.data.latent_loader import LatentBatch
from gmtool.data.mode_statistics import ModeTable
from gmtool.flow.coupling import draw_modes
from gmtool.runtime import to_device
from gmtool.streams import generator
from gmtool.training.task import Batch

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class ModeAssignments:
    """Each sample's modes and their probabilities (N, k), and the weights of all modes (K,), in memory."""

    modes: Tensor
    probabilities: Tensor
    weights: Tensor

    def draw(self, rows: np.ndarray, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """A mode a sample by its own probabilities, and one by the weights alone; both (B,) int64."""
        uniform = torch.rand(len(rows), generator=draws)
        own = draw_modes(self.modes[rows], self.probabilities[rows], uniform)
        return own, torch.multinomial(self.weights, len(rows), replacement=True, generator=draws)


def mode_assignments(gmm: GmmFile, part: np.ndarray | None = None) -> ModeAssignments:
    """What a mixture says of every sample.

    part: the rows of the latents file that are trained on; default: all.
    """
    kept = gmm.kept(slice(None))
    weights = gmm.weights if part is None else gmm.kept(part).population(len(gmm)) / len(part)
    return ModeAssignments(
        torch.from_numpy(kept.modes), torch.from_numpy(kept.probabilities), torch.from_numpy(weights).float()
    )


@dataclass(frozen=True)
class BatchBuilder:
    """Turns batches of latents into training batches: normalised, labelled, with the statistics of their modes.

    labels (N,): of all samples, -1 for none; None for a task without classes. classes: their number. assignments: None
    for a task without modes. table: statistics of the modes, None where the task does not ask for them. own_mode:
    whether noise comes from a sample's own mode. source_modes, mode_mean: which of `Batch` are asked for.
    """

    labels: np.ndarray | None
    classes: int
    assignments: ModeAssignments | None
    table: ModeTable | None
    statistics: LatentStatistics
    own_mode: bool
    source_modes: bool
    mode_mean: bool
    device: torch.device

    def batches(self, raw: Iterator[LatentBatch], start: int, seed: int) -> Iterator[Batch]:
        """The training batches of steps ``start`` and on; (seed, step) gives their random numbers."""
        made = (self._batch(latents, generator(seed, "modes", step)) for step, latents in enumerate(raw, start))
        return ahead(made) if self.device.type == "cuda" else made

    def _batch(self, raw: LatentBatch, draws: torch.Generator) -> Batch:
        x = self.statistics.normalise(to_device(raw.patches, self.device))
        classes = None
        if self.labels is not None:
            labels = self.labels[raw.rows[raw.share]]
            # an image that lies beside the class folders has no class: it gets the null label
            classes = torch.from_numpy(np.where(labels < 0, self.classes, labels))
        modes = source_modes = mean = None
        if self.assignments is not None:
            # drawn for the whole batch, so that they do not depend on its division among processes
            modes, free = (drawn[raw.share] for drawn in self.assignments.draw(raw.rows, draws))
            if self.table is not None and self.source_modes:
                source_modes = self.table.at(modes if self.own_mode else free)
            if self.table is not None and self.mode_mean:
                known = source_modes if self.own_mode else None
                mean = (known or self.table.at(modes)).mean
        return Batch(x, self._to_device(classes), self._to_device(modes), source_modes, mean)

    def _to_device(self, labels: Tensor | None) -> Tensor | None:
        return None if labels is None else to_device(labels, self.device)


def ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, each made in a thread while the one before is used: a GPU's host is then never behind it."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def mode_weights(latents: LatentsFile, gmm: GmmFile, by_class: bool, part: np.ndarray | None = None) -> Tensor:
    """p(mode | class), a row a class, or p(mode) in one row: sums of the data's probabilities, normalised, float32.

    A class without images gets the row of all; images without a class count for none. part: the rows of the file that
    are trained on; default: all.
    """
    rows = latents.labels if by_class else np.zeros(len(latents), np.int64)
    counts = np.zeros((len(latents.classes) if by_class else 1, len(gmm)))
    labelled = np.flatnonzero(rows >= 0) if part is None else part[rows[part] >= 0]
    kept = gmm.kept(labelled)
    np.add.at(counts, (rows[labelled, None], kept.modes), kept.probabilities)
    counts[counts.sum(1) == 0] = counts.sum(0)
    return torch.from_numpy(counts / counts.sum(1, keepdims=True)).float()
