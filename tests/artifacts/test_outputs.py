"""Outputs: what they may replace, where they are made, and that two processes do not disturb each other."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import h5py
import pytest
from user import held_by_another

from gmtool.artifacts.files import (
    ABANDONED,
    LARGEST_RECORD,
    PART_SUFFIX,
    check_writable,
    is_part,
    remove_parts,
    resolved,
    written_aside,
)
from gmtool.artifacts.manifest import KINDS, RECORDS, Kind, Manifest
from gmtool.artifacts.outputs import LOCK, OLD, Output, held, kept_to_this_process, kind_of, output_of
from gmtool.artifacts.run import locked
from gmtool.artifacts.samples import METRICS
from gmtool.errors import UserError


def artifact(path: Path, kind: str) -> Path:
    text = Manifest(kind, "x", "00", {}).to_json()
    if kind in RECORDS:
        path.mkdir()
        (path / RECORDS[kind]).write_text(text)
    else:
        with h5py.File(path, "w") as file:
            file.attrs["manifest"] = text
    return path


def fill(output: Output, text: str = "new") -> None:
    if output.kind in RECORDS:
        output.part.mkdir()
        (output.part / RECORDS[output.kind]).write_text(Manifest(output.kind, text, "00", {}).to_json())
    else:
        output.part.write_text(text)


def make(path: Path, kind: Kind) -> None:
    output = output_of(path, kind)
    with output.locked():
        fill(output)
        output.publish()


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_output_appears_and_nothing_else(tmp_path: Path, kind: Kind) -> None:
    make(tmp_path / "new/out", kind)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["latents", "gmm", "samples", "sweep", "reconstruction"])
def test_an_output_of_the_same_kind_is_replaced(tmp_path: Path, kind: Kind) -> None:
    make(artifact(tmp_path / "out", kind), kind)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    record = tmp_path / "out" / RECORDS.get(kind, "")
    assert "new" in record.read_text()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("other", [*KINDS, "text", "HDF5", "folder"])
def test_whatever_else_is_there_is_refused_and_kept(tmp_path: Path, kind: Kind, other: str) -> None:
    path = tmp_path / "out"
    if other == kind and kind != "run":
        pytest.skip("replaced")
    if other in KINDS:
        artifact(path, other)
    elif other == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("of years")
    elif other == "HDF5":
        h5py.File(path, "w").close()
    else:
        path.write_text("thesis")
    before = {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()}
    with pytest.raises(UserError, match=r"out .*choose another|out .*give a file name") as caught:
        output_of(path, kind)
    assert "\n" not in str(caught.value)
    assert {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()} == before


@pytest.mark.parametrize("name", ["notes.txt", "images/me.png", "images/sub/000001.png", "gmm.h5"])
def test_samples_that_hold_something_of_the_user_s_are_kept(tmp_path: Path, name: str) -> None:
    folder = artifact(tmp_path / "samples", "samples")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=r"which gmtool did not make: move it away"):
        output_of(folder, "samples")
    (folder / name).rename(tmp_path / "aside")
    for empty in (folder / "images/sub", folder / "images"):
        if empty.is_dir():
            empty.rmdir()
    (folder / METRICS).write_text("{}")
    output = output_of(folder, "samples")
    with output.locked():
        fill(output)
        (folder / "late.txt").write_text("put there meanwhile")
        with pytest.raises(UserError, match=r"late\.txt"):
            output.publish()
    assert (folder / "late.txt").read_text() == "put there meanwhile"
    assert output.part.is_dir()  # to be put in its place by the same command


@pytest.mark.parametrize("name", ["notes.txt", "images/000001.png", "metrics.json"])
def test_a_sweep_that_holds_something_of_the_user_s_is_kept(tmp_path: Path, name: str) -> None:
    folder = artifact(tmp_path / "sweep", "sweep")
    for own in ("sweep.csv", "score.png"):
        (folder / own).touch()
    output_of(folder, "sweep")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=r"which gmtool did not make: move it away"):
        output_of(folder, "sweep")


def test_neighbours_are_nobody_s_business(tmp_path: Path) -> None:
    for name in ("samples.old", "samples.part", "samples.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    make(artifact(tmp_path / "samples", "samples"), "samples")
    assert len(list(tmp_path.rglob("mine"))) == 3


@pytest.mark.parametrize("kind", ["latents", "samples"])
def test_links_are_followed_to_the_target_s_disk(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/out")
    for _ in range(2):
        output = output_of(tmp_path / "link", kind)
        assert output.part.is_relative_to(tmp_path / "disk")
        with output.locked():
            fill(output)
            if output.target.exists() and kind == "latents":
                artifact(tmp_path / "x", kind).replace(output.target)
            output.publish()
        assert (tmp_path / "link").is_symlink()
        if kind == "latents":
            artifact(tmp_path / "x", kind).replace(output.target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_no_file_or_folder_is_refused(tmp_path: Path, kind: Kind) -> None:
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(tmp_path)  # the name of a socket must be short
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to(os.devnull)
    for name in ("pipe", "socket", "loop", "device"):
        with pytest.raises(UserError, match=name):
            output_of(tmp_path / name, kind)
    with pytest.raises(UserError, match="null"):
        output_of(Path(os.devnull), kind)
    server.close()


def test_small_files_replace_no_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"), written_aside(tmp_path / "pipe"):
        raise AssertionError("not reached")
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with written_aside(tmp_path / "link") as part:
        part.write_text("new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "real").read_text()) == (True, "new")


def test_a_small_file_may_go_to_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "results/of/today.json"
    check_writable(path, "it")
    with written_aside(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes of all that has been brought to the disk so far."""
    inodes = set()
    monkeypatch.setattr("os.fsync", lambda descriptor: inodes.add(os.fstat(descriptor).st_ino))
    return inodes


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, flushed: set[int]) -> None:
    """A rename may reach the disk before the content; after a loss of power the file would be empty."""
    with written_aside(tmp_path / "small.json") as part:
        part.write_text("new")
    assert {(tmp_path / "small.json").stat().st_ino, tmp_path.stat().st_ino} <= flushed
    flushed.clear()
    output = output_of(tmp_path / "samples", "samples")
    with output.locked():
        fill(output)
        (output.part / "images").mkdir()
        (output.part / "images/000000.png").touch()
        output.publish()
    tree = [tmp_path, output.target, *output.target.rglob("*")]
    assert len(tree) == 5
    assert {path.stat().st_ino for path in tree} <= flushed


