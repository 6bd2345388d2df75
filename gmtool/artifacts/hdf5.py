"""HDF5 files, read by whichever process reads and written by one: what latents files and mixtures have in common.

Every file has an attribute ``manifest``. Datasets that are read whole have their checksum in it; those that are read
row by row are contiguous, with their rows' checksums in ``checksums/NAME`` (N,) uint64. Reading verifies either kind.
Files of older versions have no checksums, and their rows may lie in chunks: those are read through h5py.

A file is laid out whole when it is created: its storage is reserved and its structure is on disk before the first row,
so that writing rows changes raw data only and a process killed at any moment leaves a readable part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import h5py
import numpy as np

from gmtool.artifacts.checksum import checksum, row_checksums
from gmtool.artifacts.files import flush_to_disk, reading, reserve
from gmtool.artifacts.hdf5_rows import StoredRows, runs, stored_rows
from gmtool.artifacts.manifest import KINDS, Array, Kind, Manifest, expect_kind, parse_manifest
from gmtool.errors import MachineError, UserError
from gmtool.progress import Progress
from gmtool.words import one_line

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

MANIFEST = "manifest"
MANIFEST_BYTES = 60_000
"""Space for the manifest, which is rewritten in place; HDF5 holds attributes of less than 64 KiB."""

ROWS_AT_ONCE = 4096
"""Rows held in memory at once where whole columns are read."""

Rows = slice | Sequence[int] | np.ndarray
"""Rows of a dataset: a slice with a positive step, or indices in any order, also repeated."""


@dataclass(frozen=True, eq=False)
class _RowSource:
    """A dataset that is read row by row: how many rows count; where they lie, if known; their checksums, if it has.

    verified: (count,) bool, the rows that this process has read before: each is checked once, since an epoch of
    training would else pay for it again.
    """

    dataset: h5py.Dataset
    count: int
    stored: StoredRows | None
    checksums: np.ndarray | None
    verified: np.ndarray

    def unverified(self, rows: np.ndarray) -> bool:
        """Whether one of these rows has a checksum that has not been compared yet."""
        return self.checksums is not None and not self.verified[rows].all()

    def verify(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Raise ValueError where one of the values (n, ...) of some rows is not what was written."""
        assert self.checksums is not None
        differs = row_checksums(values) != self.checksums[rows]
        if differs.any():
            raise ValueError(f"the checksum of row {rows[differs][0]} of {self.dataset.name[1:]} does not match")


class _Open(NamedTuple):
    """A file that a process has opened, and its datasets as far as they have been asked for."""

    file: h5py.File
    owner: int
    sources: dict[str, _RowSource]


