"""Images and statistics of an .npz, as they are scored or compared with; the samples.npz of a folder of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from gmtool.artifacts.manifest import fingerprint
from gmtool.artifacts.npz import npz_header, read_npz, stored_array
from gmtool.artifacts.samples import IMAGES, REPAIR, SamplesFolder
from gmtool.errors import UserError
from gmtool.evaluation.array_images import ArrayImages, find_array_images
from gmtool.evaluation.features import FeatureStatistics


@dataclass(frozen=True)
class ArrayReference:
    """Images of an .npz, and the statistics of the set that they came from, either or both.

    statistics, spatial: ``mu`` and ``sigma``, ``mu_s`` and ``sigma_s``.
    """

    path: Path
    images: ArrayImages | None
    statistics: FeatureStatistics | None
    spatial: FeatureStatistics | None
    fingerprint: str
    kind: str

    @property
    def digest(self) -> str:
        """See `gmtool.evaluation.references.Reference`."""
        images = self.images
        return "" if images is None else fingerprint([images.array.fingerprint, images.description, str(images.rows)])

    def __len__(self) -> int:
        return 0 if self.images is None else len(self.images)

    def batches(self, side: int, batch_size: int, rows: range) -> Iterator[Tensor]:
        """See `gmtool.evaluation.references.Reference`."""
        if self.images is None:
            return iter(())
        if self.images.size != (side, side):
            raise wrong_size(self.path, self.images.size, side)
        return self.images.batches(batch_size, rows)

    def thinned(self, step: int) -> ArrayReference:
        """See `gmtool.evaluation.references.Reference`."""
        return self if self.images is None else replace(self, images=self.images.thinned(step))


def samples_images(folder: SamplesFolder) -> ArrayReference:
    """The images of a folder of samples. Raises UserError when they were never decoded, or the file is damaged."""
    count, side = folder.image_shape()
    array = stored_array(folder.path / IMAGES, "arr_0", REPAIR)
    assert array is not None and array.shape == (count, side, side, 3)
    images = ArrayImages(array, "NHWC", 0.0, 255.0, range(count))
    return ArrayReference(folder.path, images, None, None, array.fingerprint, "samples")


NPZ = "give an .npz of square images, such as uint8 (N, S, S, 3), or of mu and sigma of features"
"""The remedy for an unusable .npz."""


def open_npz(path: Path, whose: str) -> ArrayReference:
    """Images, statistics or both of an .npz. Raises UserError, naming ``whose``, where it is damaged or has neither."""
    images = find_array_images(path, whose, NPZ)
    statistics, spatial = (_statistics(path, whose, *names) for names in (("mu", "sigma"), ("mu_s", "sigma_s")))
    parts = [] if images is None else [images.array.fingerprint]
    for moments in (statistics, spatial):
        parts += [] if moments is None else [fingerprint([moments.mean, moments.covariance])]
    if not parts:
        raise UserError(f"{whose} holds neither images nor mu and sigma: {NPZ}")
    known = "" if statistics is None and spatial is None else "mu and sigma"
    kind = "npz of " + ", ".join([*(["images"] if images is not None else []), *([known] if known else [])])
    return ArrayReference(path, images, statistics, spatial, fingerprint(parts), kind)


def _statistics(path: Path, whose: str, mean_name: str, covariance_name: str) -> FeatureStatistics | None:
    """Statistics of a file, None where it has none. Raises UserError for other shapes and what is not finite."""
    if any(npz_header(path, name, NPZ) is None for name in (mean_name, covariance_name)):
        return None
    mean, covariance = (read_npz(path, name, NPZ) for name in (mean_name, covariance_name))
    names = f"{mean_name} and {covariance_name}"
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{whose}: {names} {mean.shape}, {covariance.shape} must be (D,) and (D, D)")
    if not all(array.dtype.kind in "fiu" and np.isfinite(array).all() for array in (mean, covariance)):
        raise UserError(f"{whose}: {names} must be finite numbers")
    return FeatureStatistics(mean.astype(np.float64), covariance.astype(np.float64))


def wrong_size(path: Path, size: tuple[int, ...], side: int) -> UserError:
    """The error to raise for images that are not resized and differ in size from the samples.

    size: height and width of the images; side: of the samples, in pixels.
    """
    return UserError(
        f"{path} holds images of {' x '.join(map(str, size))} px, but the samples have {side} x {side}: give the "
        "folder of images as --reference"
    )