@pytest.mark.parametrize(("number", "fatal"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_disk_that_cannot_flush_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fatal: bool
) -> None:
    """As some network disks cannot; a disk that fails is an error all the same."""
    flush = os.fsync

    def files_alone(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == tmp_path.stat().st_ino:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    with pytest.raises(OSError) if fatal else nullcontext(), written_aside(tmp_path / "small.json") as part:
        part.write_text("new")
    assert (tmp_path / "small.json").read_text() == "new"


def test_what_a_kill_left_long_ago_is_removed_with_the_next_file(tmp_path: Path) -> None:
    for name, age in (("old", ABANDONED + 60), ("young", 60.0)):
        part = tmp_path / f".{name}.0123456789abcdef{PART_SUFFIX}"
        part.touch()
        os.utime(part, (time.time() - age,) * 2)
    with written_aside(tmp_path / "other") as part:
        part.touch()
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == [".young", "other"]


KILLED = """
import resource, signal, sys
from pathlib import Path
import torch
from gmtool.artifacts.safetensors_io import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
write_tensors(Path(sys.argv[1]), {"x": torch.zeros(1 << 16)})
"""


def test_a_kill_while_a_library_writes_leaves_only_what_is_removed_as_unfinished(tmp_path: Path) -> None:
    """safetensors writes to a temporary file of its own before it renames it."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "weights")], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGXFSZ, ended.stderr
    assert [is_part(path) for path in tmp_path.iterdir()] == [True]
    (part,) = tmp_path.iterdir()
    assert list(part.iterdir())
    remove_parts(tmp_path, ABANDONED)
    assert part.exists()
    remove_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_is_cleared_of_its_own_half_files_alone(tmp_path: Path) -> None:
    """What another command writes into a folder in the run, such as its samples, is that command's."""
    places = [tmp_path / "run" / name for name in ("", "previews", "checkpoints", "samples", ".samples.gmtool/part")]
    for place in places:
        place.mkdir(parents=True)
        (place / f".x.0{PART_SUFFIX}").touch()
    with locked(tmp_path / "run"):
        left = [place.name for place in places if list(place.glob(f".*{PART_SUFFIX}"))]
    assert left == ["samples", "part"]


def test_names_are_short_enough_and_paths_may_go_up(tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 250):
        with pytest.raises(UserError, match=r"too long|cannot be used"):
            output_of(tmp_path / name, "latents")
    make(tmp_path / "a/b/../../c", "run")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert resolved(tmp_path / "a/b/../../c") == (tmp_path / "c").resolve()
    check_writable(tmp_path / "a/b/../../d", "it")


HOLD = """
import sys
from pathlib import Path
from gmtool.artifacts.outputs import output_of
with output_of(Path(sys.argv[1]), "gmm").locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_says_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "gmm.h5"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        who = rf"gmm.h5 is in use by process {other.pid} on {socket.gethostname()}: wait for it"
        with pytest.raises(UserError, match=who), output_of(path, "gmm").locked():
            raise AssertionError("not reached")
        with output_of(path, "gmm").locked(first=False):  # a process that helps the first
            pass
        other.kill()
    make(path, "gmm")  # the lock went with the process
    assert [entry.name for entry in tmp_path.iterdir()] == ["gmm.h5"]


def test_what_is_kept_to_a_process_cannot_be_written_by_another(tmp_path: Path) -> None:
    """Two evaluations of the same samples, or an evaluation of samples that are being made again."""
    path = artifact(tmp_path / "samples", "samples")
    with held_by_another(path) as other:
        for attempt in (output_of(path, "samples").locked(), kept_to_this_process(path, path)):
            with pytest.raises(UserError, match=rf"samples is in use by process {other}"), attempt:
                raise AssertionError("not reached")
    with kept_to_this_process(path, path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples"]


UNNAMED = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
time.sleep(0.1)
file.write(sys.argv[2])
file.flush()
if sys.argv[2]:
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["", "process 7 on a.host"])
def test_a_holder_that_begins_or_ends_has_no_name_for_a_moment(tmp_path: Path, name: str) -> None:
    """It may end, and the lock is this process's then; or say who it is, and that is said."""
    lock = tmp_path / "lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", UNNAMED, str(lock), name], text=True, **pipes) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        other.stdin.write("\n")
        other.stdin.flush()
        if name:
            with pytest.raises(UserError, match=f"^it is being written by {name}: "), held(lock, "it is being written"):
                raise AssertionError("not reached")
        else:
            with held(lock, "it is being written"):
                assert str(os.getpid()) in lock.read_text()


