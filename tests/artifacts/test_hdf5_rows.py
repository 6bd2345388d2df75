import os
import threading
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from gmtool.artifacts import hdf5_rows as chunks
from gmtool.artifacts.hdf5_rows import RowPlaces, row_places


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float16)


def written(path: Path, data: np.ndarray, **settings: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("rows", data=data, **settings)
    return path


def read(places: RowPlaces, file: h5py.File, rows: np.ndarray) -> np.ndarray:
    found = np.empty((len(rows), *places.shape), places.dtype)
    places.read(file.id.get_vfd_handle(), rows, found)
    return found


@pytest.mark.parametrize("rows", [[], [7], [0, 49], [3, 4, 5, 9, 20, 21], list(range(50))])
def test_rows_are_what_hdf5_gives(data: np.ndarray, rows: list[int], tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.h5", data, chunks=(1, 3, 4)), "r") as file:
        places = row_places(file["rows"])
        assert places is not None
        np.testing.assert_array_equal(read(places, file, np.array(rows, np.int64)), data[rows])


def test_long_rows_are_read_in_parts(data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LONGEST", 7)
    with h5py.File(written(tmp_path / "a.h5", data, chunks=(1, 3, 4)), "r") as file:
        places = row_places(file["rows"])
        assert places is not None
        np.testing.assert_array_equal(read(places, file, np.arange(50)), data)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nothing can be announced here")
@pytest.mark.parametrize("rows", [range(0, 50, 2), range(1, 50), [0, *range(3, 20), 30, 31]])
def test_rows_are_announced_once_in_advance_and_in_short_parts(
    data: np.ndarray, rows: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = data[0].nbytes
    announced: list[int] = []
    fill = chunks._fill

    def announce(_: int, offset: int, length: int, advice: int) -> None:
        assert size <= length <= 2 * size
        announced.extend(range(offset, offset + length))

    def counting(descriptor: int, room: memoryview, offset: int) -> None:
        assert offset + len(room) - 1 in announced
        # what comes next has been announced, unless nothing does
        assert announced[-1] >= min(offset + len(room) + size - 1, last)
        fill(descriptor, room, offset)

    monkeypatch.setattr(chunks, "ANNOUNCED", 3)
    monkeypatch.setattr(chunks, "ANNOUNCED_BYTES", 2 * size + 1)
    monkeypatch.setattr(os, "posix_fadvise", announce)
    monkeypatch.setattr(chunks, "_fill", counting)
    with h5py.File(written(tmp_path / "a.h5", data, chunks=(1, 3, 4)), "r") as file:
        places = row_places(file["rows"])
        assert places is not None
        wanted = np.array(rows)
        last = int(places.offsets[wanted[-1]]) + size - 1
        np.testing.assert_array_equal(read(places, file, wanted), data[wanted])
    assert announced == [start + byte for start in places.offsets[wanted].tolist() for byte in range(size)]


@pytest.mark.parametrize(
    "settings", [{"chunks": (2, 3, 4)}, {"chunks": (1, 3, 2)}, {"chunks": (1, 3, 4), "compression": "gzip"}, {}]
)
def test_rows_stored_otherwise_have_no_place(data: np.ndarray, settings: dict[str, object], tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.h5", data, **settings), "r") as file:
        assert row_places(file["rows"]) is None


def test_rows_that_were_never_written_have_no_place(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        rows = file.create_dataset("rows", (5, 2), np.float16, chunks=(1, 2))
        rows[1:3] = 1.0
        assert row_places(rows) is None


def test_a_file_that_ends_early_is_an_error(data: np.ndarray, tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", data, chunks=(1, 3, 4))
    with h5py.File(path, "r") as file:
        places = row_places(file["rows"])
        os.truncate(path, int(places.offsets[40]))
        read(places, file, np.arange(40))
        with pytest.raises(OSError, match="it ends before byte"):
            read(places, file, np.arange(41))


def test_several_threads_may_read(data: np.ndarray, tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.h5", data, chunks=(1, 3, 4)), "r") as file:
        places, found = row_places(file["rows"]), {}

        def run(start: int) -> None:
            found[start] = read(places, file, np.arange(start, 50, 4))

        threads = [threading.Thread(target=run, args=(start,)) for start in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    for start in range(4):
        np.testing.assert_array_equal(found[start], data[start::4])
