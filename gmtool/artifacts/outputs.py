"""What a stage writes: where it is made, when it appears, and what it may replace.

An output is made in a hidden folder beside it, ``.NAME.gmtool/``, on the disk that will hold it:

    lock        locked by the process that works there, and says which one that is
    part        the file or folder, until it is whole
    pieces/     what it is put together from, where a stage makes it piece by piece
    state.npz   how far its making has come (`gmtool.artifacts.resume`)
    old-*       the folder that is being replaced, between two renames

All that resuming takes stays until the output is in its place, so that a failure to put it there costs no work.

Only what a manifest says is an output of the same kind is ever replaced; everything else is refused before any work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import h5py

from gmtool.artifacts import reconstruction, samples, sweep
from gmtool.artifacts.files import (
    LARGEST_RECORD,
    check_writable,
    flush_to_disk,
    flush_tree,
    is_part,
    new_part_of,
    resolved,
    work_folder,
)
from gmtool.artifacts.hdf5 import read_manifest
from gmtool.artifacts.manifest import KINDS, RECORDS, Kind, parse_manifest
from gmtool.artifacts.resume import STATE
from gmtool.errors import UserError
from gmtool.words import one_line

LOCK, PART, PIECES, OLD = "lock", "part", "pieces", "old"

STRANGERS: Mapping[str, Callable[[Path], tuple[str, ...]]] = {
    "samples": samples.strangers,
    "sweep": sweep.strangers,
    "reconstruction": reconstruction.strangers,
}
"""What is in a folder of a kind that gmtool did not put there, for the kinds whose folders are replaced."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system that has no locks."""

