import threading

import numpy as np
import pytest
import torch

from gmtool.artifacts.latents import LatentsFile, Provenance, open_latents, write_latents
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.data import memory
from gmtool.data.latent_loader import LatentBatch, ShuffledRows, latent_batches
from gmtool.errors import UserError

COUNT = 23


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> LatentsFile:
    path = tmp_path_factory.mktemp("loader") / "latents.h5"
    write_latents(
        path,
        patches=np.random.default_rng(0).normal(size=(COUNT, 2, 3, 1)),
        descriptors=np.zeros((COUNT, 1), np.float32),
        labels=np.zeros(COUNT, np.int64),
        names=[f"{index}.png" for index in range(COUNT)],
        classes=["all"],
        tokenizer=TokenizerSpec("pixels", {}),
        provenance=Provenance("encode", {}),
    )
    return open_latents(path)


def take(latents: LatentsFile, start: int, stop: int, workers: int | None, batch_size: int = 5) -> list[LatentBatch]:
    return list(latent_batches(latents, batch_size, 7, start, stop, workers))


@pytest.mark.parametrize("batch_size", [1, 4, COUNT, 60])
def test_every_epoch_has_every_row_once(batch_size: int) -> None:
    order = ShuffledRows(COUNT, batch_size, 0)
    rows = np.concatenate([order.of_step(step) for step in range(-(-3 * COUNT // batch_size))])[: 3 * COUNT]
    epochs = rows.reshape(3, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_does_not_depend_on_the_batches_but_on_the_seed() -> None:
    def rows(batch_size: int, seed: int) -> list[int]:
        order = ShuffledRows(COUNT, batch_size, seed)
        return np.concatenate([order.of_step(step) for step in range(60 // batch_size)]).tolist()

    assert rows(1, 0) == rows(6, 0) == rows(60, 0)
    assert rows(6, 0) != rows(6, 1)


def test_a_step_can_be_asked_for_in_any_order() -> None:
    order = ShuffledRows(COUNT, 10, 0)
    forwards = [order.of_step(step).tolist() for step in range(12)]
    fresh = ShuffledRows(COUNT, 10, 0)
    assert [fresh.of_step(step).tolist() for step in reversed(range(12))] == forwards[::-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_disk_give_the_same(latents: LatentsFile, workers: int) -> None:
    expected, taken = take(latents, 0, 11, None), take(latents, 0, 11, workers)
    assert len(taken) == 11
    for one, other in zip(expected, taken, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        assert one.patches.dtype == other.patches.dtype == torch.float16
        assert torch.equal(one.patches, other.patches)
        np.testing.assert_array_equal(one.patches.numpy(), latents.patches(one.rows))


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_from_the_middle(latents: LatentsFile, workers: int | None) -> None:
    whole, rest = take(latents, 0, 11, None), take(latents, 7, 11, workers)
    assert [batch.rows.tolist() for batch in rest] == [batch.rows.tolist() for batch in whole[7:]]
    assert take(latents, 11, 11, workers) == []


@pytest.mark.parametrize(("pages", "disk"), [(16, True), (10_000_000, False)])
def test_what_does_not_fit_in_memory_is_read_from_disk(
    latents: LatentsFile, monkeypatch: pytest.MonkeyPatch, pages: int, disk: bool
) -> None:
    expected = take(latents, 0, 30, 0)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 64, "SC_PHYS_PAGES": pages}[name])
    reads: list[tuple[int, bool]] = []
    real = LatentsFile.patches

    def patches(self: LatentsFile, rows: np.ndarray) -> np.ndarray:
        reads.append((len(rows), threading.current_thread() is threading.main_thread()))
        return real(self, rows)

    monkeypatch.setattr(LatentsFile, "patches", patches)
    batches_read = []
    for batch in latent_batches(latents, 5, 7, 0, 30, None):
        batches_read.append(batch)
        assert len(reads) <= len(batches_read) + 1 + 2 * 4 or not disk  # two batches each of four threads, and no more
    assert all(torch.equal(one.patches, other.patches) for one, other in zip(expected, batches_read, strict=True))
    in_threads = [size for size, main in reads if not main]
    assert in_threads == ([5] * 30 if disk else [])
    assert reads[0] == ((1, True) if disk else (COUNT, True))  # the file is opened before threads share it


def test_a_thread_s_error_is_the_reader_s(latents: LatentsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LatentsFile.patches

    def patches(self: LatentsFile, rows: np.ndarray) -> np.ndarray:
        if len(rows) > 1:
            raise UserError("damaged")
        return real(self, rows)

    monkeypatch.setattr(LatentsFile, "patches", patches)
    with pytest.raises(UserError, match="damaged"):
        take(latents, 0, 11, 2)


def test_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}[name])
    assert memory.fits_in_memory(102_400)
    assert not memory.fits_in_memory(102_401)
