"""Arrays of numbers in an .npz, read without trust: nothing is unpickled, no size believed before it is checked.

An array is read whole (`read_npz`), or in pieces and bounded memory (`StoredArray`), whether or not it is compressed.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from gmtool.artifacts.manifest import fingerprint
from gmtool.errors import UserError
from gmtool.words import human_bytes, one_line

PIECE = 2**24
"""Bytes read at once."""


@dataclass(frozen=True)
class Header:
    """An array that an .npz holds: its shape, its type, whether its first index runs fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def bytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredArray:
    """An array of an .npz that stays on the disk.

    fingerprint: digest of its shape, its type and the checksum of its bytes that the archive holds. repair: the
    remedy for a damaged file, for messages.
    """

    path: Path
    name: str
    header: Header
    fingerprint: str
    repair: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.header.shape

    def __len__(self) -> int:
        return self.shape[0]

    def pieces(self, rows: range, at_once: int) -> Iterator[np.ndarray]:
        """The entries ``rows`` (a step of 1 at least) along the first axis, in order, from ``at_once`` entries a piece.

        The file is read to its end, where its checksum is compared. Raises UserError where it is damaged.
        """
        if self.header.fortran:  # whose entries lie scattered over the file
            whole = read_npz(self.path, self.name, self.repair)
            yield from (whole[part.start : part.stop : part.step] for part in _split(rows, at_once))
            return
        row = math.prod(self.shape[1:]) * self.header.dtype.itemsize
        with _opened(self.path, self.repair) as archive, archive.open(f"{self.name}.npy") as file:
            _header(file, archive.getinfo(f"{self.name}.npy").file_size)
            place = 0
            for part in _split(rows, max(1, at_once // rows.step)):
                _skip(file, (part.start - place) * row)
                content = bytearray(file.read((part[-1] + 1 - part.start) * row))  # so that the array is writable
                place = part[-1] + 1
                entries = np.frombuffer(content, self.header.dtype).reshape(-1, *self.shape[1:])
                yield entries[:: part.step]
            while file.read(PIECE):
                pass


def _split(rows: range, at_once: int) -> Iterator[range]:
    return (rows[start : start + at_once] for start in range(0, len(rows), at_once))


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0 and (passed := len(file.read(min(count, PIECE)))):
        count -= passed


def npz_arrays(path: Path, repair: str) -> dict[str, StoredArray | None]:
    """What an .npz holds, by name; None for what is no array of numbers. Raises UserError as `npz_header` does."""
    with _opened(path, repair) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    return {name: stored_array(path, name, repair) for name in names}


def stored_array(path: Path, name: str, repair: str) -> StoredArray | None:
    """An array of an .npz, whose numbers are not read yet; None for what is no array of numbers.

    Raises UserError as `npz_header` does, also where there is no such array.
    """
    with _opened(path, repair) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as file:
            try:
                header = _header(file, entry.file_size)
            except _NoNumbers:
                return None
        content = fingerprint([f"{header.dtype.str}{header.shape}{header.fortran}{entry.CRC:08x}{entry.file_size}"])
    return StoredArray(path, name, header, content, repair)


class _NoNumbers(ValueError):
    """An array of texts or objects."""


def npz_header(path: Path, name: str, repair: str) -> Header | None:
    """What an array in an .npz is, without reading it; None where there is no such array.

    Raises UserError, ending in ``repair``, where the file is no .npz, is damaged, or the array is not of numbers.
    """
    with _opened(path, repair) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        with archive.open(f"{name}.npy") as file:
            return _header(file, archive.getinfo(f"{name}.npy").file_size)


def read_npz(path: Path, name: str, repair: str) -> np.ndarray:
    """A whole array (...) of an .npz, writable.

    Raises UserError as `npz_header` does, also where there is no such array, or it is larger than the memory.
    """
    header = npz_header(path, name, repair)
    if header is None:
        raise UserError(f"{path} holds no {name}: {repair}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if header.bytes > memory:
        raise UserError(
            f"{path}: {name} takes {human_bytes(header.bytes)}, more than the {human_bytes(memory)} of memory here: "
            "give a smaller file"
        )
    content, read = np.empty(header.bytes, np.uint8), 0
    with _opened(path, repair) as archive, archive.open(f"{name}.npy") as file:
        _header(file, archive.getinfo(f"{name}.npy").file_size)
        while piece := file.read(PIECE):  # to the very end, where zipfile checks the sum of all
            content[read : read + len(piece)] = np.frombuffer(piece, np.uint8)
            read += len(piece)
        if read != header.bytes:
            raise EOFError("the array is cut short")
    return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


@contextmanager
def _opened(path: Path, repair: str) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with what is read from it within the context becomes one UserError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except PermissionError:
        raise
    except Exception as error:  # broken data raise anything: zipfile, zlib, lzma, struct, the parser of the header
        reason = one_line(error)
        raise UserError(f"{path} is damaged, or no .npz of numbers ({reason}): {repair}") from error


def _header(file: IO[bytes], size: int) -> Header:
    """The header of an .npy of ``size`` bytes. Raises some Exception where it is none, or tells another size."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"unknown version {version} of .npy")
    shape, fortran, dtype = read(file)
    if dtype.kind not in "biufc":
        raise _NoNumbers(f"arrays of {dtype} are no numbers")
    header = Header(shape, dtype, fortran)
    if min(shape, default=0) < 0 or header.bytes != size - file.tell():
        raise ValueError(f"an array {shape} of {dtype} has another size")
    return header
