"""The latents file: what is written is read, in any order of rows and any process; wrong files are named."""

import fcntl
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gmtool.artifacts.files import part_of
from gmtool.artifacts.latents import LatentsFile, LatentsWriter, Layout, Provenance, open_latents, write_latents
from gmtool.artifacts.manifest import Input, Manifest
from gmtool.artifacts.tokenizer_spec import TokenizerSpec
from gmtool.errors import MachineError, UserError
from gmtool.mixture.running_moments import RunningMoments
from gmtool.progress import Progress

COUNT, SHAPE = 37, (2, 3, 4)
PATCHES = np.random.default_rng(0).standard_normal((COUNT, *SHAPE)).astype(np.float32)
DESCRIPTORS = np.random.default_rng(1).standard_normal((COUNT, 5)).astype(np.float32)
NAMES = [f"classe é/{index:03}.png" for index in range(COUNT)]
SPEC = TokenizerSpec("pixels", {"patch_size": 2}, {"mean": np.arange(4, dtype=np.float32)})


def write(path: Path, **changes: object) -> Manifest:
    given = {
        "patches": PATCHES,
        "descriptors": DESCRIPTORS,
        "labels": np.arange(COUNT) % 3 - 1,
        "names": NAMES,
        "classes": ("a", "ü"),
        "tokenizer": SPEC,
        "provenance": Provenance("encode", {"seed": 0}, (Input("images", "here", "ff"),), {"image_root": "here"}),
        "flipped": np.arange(COUNT) % 2 == 1,
    }
    return write_latents(path, **(given | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "latents.h5")
    return tmp_path / "latents.h5"


@pytest.mark.parametrize("name", ["patches", "labels"])
def test_a_file_shorter_than_its_record(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        short = file[name][: COUNT - 2]
        del file[name]
        file[name] = short
    with pytest.raises(
        UserError, match=rf"not as long as its record says \({name} is \(35.*\(37.*make it again"
    ) as caught:
        open_latents(path)
    assert "\n" not in str(caught.value)


def test_everything_written_is_read(path: Path) -> None:
    with open_latents(path) as latents:
        assert (len(latents), latents.shape, latents.descriptor_size) == (COUNT, SHAPE, 5)
        np.testing.assert_array_equal(latents.patches(slice(None)), PATCHES.astype(np.float16))
        np.testing.assert_array_equal(latents.descriptors(slice(None)), DESCRIPTORS)
        np.testing.assert_array_equal(latents.labels, np.arange(COUNT) % 3 - 1)
        np.testing.assert_array_equal(latents.flipped, np.arange(COUNT) % 2 == 1)
        assert latents.names() == tuple(NAMES)
        assert latents.classes == ("a", "ü")
        np.testing.assert_allclose(latents.mean, PATCHES.astype(np.float16).astype(float).mean(0), rtol=1e-12)
        np.testing.assert_allclose(latents.var, PATCHES.astype(np.float16).astype(float).var(0), rtol=1e-12)
        assert latents.tokenizer.name == "pixels"
        assert latents.tokenizer.settings == {"patch_size": 2}
        np.testing.assert_array_equal(latents.tokenizer.arrays["mean"], SPEC.arrays["mean"])
        assert latents.manifest.input("images") == Input("images", "here", "ff")
        assert latents.manifest.arrays["patches"].shape == (COUNT, *SHAPE)
        assert latents.manifest.details["samples"] == COUNT
    assert not part_of(path).exists()


@pytest.mark.parametrize("rows", [[5, 3, 3, 36, 0], [], list(range(COUNT))[::-1], [7, 8, 9, 2], np.array([4])])
def test_rows_come_in_the_order_asked(path: Path, rows: list[int]) -> None:
    with open_latents(path) as latents:
        index = np.asarray(rows, dtype=int)
        np.testing.assert_array_equal(latents.patches(rows), PATCHES.astype(np.float16)[index])
        np.testing.assert_array_equal(latents.descriptors(rows), DESCRIPTORS[index])


@pytest.mark.parametrize("chunks", [(1, *SHAPE), (2, *SHAPE)], ids=["by place", "by HDF5"])
def test_rows_are_read_into_a_buffer(path: Path, chunks: tuple[int, ...]) -> None:
    with h5py.File(path, "r+") as file:
        stored = file["patches"][:]
        del file["patches"]
        file.create_dataset("patches", data=stored, chunks=chunks)
    buffer, rows = np.full((6, *SHAPE), np.nan, np.float16), np.array([3, 4, 9, 36])
    with open_latents(path) as latents:
        patches = latents.patches(rows, buffer)
    assert np.shares_memory(patches, buffer)
    np.testing.assert_array_equal(buffer[:4], PATCHES.astype(np.float16)[rows])
    assert np.isnan(buffer[4:]).all()


@pytest.mark.parametrize("rows", [[-1], [COUNT]])
def test_a_row_that_is_not_there_is_refused(path: Path, rows: list[int]) -> None:
    with open_latents(path) as latents, pytest.raises(IndexError, match="0 to 36"):
        latents.patches(rows)


def _sum_in_child(latents: LatentsFile, queue: "multiprocessing.Queue[float]") -> None:
    queue.put(float(latents.patches(np.arange(COUNT)).astype(np.float64).sum()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_file_may_go_to_other_processes(path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with open_latents(path) as latents:
        latents.patches([0])  # this process has a handle of its own by now
        child = context.Process(target=_sum_in_child, args=(latents, queue))
        child.start()
        answer = queue.get(timeout=60)
        child.join()
    assert answer == pytest.approx(PATCHES.astype(np.float16).astype(np.float64).sum())


def test_a_pickled_file_opens_itself(path: Path) -> None:
    latents = open_latents(path)
    latents.patches([0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(latents)).descriptors([2]), DESCRIPTORS[[2]])


def test_batches_and_whole_arrays_make_the_same_file(path: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again.h5", patches=np.array_split(PATCHES, [5, 6, 30]))
    whole = open_latents(path)
    np.testing.assert_allclose(open_latents(tmp_path / "again.h5").var, whole.var, rtol=1e-12)
    for name, array in whole.manifest.arrays.items():
        assert (again.arrays[name].shape, again.arrays[name].dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize(
    "change",
    [
        {"patches": PATCHES + (np.arange(COUNT) == 3)[:, None, None, None]},
        {"descriptors": DESCRIPTORS * 2},
        {"names": [*NAMES[:-1], "x.png"]},
        {"labels": np.zeros(COUNT, int)},
        {"flipped": np.zeros(COUNT, bool)},
        {"tokenizer": TokenizerSpec("pixels", {"patch_size": 4}, SPEC.arrays)},
        {"tokenizer": TokenizerSpec("pixels", {"patch_size": 2}, {"mean": np.zeros(4, np.float32)})},
    ],
)
def test_the_fingerprint_follows_the_content(path: Path, tmp_path: Path, change: dict[str, object]) -> None:
    first = open_latents(path).manifest.fingerprint
    assert write(tmp_path / "same.h5").fingerprint == first
    assert write(tmp_path / "other.h5", **change).fingerprint != first


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "not finite"), (np.inf, "not finite"), (1e6, "beyond the range")]
)
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float, words: str) -> None:
    patches = PATCHES.copy()
    patches[20, 0, 0, 0] = value
    with pytest.raises(UserError, match=words):
        write(tmp_path / "latents.h5", patches=patches)
    assert list(tmp_path.iterdir()) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _text(path: Path) -> None:
    path.write_text("not HDF5")


def _mixture(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["manifest"] = Manifest("gmm", "fit-gmm", "00", {}).to_json()


def _foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "does not exist.*gmtool encode"),
        (_truncate, "not a whole HDF5 file"),
        (_text, "not a whole HDF5 file"),
        (_mixture, "is a fitted mixture, not a latents file.*gmtool encode"),
        (_foreign, "not written by gmtool"),
        (_folder, "is a folder"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(path: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(path)
    with pytest.raises(UserError, match=words) as caught:
        open_latents(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unfinished_file_is_refused_then_finished(tmp_path: Path) -> None:
    part = tmp_path / "latents.h5.part"
    layout = Layout(COUNT, SHAPE, 5, (), 20)
    with LatentsWriter.create(part, layout, SPEC, Provenance("encode", {})):
        pass
    with pytest.raises(UserError, match="unfinished"):
        open_latents(part)
    # 30 of 37 samples turn up: the file is cut to them
    with LatentsWriter.reopen(part) as writer:
        stored = PATCHES[:30].astype(np.float16)
        writer.write(0, stored, DESCRIPTORS[:30], np.zeros(30, int), NAMES[:30], np.zeros(30, bool))
        writer.finish(30, RunningMoments.of(stored), {"skipped": 7})
    with open_latents(part) as latents:
        assert len(latents) == len(latents.names()) == 30
        assert latents.manifest.arrays["cls"].shape == (30, 5)
        assert latents.manifest.details["skipped"] == 7
        np.testing.assert_array_equal(latents.patches(slice(None)), stored)


def test_a_file_that_another_process_reads_is_not_taken_for_damaged(tmp_path: Path) -> None:
    part, notes = tmp_path / "latents.h5.part", Progress()
    with LatentsWriter.create(part, Layout(COUNT, SHAPE, 5, (), 20), SPEC, Provenance("encode", {})):
        pass
    with part.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(MachineError, match=r"latents\.h5\.part is open in another process"):
            LatentsWriter.resume(part, notes)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match=r"latents\.h5\.part is open in another process"):
            open_latents(part)
    writer = LatentsWriter.resume(part, notes)
    assert writer is not None
    writer.close()
    part.write_bytes(part.read_bytes()[:100])
    assert LatentsWriter.resume(part, notes) is None


def test_the_promised_size_is_the_size_on_disk(tmp_path: Path) -> None:
    layout = Layout(3000, (3, 16, 16), 32, ("a", "b"), 24)
    with LatentsWriter.create(tmp_path / "x.h5", layout, SPEC, Provenance("encode", {})):
        pass
    assert (tmp_path / "x.h5").stat().st_size == pytest.approx(layout.bytes(), rel=0.1)
