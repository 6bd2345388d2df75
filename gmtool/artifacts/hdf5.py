"""HDF5 files, read by whichever process reads and written by one: what latents files and mixtures have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import h5py
import numpy as np

from gmtool.artifacts.files import flush_to_disk
from gmtool.artifacts.hdf5_rows import RowPlaces, row_places, runs
from gmtool.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

Rows = slice | Sequence[int] | np.ndarray
"""Rows of a dataset: a slice with a positive step, or indices in any order, also repeated."""


class _Open(NamedTuple):
    """A file that a process has opened, and where the rows of its datasets lie, as far as they have been asked for."""

    file: h5py.File
    owner: int
    places: dict[str, RowPlaces | None]


class Hdf5Reader:
    """A file whose datasets are read on demand.

    The file is opened by the process that first reads from it and never shared with a forked or spawned one, so
    an instance may be passed to the workers of a data loader. ``repair`` ends the message about a damaged file.
    """

    def __init__(self, path: Path, repair: str) -> None:
        self.path = path
        self._repair = repair
        self._open: _Open | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def close(self) -> None:
        """Close this process's file; reading again opens it anew."""
        if self._open is not None and self._open.owner == os.getpid():
            self._open.file.close()
        self._open = None

    def read(self, name: str, rows: Rows, room: np.ndarray | None = None) -> np.ndarray:
        """Rows of a dataset, in the order asked. ``room``, if given, is where increasing numbers of rows are read to.

        Raises UserError when the file is damaged, IndexError beyond its end.
        """
        if self._open is None or self._open.owner != os.getpid():
            self._open = _Open(open_hdf5(self.path, self._repair), os.getpid(), {})
        values = self._open.file[name]
        try:
            if isinstance(rows, slice):
                return values[rows]
            wanted = np.asarray(rows, dtype=np.int64)
            if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(values)):
                last = len(values) - 1
                raise IndexError(f"{self.path} has rows 0 to {last} of {name}, not {wanted.min()} to {wanted.max()}")
            unique, inverse = np.unique(wanted, return_inverse=True)
            found = self._read_increasing(self._open, values, unique, room)
            return found if np.array_equal(unique, wanted) else found[inverse]
        except (OSError, RuntimeError) as error:  # h5py raises either, by where in the file the damage is
            raise UserError(f"{self.path} is damaged ({one_line(error)}): {self._repair}") from error

    def _read_increasing(
        self, opened: _Open, values: h5py.Dataset, rows: np.ndarray, room: np.ndarray | None
    ) -> np.ndarray:
        found = np.empty((len(rows), *values.shape[1:]), values.dtype) if room is None else room[: len(rows)]
        if values.name not in opened.places:
            opened.places[values.name] = row_places(values)
        places = opened.places[values.name]
        if places is not None:
            places.read(opened.file.id.get_vfd_handle(), rows, found)
            return found
        # h5py takes increasing indices, but is slow at them: read runs of neighbours
        for start, stop in runs(rows, 1):
            first = int(rows[start])
            values.read_direct(found, np.s_[first : first + stop - start], np.s_[start:stop])
        return found


class Hdf5Writer:
    """A file that was laid out on disk, being filled; a context that closes it, finished or not.

    datasets: those that every such file has.
    """

    datasets: ClassVar[tuple[str, ...]]

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Go on with a file that was laid out. Raises OSError or KeyError when it is damaged."""
        writer = cls(h5py.File(path, "r+", libver="earliest"))
        for name in cls.datasets:
            _ = writer._file[name].shape
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def flush(self) -> None:
        """Bring all that was written to the disk."""
        self._file.flush()
        flush_to_disk(Path(self._file.filename))


def open_hdf5(path: Path, repair: str) -> h5py.File:
    """Open a file for reading. Raises UserError, ending in ``repair``, when it is no whole HDF5 file."""
    try:
        return h5py.File(path, "r", locking="best-effort")
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path} is not a whole HDF5 file ({one_line(error)}): {repair}") from error


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


def allocate(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype, chunks: tuple[int | None, ...]
) -> None:
    """Create a dataset, at most ``shape``, with all its storage allocated and not filled; None: the whole axis."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(tuple(size or whole for size, whole in zip(chunks, shape, strict=True)))
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape, shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, settings)
