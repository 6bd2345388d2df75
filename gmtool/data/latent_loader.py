"""Batches of latents in an order that the seed and the step fix, from memory or from disk by size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
"""Threads that read latents that do not fit in memory."""
AHEAD = 2
"""Batches that each of them reads ahead."""


@dataclass(frozen=True)
class LatentBatch:
    """The rows (B,) of a step's batch in the latents file, or among the images; the share of them that this process
    takes; and the share's latents (b, C, H, W), not normalised: float16 from a file, float32 where just encoded.

    descriptors (b, D): of the share, where its images were encoded; None for stored latents, whose modes are known.
    """

    rows: np.ndarray
    share: slice
    patches: Tensor
    descriptors: Tensor | None = None


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
        parts = [
            _permutation(self.count, self.seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)


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
    """The batches of steps ``start`` ... ``stop`` - 1, from the rows ``part`` (n,) of the file; default: all.

    share: what this process takes of each batch. workers: threads that read from disk ahead; None keeps the latents in
    memory when they take at most a quarter of it, else uses 4; 0 reads when a batch is asked for. Raises UserError when
    the file is damaged.
    """
    part = np.arange(len(latents)) if part is None else part
    order = ShuffledRows(len(part), batch_size, seed)
    everything = None
    if workers is None:
        workers = DISK_WORKERS
        if fits_in_memory(2 * len(part) * int(np.prod(latents.shape))):
            everything, workers = torch.from_numpy(latents.patches(part)), 0
    if everything is None and workers:
        latents.patches(part[:1])  # opens the file here, once, for the threads to share

    def read(step: int) -> LatentBatch:
        places = order.of_step(step)
        rows = part[places]
        if everything is None:
            patches = torch.from_numpy(latents.patches(rows[share]))
        else:
            patches = everything[torch.from_numpy(places[share])]
        return LatentBatch(rows, share, patches)

    yield from _ahead(read, range(start, stop), workers)


def _ahead(read: Callable[[int], LatentBatch], steps: range, workers: int) -> Iterator[LatentBatch]:
    """The batches of steps in order, read ahead by threads, two batches each.

    Threads, since reading releases Python's lock, and batches of another process would come through /dev/shm, of which
    a container has little.
    """
    if not workers:
        yield from map(read, steps)
        return
    with ThreadPoolExecutor(workers) as threads:
        waiting: deque[Future[LatentBatch]] = deque()
        try:
            for step in steps:
                waiting.append(threads.submit(read, step))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