NAME_BYTES = 255
"""Longest name of a file on the usual file systems."""
UNNAMED_SECONDS = 10.0
"""How long a lock is tried again whose holder has not, or no longer, written who it is."""


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage makes. path: as the user named it; target: the same with its links followed."""

    path: Path
    target: Path
    kind: Kind

    @property
    def work(self) -> Path:
        """The hidden folder in which it is made."""
        return work_folder(self.target)

    @property
    def part(self) -> Path:
        """The path until the output is complete."""
        return self.work / PART

    @property
    def pieces(self) -> Path:
        """The folder of what the output is put together from, for a stage that makes it piece by piece."""
        return self.work / PIECES

    @contextmanager
    def locked(self, first: bool = True) -> Iterator[None]:
        """Keep the making of the output to this process, or to the first of several (the others pass, first=False).

        The hidden folder is there meanwhile; it stays when there is something to resume. Raises UserError, saying who,
        when another process is at it.
        """
        if not first:
            yield
            return
        with kept_to_this_process(self.path, self.target):
            self._recover()
            yield

    def publish(self) -> None:
        """Rename what was made to its final path, and then remove all that its making took.

        Raises UserError as `check` does, which looks again at what is replaced, and where the system refuses to rename;
        everything is then left as it was.
        """
        self.check()
        flush_tree(self.part)
        old = self.work / f"{OLD}-{secrets.token_hex(8)}"
        try:
            if self.target.is_dir():
                self.target.rename(old)
            self.part.replace(self.target)
        except OSError as error:
            if old.is_dir():
                old.rename(self.target)
            raise UserError(
                f"{self.path} is complete in {self.part}, but cannot be put in its place "
                f"({(error.strerror or one_line(error)).lower()}): move away what is there, and run the same command "
                "again"
            ) from error
        flush_to_disk(self.target.parent)
        (self.work / STATE).unlink(missing_ok=True)
        for path in (old, self.pieces):
            _remove(path)

    def discard(self) -> None:
        """Remove what was begun: the state first, since it says that the rest can be used."""
        (self.work / STATE).unlink(missing_ok=True)
        for path in (self.pieces, self.part):
            _remove(path)

    def check(self) -> None:
        """Raise UserError unless the output can be written, and there is nothing that it must not replace."""
        words, path = KINDS[self.kind][0], self.path
        if len(os.fsencode(self.work.name)) > NAME_BYTES:
            raise UserError(f"{path.name[:40]}... is too long a name for {words}: choose a shorter one")
        check_writable(path, words.replace("a ", "the ", 1))
        if self.target.exists():
            if self.kind in RECORDS:
                self._check_folder()
            else:
                self._check_file()
            if os.path.ismount(self.target):
                other = "give a folder inside it" if self.kind in RECORDS else "choose another name"
                raise UserError(f"{path} is a mount point, which cannot be replaced: {other}")
        if self.work.exists() and (
            not self.work.is_dir()
            or self.work.is_symlink()
            or any(
                entry.name not in (LOCK, PART, PIECES, STATE) and not _is_old(entry) and not is_part(entry)
                for entry in _in(self.work)
            )
        ):
            raise UserError(f"{self.work} is in the way, and gmtool did not make it: move it away")

    def _check_file(self) -> None:
        path, noun = self.path, KINDS[self.kind][0].removeprefix("a ")
        if self.target.is_dir():
            raise UserError(f"the {noun} {path} cannot be written: it is a folder; give a file name in it")
        kind = kind_of(self.target)
        if self.target.stat().st_size and kind != self.kind:
            if kind is not None and kind in KINDS:
                raise UserError(f"{path} is {KINDS[kind][0]} and would be overwritten: choose another output")
            raise UserError(f"{path} exists and is no {noun} that can be read: choose another name, or remove it")

    def _check_folder(self) -> None:
        path, noun = self.path, KINDS[self.kind][0].removeprefix("a ")
        if not self.target.is_dir():
            raise UserError(f"{path} is a file: choose another folder for the {noun}")
        if Path.cwd().is_relative_to(self.target):
            raise UserError(f"{path} holds the current folder, which the {noun} would replace: choose another folder")
        if not _in(self.target):
            return
        if self.kind not in STRANGERS:
            raise UserError(f"{path} exists: choose another folder for the {noun}")
        if kind_of(self.target) != self.kind:
            things = KINDS[self.kind][0].removeprefix("a folder of ")
            raise UserError(f"{path} holds other things than {things}: choose another folder")
        if strangers := STRANGERS[self.kind](self.target):
            raise UserError(
                f"{path} holds {strangers[0]}, which gmtool did not make: move it away, or choose another folder"
            )

    def _recover(self) -> None:
        """Put back, or remove, the folder that a killed process was replacing; remove what it was writing.

        What it was about to put there is still in `part`, with all that the stage takes to publish it now.
        """
        for half in filter(is_part, _in(self.work)):
            _clear(half)
        replaced = sorted(filter(_is_old, _in(self.work)), key=lambda old: old.stat().st_ctime)
        if replaced and not self.target.exists():
            replaced.pop().rename(self.target)
        for old in replaced:
            if not STRANGERS.get(self.kind, _in)(old):
                _remove(old)


def output_of(path: Path, kind: Kind) -> Output:
    """The output ``path`` of a stage. Raises UserError where it cannot be written or must not be replaced."""
    output = Output(path, resolved(path), kind)
    output.check()
    return output


def kind_of(path: Path) -> str | None:
    """The kind of an artifact, as its manifest says; None for anything without a readable manifest."""
    try:
        if path.is_dir():
            record = next((path / name for name in RECORDS.values() if (path / name).is_file()), None)
            return None if record is None else parse_manifest(record.read_bytes(), record).kind
        if not path.is_file():
            return None
        if path.suffix == ".json":
            return None if path.stat().st_size > LARGEST_RECORD else parse_manifest(path.read_bytes(), path).kind
        if not h5py.is_hdf5(path):
            return None
        with h5py.File(path, "r", locking="best-effort") as file:
            return read_manifest(file, path).kind
    except (UserError, OSError, RuntimeError, LookupError, ValueError):
        return None


@contextmanager
def kept_to_this_process(path: Path, target: Path) -> Iterator[None]:
    """Hold the lock beside an output, named ``path`` by the user, at ``target``.

    The hidden folder is there meanwhile; it stays when there is something to resume. Raises UserError, saying who, when
    another process is at it.
    """
    work = work_folder(target)
    with held(work / LOCK, f"{path} is in use"):
        try:
            yield
        finally:
            if not ((work / PART).exists() or (work / STATE).exists()):
                (work / LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # something of the user's, which is left to them
                    work.rmdir()


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file ``path``, made in a folder that is made if need be. Raises UserError, beginning with ``busy``
    and saying who, when another process holds it.

    The lock is the process's own: worker processes do not inherit it, and it goes with the process, however that ends.
    """
    with _locked_file(path, busy) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _locked_file(path: Path, busy: str) -> IO[str]:
    """The lock file, opened and locked. A holder that has not said who it is has just begun or is about to end, so the
    lock is tried again for a moment.
    """
    patience = time.monotonic() + UNNAMED_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:  # another process has just finished there, and removed the folder
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                taken = True
            elif error.errno in _NO_LOCKS:
                taken = _is_alive(holder)  # some network file systems have no locks: what is written there must do
            else:
                file.close()
                raise
            if taken:
                file.close()
                if not holder and time.monotonic() < patience:
                    time.sleep(UNNAMED_SECONDS / 100)
                    continue
                by = f" by {holder}" if holder else " by another process"
                raise UserError(f"{busy}{by}: wait for it, or choose another output") from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # it was removed before it was locked


def _is_alive(holder: str) -> bool:
    """Whether the process that a lock file names is another one on this machine that runs."""
    words = holder.split()
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdecimal():
        return False
    pid = int(words[1])
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return pid != os.getpid()


def _is_old(path: Path) -> bool:
    """Whether ``path`` has the name of a folder that is being replaced."""
    return path.name.partition("-")[0] == OLD and path.is_dir()


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there. A kill leaves it whole, or under the name of what is unfinished."""
    if path.exists():
        _clear(path.rename(new_part_of(path)))


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _in(folder: Path) -> list[Path]:
    return list(folder.iterdir())
