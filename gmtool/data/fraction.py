"""A fixed random part of the data, for studies of data efficiency."""

from __future__ import annotations

import numpy as np

from gmtool.artifacts.latents import LatentsFile
from gmtool.errors import UserError
from gmtool.streams import key_seed


def part_of_data(latents: LatentsFile, fraction: float, seed: int) -> np.ndarray:
    """Rows of the latents file, ascending: the share ``fraction`` of each class, at least one image of it.

    A larger fraction of the same seed holds the smaller one. An image and its mirrored copy stay together; images
    without a class count as a class of their own. Raises UserError when the fraction is less than one image.
    """
    if fraction == 1:
        return np.arange(len(latents))
    images = np.arange(len(latents))
    if latents.flipped.any():
        images = np.unique(np.array(latents.names()), return_inverse=True)[1]
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