def test_a_holder_that_never_says_who_it_is_is_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmtool.artifacts.outputs.UNNAMED_SECONDS", 0.05)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", UNNAMED, str(tmp_path / "lock"), ""], text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="by another process: "), held(tmp_path / "lock", "it is being written"):
            raise AssertionError("not reached")


def test_where_there_are_no_locks_a_process_that_runs_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    lock = tmp_path / "lock"
    host = socket.gethostname()
    for holder in ("", "process 999999999 on " + host, f"process {os.getppid()} on another.host", "nonsense"):
        lock.write_text(holder)
        with held(lock, "it is being written"):
            assert str(os.getpid()) in lock.read_text()
    lock.write_text(f"process {os.getppid()} on {host}")
    with pytest.raises(UserError, match=f"by process {os.getppid()}"), held(lock, "it is being written"):
        raise AssertionError("not reached")


def test_what_was_begun_stays_for_the_same_command(tmp_path: Path) -> None:
    output = output_of(tmp_path / "gmm.h5", "gmm")
    with pytest.raises(KeyboardInterrupt), output.locked():
        fill(output)
        raise KeyboardInterrupt
    assert output.part.read_text() == "new"
    with output_of(tmp_path / "gmm.h5", "gmm").locked():
        output.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "samples", "samples")
    output = output_of(folder, "samples")
    output.work.mkdir()
    folder.rename(output.work / OLD)
    with output_of(folder, "samples").locked():
        assert (folder / "sampling.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


@pytest.mark.parametrize("kind", ["latents", "samples", "run"])
def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    path.mkdir() if kind in RECORDS else path.touch()
    monkeypatch.setattr("os.path.ismount", lambda place: Path(place) == path)
    with pytest.raises(
        UserError, match=r"out is a mount point, which cannot be replaced: (give a folder inside|choose)"
    ):
        output_of(path, kind)
    output_of(tmp_path / "other", kind)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("refused", ["rename", "replace"])
def test_a_rename_that_is_refused_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, number: int
) -> None:
    output = output_of(artifact(tmp_path / "samples", "samples"), "samples")
    before = (tmp_path / "samples/sampling.json").read_text()
    with output.locked():
        fill(output)
        output.pieces.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(Path, refused, refusing(getattr(Path, refused), number))
            with pytest.raises(UserError, match=r"samples is complete in .*part, but cannot be .*same command again"):
                output.publish()
        assert (tmp_path / "samples/sampling.json").read_text() == before
        assert output.part.is_dir() and output.pieces.is_dir()
        output.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def refusing(rename: Callable[[Path, Path], Path], number: int) -> Callable[[Path, Path], Path]:
    """A rename that the system refuses the first time."""
    calls: list[Path] = []

    def attempt(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))
        return rename(self, target)

    return attempt


