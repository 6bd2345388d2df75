"""Rows of an HDF5 dataset read from the file itself, where each lies in it as it is: one chunk, not compressed.

h5py holds Python's lock while the HDF5 library reads, so that nothing can be computed meanwhile, and every chunk is
copied once more on its way. Reading the same bytes by ``preadv`` does neither. Rows are announced to the system before
they are read: a disk that is asked for them one at a time, or by a process that has to wait for a processor, gives a
part of its rate.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

LONGEST = 1 << 30
"""Bytes asked for at once; Linux gives no more than 2 GiB."""

ANNOUNCED, ANNOUNCED_BYTES = 64, 1 << 19
"""Parts of the rows, each of neighbours, that the system is told of in advance, and the longest such part, if a row is
not longer: of what is longer Linux may heed only the beginning."""


@dataclass(frozen=True, eq=False)
class RowPlaces:
    """Where the rows of a dataset begin in its file, (N,) bytes; shape and type of a row."""

    offsets: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, descriptor: int, rows: np.ndarray, found: np.ndarray) -> None:
        """Fill ``found`` with the rows, increasing numbers, of an open file. Raises OSError when that ends before."""
        room = found.reshape(-1).view(np.uint8).data
        size = math.prod(self.shape) * self.dtype.itemsize
        offsets = self.offsets[rows]
        parts = [part for run in runs(offsets, size) for part in _parts(*run, max(1, ANNOUNCED_BYTES // size))]
        for index in range(0, len(parts), ANNOUNCED):
            # the first ones, and always those of the next turn
            for first, last in parts[index + ANNOUNCED if index else 0 : index + 2 * ANNOUNCED]:
                _announce(descriptor, int(offsets[first]), (last - first) * size)
            begin, end = parts[index][0], parts[index : index + ANNOUNCED][-1][1]
            for start, stop in runs(offsets[begin:end], size):
                where = slice((begin + start) * size, (begin + stop) * size)
                _fill(descriptor, room[where], int(offsets[begin + start]))


def row_places(dataset: h5py.Dataset) -> RowPlaces | None:
    """Where a dataset's rows lie; None when they are stored otherwise, or this system cannot read at a place."""
    plist = dataset.id.get_create_plist()
    whole = dataset.chunks is not None and dataset.chunks == (1, *dataset.shape[1:])
    if not (whole and plist.get_nfilters() == 0 and hasattr(os, "preadv") and hasattr(dataset.id, "chunk_iter")):
        return None
    offsets = np.full(len(dataset), -1, np.int64)

    def place(chunk: h5py.h5d.StoreInfo) -> None:
        offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    dataset.id.chunk_iter(place)
    return RowPlaces(offsets, dataset.shape[1:], dataset.dtype) if (offsets >= 0).all() else None


def runs(places: np.ndarray, step: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of neighbours, ``step`` apart, in increasing ``places``."""
    breaks = np.flatnonzero(np.diff(places) != step) + 1
    edges = [0, *breaks.tolist(), len(places)]
    return ((start, stop) for start, stop in itertools.pairwise(edges) if stop > start)


def _parts(start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + longest, stop)) for first in range(start, stop, longest))


def _announce(descriptor: int, offset: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def _fill(descriptor: int, room: memoryview, offset: int) -> None:
    while len(room):
        count = os.preadv(descriptor, [room[:LONGEST]], offset)
        if count == 0:
            raise OSError(f"it ends before byte {offset + len(room)}")
        room, offset = room[count:], offset + count
