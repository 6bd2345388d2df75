"""Images in an .npz of any tool: which array they are, how their axes lie, what their numbers mean.

The array is ``arr_0``, or the only one in the file that could be images. It holds N square images: (N, S, S, 3) or
(N, 3, S, S), and grey ones (N, S, S, 1), (N, 1, S, S) or (N, S, S); as whole numbers 0 ... 255, or as floating-point
numbers in [0, 1], in [-1, 1] or in [0, 255], of which all values together tell which. Whatever could be read in two
ways is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.npz import StoredArray, npz_arrays
from gmtool.errors import UserError

ARRAY = "arr_0"
"""Where ADM's tools, and numpy by itself, put the images."""

STATISTICS = frozenset({"mu", "sigma", "mu_s", "sigma_s"})
"""Arrays of ADM's reference files that are no images."""

MAX_SIDE = 2**14
"""Pixels of an image's side."""

AT_ONCE = 64
"""Images in memory at once while the range of values is looked for."""

Axes = Literal["NHWC", "NCHW", "NHW"]


@dataclass(frozen=True)
class ArrayImages:
    """Images of an .npz, which stays on the disk.

    axes: how those of the array lie. low, high: the numbers of black and white. rows: the images that count.
    """

    array: StoredArray
    axes: Axes
    low: float
    high: float
    rows: range

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return _size(self.array.shape, self.axes)

    @property
    def description(self) -> str:
        """The array in words: its type, axes and range."""
        return f"{self.array.header.dtype} {self.axes} in [{self.low:g}, {self.high:g}]"

    def batches(self, batch_size: int, rows: range) -> Iterator[Tensor]:
        """The images ``rows``, as uint8 (B, 3, H, W): round(255 (v - low) / (high - low)) of each value v.

        Raises UserError where the file is damaged.
        """
        for piece in self.array.pieces(self.rows[rows.start : rows.stop], batch_size):
            yield torch.from_numpy(np.ascontiguousarray(_in_channels(_in_bytes(piece, self.low, self.high), self.axes)))

    def thinned(self, step: int) -> ArrayImages:
        """Every ``step``-th image alone."""
        return replace(self, rows=self.rows[::step])


def find_array_images(path: Path, whose: str, repair: str) -> ArrayImages | None:
    """The images in an .npz; None where no array could be images.

    whose: the file in messages; repair: their end. Raises UserError for a damaged file, for what could be read in two
    ways, and for values that are no colours.
    """
    arrays = npz_arrays(path, repair)
    name = _chosen(arrays, whose)
    if name is None:
        return None
    array = arrays[name]
    if array is None:
        raise UserError(f"{whose}: {name} holds no numbers: {repair}")
    axes = _axes(array.shape, f"{whose}: {name}")
    height, width = _size(array.shape, axes)
    if not len(array) or not height or not width:
        raise UserError(f"{whose}: {name} {array.shape} holds no image: {repair}")
    if height != width or height > MAX_SIDE:
        raise UserError(f"{whose}: {name} holds images of {height} x {width} px, which must be square: {repair}")
    low, high = _range(array, f"{whose}: {name}")
    return ArrayImages(array, axes, low, high, range(len(array)))


def _chosen(arrays: Mapping[str, StoredArray | None], whose: str) -> str | None:
    """The name of the array that holds the images."""
    if ARRAY in arrays:
        return ARRAY
    candidates = [
        name for name, array in arrays.items() if name not in STATISTICS and array and len(array.shape) in (3, 4)
    ]
    if len(candidates) > 1:
        raise UserError(
            f"{whose} holds several arrays that could be images ({', '.join(sorted(candidates))}): "
            f"name one of them {ARRAY}"
        )
    return candidates[0] if candidates else None


def _axes(shape: tuple[int, ...], whose: str) -> Axes:
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        raise UserError(f"{whose} {shape} is not (N, S, S, 3), (N, 3, S, S) or (N, S, S): give images of these axes")
    last, first = shape[3] in (1, 3), shape[1] in (1, 3)
    if last and first and shape[1:] != (1, 1, 1):
        square = {"NHWC": shape[1] == shape[2], "NCHW": shape[2] == shape[3]}
        if all(square.values()):
            raise UserError(f"{whose} {shape} could be NHWC or NCHW: give larger images")
        last = square["NHWC"] or not square["NCHW"]
    if not last and not first:
        raise UserError(f"{whose} {shape} has neither 1 nor 3 channels, first or last: drop what is no colour")
    return "NHWC" if last else "NCHW"


def _size(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    return (shape[2], shape[3]) if axes == "NCHW" else (shape[1], shape[2])


def _range(array: StoredArray, whose: str) -> tuple[float, float]:
    """The numbers of black and white. Raises UserError for values of which that is not clear."""
    if array.header.dtype == np.uint8:
        return 0.0, 255.0
    least, most = np.float64(np.inf), np.float64(-np.inf)
    for piece in array.pieces(range(len(array)), AT_ONCE):
        least, most = np.minimum(least, piece.min()), np.maximum(most, piece.max())
        if not (np.isfinite(least) and np.isfinite(most)):  # also of NaN, which min and max pass on
            raise UserError(f"{whose} holds values that are infinite or not a number: make the images again")
    if array.header.dtype.kind == "f":
        for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
            if low <= least and most <= high:
                return low, high
        raise UserError(
            f"{whose} holds values from {least:.4g} to {most:.4g}, which is none of [0, 1], [-1, 1] and [0, 255]: clip "
            "the images to one of them"
        )
    if array.header.dtype.kind not in "iu" or least < 0 or most > 255:
        raise UserError(
            f"{whose} holds {array.header.dtype} from {least:.4g} to {most:.4g}: whole numbers must be 0 ... 255"
        )
    return 0.0, 255.0


def _in_bytes(images: np.ndarray, low: float, high: float) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    return np.rint((images.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _in_channels(images: np.ndarray, axes: Axes) -> np.ndarray:
    """Images of any axes as (N, 3, H, W); grey ones three times."""
    if axes == "NHW":
        images = images[:, None]
    elif axes == "NHWC":
        images = images.transpose(0, 3, 1, 2)
    return images.repeat(3, axis=1) if images.shape[1] == 1 else images
