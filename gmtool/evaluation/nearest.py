"""A picture of the generated images that are most like copies of real ones, each beside its nearest real images.

How much like a copy: the distance of features to the nearest real image, divided by that image's own distance to the
nearest other one (below 1: memorised, `gmtool.evaluation.metrics.memorisation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gmtool.artifacts.files import check_writable, written_aside
from gmtool.data.image_sets import find_images
from gmtool.errors import UserError
from gmtool.evaluation.metrics.memorisation import nearest_of
from gmtool.evaluation.plots import image_grid
from gmtool.evaluation.references import ImagesReference, LatentsReference, Reference
from gmtool.tokenizers.build import decodes_exactly

PAIRS, COLUMNS = 24, 4
"""Pairs in the picture, and in a row of it."""

BATCH = 64
"""Images in memory at once."""


@dataclass(frozen=True)
class NearestPairs:
    """Generated images and the real images nearest to them: int64 (n,) each; ratio (n,): below 1 where memorised."""

    generated: Tensor
    real: Tensor
    ratio: Tensor


def nearest_pairs(generated: Tensor, real: Tensor, device: torch.device, pairs: int = PAIRS) -> NearestPairs:
    """The pairs with the smallest ratios |g - r| / min |r - r'|, increasing; see the module.

    generated (N, D), real (M, D): features, M >= 2; r is the real image nearest to g, and r' any other real image.
    """
    distance, nearest = nearest_of(generated, real, device)
    between, _ = nearest_of(real[nearest], real, device, but=nearest)
    ratio = distance / between.clamp(min=torch.finfo(torch.float64).tiny)
    order = ratio.argsort(stable=True)[:pairs]
    return NearestPairs(order, nearest[order], ratio[order])


def check_picture(path: Path) -> None:
    """Raise UserError unless a picture can be written to ``path``, where nothing may be."""
    check_writable(path, "picture")
    if path.exists():
        raise UserError(f"--nearest {path} exists: choose another name, or remove it")
    if path.suffix.lower() != ".png":
        raise UserError(f"--nearest {path}: give a name that ends in .png")


def write_pairs(path: Path, pairs: NearestPairs, generated: Reference, real: Reference, side: int) -> None:
    """Write the picture: each generated image left of its nearest real one, the smallest ratio first.

    real: what the features were of. side: of the images, in pixels. Raises UserError where the real images are gone.
    """
    left, right = (pick(images, rows, side) for images, rows in ((generated, pairs.generated), (real, pairs.real)))
    tiles = np.stack([left, right], axis=1).reshape(-1, *left.shape[1:])
    with written_aside(path) as part:
        Image.fromarray(image_grid(tiles, columns=2 * COLUMNS)).save(part, format="png")


def pick(images: Reference, rows: Tensor, side: int) -> np.ndarray:
    """The images ``rows`` (n,) int64, as uint8 (n, side, side, 3).

    Latents that do not decode exactly are shown by the images that were encoded. Raises UserError where these are gone.
    """
    if isinstance(images, LatentsReference) and not decodes_exactly(images.file.tokenizer):
        images, rows = _named(images, rows)
    if isinstance(images, ImagesReference):
        images, rows = replace(images, rows=images.rows[rows.numpy()]), torch.arange(len(rows))
    wanted, picked = set(rows.tolist()), {}
    for number, image in enumerate(_every(images, side, max(wanted) + 1)):
        if number in wanted:
            picked[number] = image
    return np.stack([picked[row] for row in rows.tolist()])


def _every(images: Reference, side: int, count: int) -> Iterator[np.ndarray]:
    for batch in images.batches(side, BATCH, range(count)):
        yield from batch.permute(0, 2, 3, 1).numpy()


def _named(latents: LatentsReference, rows: Tensor) -> tuple[Reference, Tensor]:
    """The pictures that latents were made from, and the rows among them: a flipped one's is its image as it is."""
    pictures = latents.pictures()
    assert isinstance(pictures, ImagesReference)
    whole = find_images(pictures.path)
    number = {name: index for index, name in enumerate(whole.names)}
    names = latents.file.names()[:: latents.step]
    chosen = np.array([number[names[row]] for row in rows.tolist()], np.int64)
    return ImagesReference(pictures.path, whole, chosen), torch.arange(len(rows))
