"""Batches of latents in an order that the seed and the step fix, from memory or from disk by size."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import LatentsFile
from gmtool.data.memory import fits_in_memory
from gmtool.streams import generator

EVERY_ROW = slice(None)
DISK_WORKERS = 4
"""Processes that read latents that do not fit in memory."""


@dataclass(frozen=True)
class LatentBatch:
    """The rows (B,) of a step's batch in the latents file; the share of them that this process takes; and the share's
    latents (b, C, H, W) float16, not normalised.
    """

    rows: np.ndarray
    share: slice
    patches: Tensor


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).numpy()


@dataclass(frozen=True)
class ShuffledRows:
    """The rows of each step: epoch after epoch of permutations, each drawn from the seed and its number.

    Step n takes the positions n B ... (n + 1) B - 1 of their concatenation, so no state needs to be saved.
    """

    count: int
    batch_size: int
    seed: int

    def of_step(self, step: int) -> np.ndarray:
        """Rows (B,) of the batch of step ``step``, from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = positions // self.count, positions % self.count
        parts = [_permutation(self.count, self.seed, int(each))[places[epochs == each]] for each in np.unique(epochs)]
        return np.concatenate(parts)


class _Rows(torch.utils.data.Dataset[LatentBatch]):
    """Reads whole batches in a worker process, which opens the file itself."""

    def __init__(self, latents: LatentsFile, part: np.ndarray, order: ShuffledRows, share: slice) -> None:
        self.latents, self.part, self.order, self.share = latents, part, order, share

    def __getitem__(self, step: int) -> LatentBatch:
        rows = self.part[self.order.of_step(step)]
        return LatentBatch(rows, self.share, torch.from_numpy(self.latents.patches(rows[self.share])))


def leave_interrupts_to_the_main_process(_worker: int) -> None:
    """What a worker process begins with."""
    # Ctrl-C reaches every process of the terminal; a worker that died of it would take the last step down with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def latent_batches(
    latents: LatentsFile,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int | None,
    part: np.ndarray | None = None,
    share: slice = EVERY_ROW,
) -> Iterator[LatentBatch]:
    """The batches of steps ``start`` ... ``stop`` - 1, from the rows ``part`` of the file; default: all.

    share: what this process takes of each batch. workers: processes that read from disk; None keeps the latents in
    memory when they take at most a quarter of it, else takes 4; 0 reads here.
    """
    part = np.arange(len(latents)) if part is None else part
    order = ShuffledRows(len(part), batch_size, seed)
    if workers is None and fits_in_memory(2 * len(part) * int(np.prod(latents.shape))):
        everything = torch.from_numpy(latents.patches(part))
        for step in range(start, stop):
            places = order.of_step(step)
            yield LatentBatch(part[places], share, everything[torch.from_numpy(places[share])])
        return
    loader = torch.utils.data.DataLoader(
        _Rows(latents, part, order, share),
        sampler=range(start, stop),
        batch_size=None,
        num_workers=DISK_WORKERS if workers is None else workers,
        worker_init_fn=leave_interrupts_to_the_main_process,
    )
    yield from loader