def test_a_folder_that_an_earlier_replacement_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = artifact(tmp_path / "samples", "samples")
    output = output_of(path, "samples")
    for name in (OLD, f"{OLD}-12"):
        (output.work / name).mkdir(parents=True)
        (output.work / name / "notes.txt").write_text("the user's")
    make(path, "samples")
    assert "new" in (path / "sampling.json").read_text()
    assert len(list(output.work.rglob("notes.txt"))) == 2


def test_what_was_replaced_last_is_put_back(tmp_path: Path) -> None:
    output = output_of(tmp_path / "samples", "samples")
    output.work.mkdir()
    for name in ("b", "a"):
        artifact(tmp_path / name, "samples").rename(output.work / f"{OLD}-{name}")
        (output.work / f"{OLD}-{name}/images").mkdir()
        (output.work / f"{OLD}-{name}/images/{name}").touch()
    with output.locked():
        assert (tmp_path / "samples/images/a").exists()


def test_a_kill_while_the_rest_is_removed_leaves_nothing_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half removed must not be taken for what was made."""
    output = output_of(tmp_path / "samples", "samples")
    with output.locked():
        fill(output)
        output.pieces.mkdir()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("shutil.rmtree", interrupt)
            output.discard()
        assert not output.pieces.exists()
    with output_of(tmp_path / "samples", "samples").locked():
        output.discard()
    assert list(tmp_path.iterdir()) == []


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_hidden_folder_of_the_user_s_is_left_alone(tmp_path: Path) -> None:
    output = output_of(tmp_path / "gmm.h5", "gmm")
    output.work.mkdir()
    (output.work / "mine").touch()
    with pytest.raises(UserError, match="in the way, and gmtool did not make it"):
        output_of(tmp_path / "gmm.h5", "gmm")
    assert not (output.work / LOCK).exists()


def test_a_json_file_larger_than_any_record_is_not_read(tmp_path):
    path, text = tmp_path / "likelihood.json", Manifest("likelihood", "likelihood", "00", {}).to_json()
    path.write_text(text)
    assert kind_of(path) == "likelihood"
    path.write_text(text + " " * LARGEST_RECORD)  # the same manifest to a JSON parser
    assert kind_of(path) is None
