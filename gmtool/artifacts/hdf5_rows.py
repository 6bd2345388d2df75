"""Rows of a contiguous HDF5 dataset, read and written in the file itself, where they lie one after another.

h5py holds Python's lock while the HDF5 library reads, and a write that fails inside the library may end the process;
``preadv`` and ``pwrite`` at the dataset's place do neither. (A memory map would be as simple, but gives half the rate,
and a disk error or a file cut short kills the process.) Rows are announced to the system before they are read: a disk
that is asked for them one at a time, or by a process that has to wait for a processor, gives a part of its rate.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from gmtool.artifacts.checksum import as_bytes


@dataclass(frozen=True)
class ReadAhead:
    """How rows are announced and read.

    parts: runs of neighbouring rows that the system is told of in advance. part_bytes: the longest such part, if a row
    is not longer: of what is longer Linux may heed only the beginning. read_bytes: read at once, at most; Linux gives
    no more than 2 GiB.
    """

    parts: int = 64
    part_bytes: int = 1 << 19
    read_bytes: int = 1 << 30


READ_AHEAD = ReadAhead()


@dataclass(frozen=True)
class StoredRows:
    """A contiguous dataset: bytes before its first row, number of rows, shape and type of a row."""

    offset: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(
        self,
        descriptor: int,
        rows: np.ndarray,
        out: np.ndarray,
        on_part: Callable[[int, int], None] | None = None,
        ahead: ReadAhead = READ_AHEAD,
    ) -> None:
        """Fill ``out`` (n, *shape) with the rows (n,), strictly increasing numbers, of an open file.

        descriptor: of the file. on_part: called with the first and last + 1 of ``out``'s rows that have just been read,
        and are in the processor's cache, while the system fetches the next ones. Raises OSError when the file ends
        before.
        """
        buffer = out.reshape(-1).view(np.uint8).data
        size = self.row_bytes
        longest = max(1, ahead.part_bytes // max(size, 1))
        parts = [part for run in runs(rows) for part in _parts(*run, longest)]
        for index in range(0, len(parts), ahead.parts):
            # the first ones, and always those of the next turn
            for first, last in parts[index + ahead.parts if index else 0 : index + 2 * ahead.parts]:
                _announce(descriptor, self._place(rows[first]), (last - first) * size)
            for first, last in parts[index : index + ahead.parts]:
                _fill(descriptor, buffer[first * size : last * size], self._place(rows[first]), ahead.read_bytes)
                if on_part is not None:
                    on_part(first, last)

    def write(self, descriptor: int, first: int, values: np.ndarray) -> None:
        """Write values (n, *shape) to the rows from ``first`` on.

        Raises ValueError for values that do not fit the dataset, OSError on a full disk.
        """
        if first < 0 or first + len(values) > self.count or values.shape[1:] != self.shape:
            raise ValueError(f"{values.shape} from row {first} do not fit {self.count} rows of {self.shape}")
        content, place = as_bytes(values.astype(self.dtype, copy=False)).data, self._place(first)
        while len(content):
            written = os.pwrite(descriptor, content[: READ_AHEAD.read_bytes], place)
            content, place = content[written:], place + written

    def _place(self, row: int | np.integer) -> int:
        return self.offset + int(row) * self.row_bytes


def stored_rows(dataset: h5py.Dataset) -> StoredRows | None:
    """Where a dataset's rows lie; None when they are stored otherwise, or this system cannot read at a place."""
    offset = dataset.id.get_offset() if dataset.size else 0
    if offset is None or dataset.ndim == 0 or not hasattr(os, "preadv"):
        return None
    return StoredRows(offset, len(dataset), dataset.shape[1:], dataset.dtype)


def runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop, as places in increasing ``rows`` (n,), of each run of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return ((start, stop) for start, stop in itertools.pairwise(edges) if stop > start)


def _parts(start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + longest, stop)) for first in range(start, stop, longest))


def _announce(descriptor: int, offset: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def _fill(descriptor: int, buffer: memoryview, offset: int, at_once: int) -> None:
    while len(buffer):
        count = os.preadv(descriptor, [buffer[:at_once]], offset)
        if count == 0:
            raise OSError(f"it ends before byte {offset + len(buffer)}")
        buffer, offset = buffer[count:], offset + count
