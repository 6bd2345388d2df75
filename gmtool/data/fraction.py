"""A fixed random part of the data, for studies of data efficiency: its rows, and its own mean and variance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gmtool.artifacts.latents import LatentsFile
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.mixture.running_moments import RunningMoments
from gmtool.progress import Progress
from gmtool.streams import key_seed

READ_ENTRIES = 1 << 24
"""Latent entries read at a time for the moments of a part."""


@dataclass(frozen=True, eq=False)
class LatentsPart:
    """Rows of a latents file, ascending, and the mean and variance (C, H, W) of their latents, float64."""

    latents: LatentsFile
    rows: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.latents.shape

    def patches(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Latents float16 (n, C, H, W) of rows of the file; see `LatentsFile.patches`."""
        return self.latents.patches(rows, out)


def open_part(latents: LatentsFile, rows: np.ndarray, world: World, progress: Progress) -> LatentsPart:
    """The part of a latents file that consists of ``rows`` (n,), ascending, with its mean and variance.

    The moments are the file's own for all rows; else the first process reads the part once, and all processes, each of
    which calls this, receive them. Raises UserError when the file is damaged.
    """
    if len(rows) == len(latents):
        return LatentsPart(latents, rows, latents.mean, latents.var)
    own = {}
    if world.first:
        moments, step = RunningMoments.empty(latents.shape), max(1, READ_ENTRIES // int(np.prod(latents.shape)))
        progress.begin("mean and variance of the part", len(rows), "samples")
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            moments = moments.update(latents.patches(block))
            progress.advance(len(block))
        progress.end()
        own = {"mean": torch.from_numpy(moments.mean), "var": torch.from_numpy(moments.variance)}
    shared = world.broadcast(own)
    return LatentsPart(latents, rows, shared["mean"].numpy(), shared["var"].numpy())


def part_flags(fraction: float, seed: int) -> tuple[str, ...]:
    """The flags that choose a part of the data, or all of it."""
    return ("--fraction", "1") if fraction == 1 else ("--fraction", str(fraction), "--seed", str(seed))


def part_of_data(latents: LatentsFile, fraction: float, seed: int) -> np.ndarray:
    """Rows (n,) int64 of the latents file, ascending: a random ``fraction`` of each class, at least one image.

    A larger fraction of the same seed contains the smaller one. An image and its mirrored copy stay together; images
    without a class count as a class of their own. Raises UserError when the fraction is less than one image.
    """
    if fraction == 1:
        return np.arange(len(latents))
    images = latents.image_numbers()
    count = int(images.max()) + 1
    if fraction * count < 1:
        raise UserError(f"--fraction {fraction:g} of the {count} images of {latents.path} is less than one: raise it")
    labels = np.empty(count, np.int64)
    labels[images] = latents.labels
    order = np.random.default_rng(key_seed(seed, "fraction")).permutation(count)
    chosen = np.zeros(count, bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen[members[: max(1, round(fraction * len(members)))]] = True
    return np.flatnonzero(chosen[images])
