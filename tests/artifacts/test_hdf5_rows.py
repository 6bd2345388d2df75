import os
import threading
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from gmtool.artifacts.hdf5_rows import ReadAhead, StoredRows, stored_rows

COUNT, SHAPE = 50, (3, 4)


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, *SHAPE)).astype(np.float16)


@pytest.fixture
def path(data: np.ndarray, tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("rows", data=data)
    return tmp_path / "a.h5"


def read(stored: StoredRows, file: h5py.File, rows: np.ndarray, ahead: ReadAhead = ReadAhead()) -> np.ndarray:
    buffer = np.empty((len(rows), *stored.shape), stored.dtype)
    parts: list[tuple[int, int]] = []

    def note(first: int, last: int) -> None:
        parts.append((first, last))
        np.testing.assert_array_equal(buffer[first:last], file["rows"][:][rows[first:last]])

    stored.read(file.id.get_vfd_handle(), rows, buffer, note, ahead)
    assert [row for first, last in parts for row in range(first, last)] == list(range(len(rows)))
    return buffer


@pytest.mark.parametrize("rows", [[], [7], [0, 49], [3, 4, 5, 9, 20, 21], list(range(50))])
@pytest.mark.parametrize("ahead", [ReadAhead(), ReadAhead(parts=2, part_bytes=50, read_bytes=7)])
def test_rows_are_what_hdf5_gives(data: np.ndarray, path: Path, rows: list[int], ahead: ReadAhead) -> None:
    with h5py.File(path, "r") as file:
        stored = stored_rows(file["rows"])
        np.testing.assert_array_equal(read(stored, file, np.array(rows, np.int64), ahead), data[rows])


def test_rows_that_are_written_are_what_hdf5_gives(data: np.ndarray, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        stored = stored_rows(file["rows"])
        stored.write(file.id.get_vfd_handle(), 10, np.ones((5, *SHAPE)))
        for first, values in ((46, np.ones((5, *SHAPE))), (-1, np.ones((1, *SHAPE))), (0, np.ones((1, 4, 3)))):
            with pytest.raises(ValueError, match="do not fit"):
                stored.write(file.id.get_vfd_handle(), first, values)
    data[10:15] = 1
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["rows"][:], data)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nothing can be announced here")
@pytest.mark.parametrize("rows", [range(0, 50, 2), range(1, 50), [0, *range(3, 20), 30, 31]])
def test_rows_are_announced_once_in_advance_and_in_short_parts(
    data: np.ndarray, path: Path, rows: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = data[0].nbytes
    announced: list[int] = []
    preadv = os.preadv

    def announce(_: int, offset: int, length: int, advice: int) -> None:
        assert size <= length <= 2 * size
        announced.extend(range(offset, offset + length))

    def counting(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        assert offset + len(buffers[0]) - 1 in announced
        # what comes next has been announced, unless nothing does
        assert announced[-1] >= min(offset + len(buffers[0]) + size - 1, last)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "posix_fadvise", announce)
    monkeypatch.setattr(os, "preadv", counting)
    with h5py.File(path, "r") as file:
        stored, wanted = stored_rows(file["rows"]), np.array(rows)
        last = stored.offset + (int(wanted[-1]) + 1) * size - 1
        rows_read = read(stored, file, wanted, ReadAhead(parts=3, part_bytes=2 * size + 1))
    np.testing.assert_array_equal(rows_read, data[wanted])
    assert announced == [stored.offset + row * size + byte for row in rows for byte in range(size)]


@pytest.mark.parametrize("settings", [{"chunks": (1, *SHAPE)}, {"chunks": (5, *SHAPE), "compression": "gzip"}])
def test_rows_in_chunks_have_no_place(data: np.ndarray, settings: dict[str, object], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        assert stored_rows(file.create_dataset("rows", data=data, **settings)) is None


def test_a_file_that_ends_early_is_an_error(data: np.ndarray, path: Path) -> None:
    with h5py.File(path, "r") as file:
        stored = stored_rows(file["rows"])
        os.truncate(path, stored.offset + 40 * data[0].nbytes)
        with pytest.raises(OSError, match="it ends before byte"):
            read(stored, file, np.arange(41))


def test_several_threads_may_read(data: np.ndarray, path: Path) -> None:
    with h5py.File(path, "r") as file:
        stored, by_thread = stored_rows(file["rows"]), {}

        def run(start: int) -> None:
            by_thread[start] = read(stored, file, np.arange(start, 50, 4))

        threads = [threading.Thread(target=run, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for start in range(4):
        np.testing.assert_array_equal(by_thread[start], data[start::4])