class Hdf5Reader:
    """A file whose datasets are read on demand.

    The file is opened by the process that first reads from it and never shared with a forked or spawned one, so
    an instance may be passed to the workers of a data loader. ``repair`` ends the message about a damaged file.
    """

    def __init__(self, path: Path, manifest: Manifest, repair: str) -> None:
        self.path, self.manifest = path, manifest
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

    def column(self, name: str) -> np.ndarray:
        """A whole dataset (N, ...), one that is not read by rows. Raises UserError when it is not as it was written."""
        with reading(self.path, self._repair):
            return read_column(self._opened().file, name, self.manifest.arrays)

    def read(self, name: str, rows: Rows, out: np.ndarray | None = None) -> np.ndarray:
        """Rows (n, ...) of a dataset, in the order asked.

        out: an array of at least n rows, into which they are read if their numbers strictly increase. Raises UserError
        when the file is damaged or a row is not as it was written, IndexError beyond its end.
        """
        with reading(self.path, self._repair):
            source = self._source(name)
        wanted = np.arange(source.count)[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < source.count):
            last = source.count - 1
            raise IndexError(f"{self.path} has rows 0 to {last} of {name}, not {wanted.min()} to {wanted.max()}")
        unique, inverse = np.unique(wanted, return_inverse=True)
        with reading(self.path, self._repair):
            values = self._read_increasing(source, unique, out)
        return values if np.array_equal(unique, wanted) else values[inverse]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """The rows of a dataset from the first to the last, in blocks (n, ...). Raises UserError as `read` does."""
        count = self.manifest.arrays[name].shape[0]
        row = np.prod(self.manifest.arrays[name].shape[1:], dtype=int)
        step = min(ROWS_AT_ONCE, max(1, 2**26 // max(int(row), 1)))
        return (self.read(name, slice(start, start + step)) for start in range(0, count, step))

    def _opened(self) -> _Open:
        if self._open is None or self._open.owner != os.getpid():
            self._open = _Open(open_hdf5(self.path, self._repair), os.getpid(), {})
        return self._open

    def _source(self, name: str) -> _RowSource:
        opened = self._opened()
        if name not in opened.sources:
            dataset, known = opened.file[name], opened.file.get(f"checksums/{name}")
            count = self.manifest.arrays[name].shape[0]
            checksums = None if known is None else known[:count]
            opened.sources[name] = _RowSource(dataset, count, stored_rows(dataset), checksums, np.zeros(count, bool))
        return opened.sources[name]

    def _read_increasing(self, source: _RowSource, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        values = source.dataset
        entries = np.empty((len(rows), *values.shape[1:]), values.dtype) if out is None else out[: len(rows)]
        unverified = source.unverified(rows)

        def verify(first: int, last: int) -> None:
            source.verify(rows[first:last], entries[first:last])

        if source.stored is not None:
            descriptor = self._opened().file.id.get_vfd_handle()
            source.stored.read(descriptor, rows, entries, verify if unverified else None)
        else:
            # h5py takes increasing indices, but is slow at them: read runs of neighbours
            for start, stop in runs(rows):
                first = int(rows[start])
                values.read_direct(entries, np.s_[first : first + stop - start], np.s_[start:stop])
                if unverified:
                    verify(start, stop)
        if unverified:
            source.verified[rows] = True
        return entries


class Hdf5Writer:
    """A file that was laid out on disk, being filled; a context that closes it, finished or not.

    rows: names of its datasets that are written row by row, which every such file has.
    """

    rows: ClassVar[tuple[str, ...]]

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._stored = {name: _expect_stored(file[name]) for name in self.rows}
        self._checksums = {
            name: _expect_stored(file[f"checksums/{name}"]) for name in self.rows if f"checksums/{name}" in file
        }

    @classmethod
    def lay_out(cls, path: Path, size: int, build: Callable[[h5py.File], None]) -> Self:
        """Make a new file of about ``size`` bytes, with what ``build`` puts into it; all is on disk when this returns.

        Raises MachineError where the disk is too small.
        """
        try:
            # HDF5 that meets a full disk floods the terminal and may crash: a full disk shows here, before it begins
            reserve(path, size)
            with _opened(path, "w") as file:
                build(file)
            reserve(path, path.stat().st_size)  # HDF5 cut the file, and allocated without writing
            writer = cls.reopen(path)
            writer.flush()
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return writer

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Reopen a file that was laid out.

        Raises OSError, KeyError or ValueError when it is damaged, MachineError while another process has it open.
        """
        return cls(_opened(path, "r+"))

    @classmethod
    def resume(cls, path: Path, progress: Progress) -> Self | None:
        """`reopen` a file to fill further; None where it is damaged or gone, which is noted."""
        try:
            with reading(path, "starting over"):
                return cls.reopen(path)
        except UserError:
            progress.note(f"{path} is damaged or gone: starting over")
            return None

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

    def _write_rows(self, name: str, first: int, values: np.ndarray) -> None:
        """Write values (n, ...) to the rows from ``first`` on, and their checksums. Raises OSError on a full disk."""
        stored = self._stored[name]
        values = np.ascontiguousarray(values, stored.dtype)
        stored.write(self._file.id.get_vfd_handle(), first, values)
        if name in self._checksums:
            self._checksums[name].write(self._file.id.get_vfd_handle(), first, row_checksums(values))

    def _read_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """The rows from ``first`` to before ``last``, as they were written."""
        stored = self._stored[name]
        values = np.empty((last - first, *stored.shape), stored.dtype)
        stored.read(self._file.id.get_vfd_handle(), np.arange(first, last), values)
        return values

    def _write_manifest(self, manifest: Manifest) -> Manifest:
        """Add checksums of the columns to the manifest, put it in its place, flush; return it."""
        checksums = {
            name: checksum(read_column(self._file, name, manifest.arrays))
            for name in manifest.arrays
            if name not in self._checksums
        }
        manifest = replace(
            manifest,
            arrays={name: replace(array, checksum=checksums.get(name, "")) for name, array in manifest.arrays.items()},
        )
        attribute = self._file.attrs.get_id(MANIFEST)
        attribute.write(np.array(manifest.to_json().encode(), dtype=attribute.dtype))
        self.flush()
        return manifest


def _expect_stored(dataset: h5py.Dataset) -> StoredRows:
    stored = stored_rows(dataset)
    if stored is None:
        raise ValueError(f"{dataset.name} does not lie in one piece")
    return stored


def _opened(path: Path, mode: str) -> h5py.File:
    """A file, opened. Raises MachineError while another process writes it, or reads what is to be written."""
    try:
        # the earliest file format keeps no "open for writing" mark, which would make a killed writer's file unreadable
        return h5py.File(path, mode, libver="earliest", locking="best-effort")
    except BlockingIOError as error:
        raise MachineError(f"{path} is open in another process: close it there, and run the command again") from error


def open_hdf5(path: Path, repair: str) -> h5py.File:
    """Open a file for reading.

    Raises UserError, ending in ``repair``, when it is no whole HDF5 file, MachineError while another process writes it.
    """
    try:
        return _opened(path, "r")
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path} is not a whole HDF5 file ({one_line(error)}): {repair}") from error


def open_artifact(path: Path, kind: Kind, repair: str) -> tuple[h5py.File, Manifest]:
    """Open an HDF5 file of gmtool's and read its manifest; the caller closes it.

    Raises UserError, naming the repair, when it is missing, damaged, something else, or its arrays are not of the
    sizes in its manifest.
    """
    words, command = KINDS[kind]
    if not path.is_file():
        where = f"is a folder, not {words}" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise UserError(f"{path} {where}: give what `{command}` writes")
    file = open_hdf5(path, repair)
    try:
        with reading(path, repair):
            manifest = read_manifest(file, path, f"give what `{command}` writes")
            expect_kind(manifest, kind, path)
        return file, manifest
    except BaseException:
        file.close()
        raise


def read_manifest(file: h5py.File, path: Path, advice: str = "give what gmtool writes") -> Manifest:
    """The manifest of an open file. Raises UserError, ending in ``advice``, when it has none that can be read."""
    if MANIFEST not in file.attrs:
        raise UserError(f"{path} was not written by gmtool: {advice}")
    return parse_manifest(file.attrs[MANIFEST], path)


def expect_arrays(file: h5py.File, path: Path, arrays: Mapping[str, Array], spare: Iterable[str], repair: str) -> None:
    """Raise UserError unless the datasets have the types and shapes of the manifest; ``spare`` ones may be longer."""
    for name, array in arrays.items():
        shape = file[name].shape
        length = shape[:1] if name in spare and shape[:1] >= array.shape[:1] else array.shape[:1]
        if shape != (*length, *array.shape[1:]):
            shapes = f"{name} is {shape}, not {array.shape}"
            raise UserError(f"{path} is not as long as its record says ({shapes}): {repair}")
        if array.dtype not in ("utf-8", str(file[name].dtype)):
            raise UserError(f"{path} is damaged ({name} is {file[name].dtype}, not {array.dtype}): {repair}")


def read_column(file: h5py.File, name: str, arrays: Mapping[str, Array]) -> np.ndarray:
    """A whole dataset (N, ...). Raises KeyError without it, ValueError when it has a checksum that does not match."""
    dataset, known = file[name], arrays.get(name)
    values = dataset[...] if known is None or not known.shape else dataset[: known.shape[0]]
    if dataset.dtype == object:  # texts of any length
        values = np.array([text if isinstance(text, bytes) else str(text).encode() for text in values], np.bytes_)
    if known is not None and known.checksum and known.checksum != checksum(values):
        raise ValueError(f"the checksum of {name} does not match")
    return values


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Create a contiguous dataset with all its storage allocated and not filled."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_layout(h5py.h5d.CONTIGUOUS)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, settings, links)


def allocate_rows(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """`allocate` a dataset that is read row by row, and the checksums of its rows."""
    allocate(file, name, shape, dtype)
    allocate(file, f"checksums/{name}", shape[:1], np.dtype(np.uint64))


def allocate_manifest(file: h5py.File, manifest: Manifest) -> None:
    """Write a first manifest to a new file, with space for the final one."""
    file.attrs.create(MANIFEST, manifest.to_json().encode(), dtype=h5py.string_dtype("utf-8", MANIFEST_BYTES))
