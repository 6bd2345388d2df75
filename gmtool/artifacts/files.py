"""Writing so that a file appears whole or not at all, and reading so that all that is wrong with it is one line."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gmtool.errors import MachineError, UserError
from gmtool.words import human_bytes, one_line

PART_SUFFIX = ".gmtool-part"
"""Ends the hidden name of what is being written."""

ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished file that nobody writes to is taken for what a killed process left."""

FLUSHES_AT_ONCE = 16
"""Files brought to the disk at a time: its journal takes many together in the time of one."""

LARGEST_RECORD = 64 << 20
"""Bytes of JSON in a file that is looked into before it is replaced."""

_DAMAGE = (
    *(OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError),
    *(EOFError, AssertionError, NotImplementedError, struct.error, zlib.error, zipfile.BadZipFile),
)
"""What h5py, numpy, json, zipfile and our own look-ups raise on a file that is not as it was written."""

_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the system that say nothing about the content of a file."""


def part_of(path: Path) -> Path:
    """The hidden name under which ``path`` is written until it is whole, in a folder that belongs to gmtool."""
    return path.with_name(f".{path.name}{PART_SUFFIX}")


def new_part_of(path: Path) -> Path:
    """As `part_of`, but a name that nobody else has."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{PART_SUFFIX}")


def work_folder(target: Path) -> Path:
    """The hidden folder beside an output, its links followed, in which it is made (`gmtool.artifacts.outputs`)."""
    return target.with_name(f".{target.name}.gmtool")


def is_part(path: Path) -> bool:
    """Whether ``path`` has the name of an unfinished file or folder, as `part_of` and `new_part_of` make them."""
    return path.name.startswith(".") and path.name.endswith(PART_SUFFIX)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` on success, remove it on failure.

    The name is hidden and nobody else's; the folder is made if need be, and what killed processes left there long ago
    is removed. The content is on the disk before the file has its name. A link is followed: its target is replaced.
    Raises UserError where ``path`` is a device or anything else that is no regular file.
    """
    target = resolved(path)
    if target.exists() and not target.is_file():
        raise UserError(f"{path} is not a regular file: choose another output")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(target.parent, ABANDONED)
    part = new_part_of(target)
    try:
        yield part
        flush_to_disk(part)
        part.replace(target)
        flush_to_disk(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_parts(folder: Path, age: float = 0.0) -> None:
    """Remove what is unfinished in a folder, which need not exist, and was not written to for ``age`` seconds.

    What cannot be removed stays.
    """
    for part in filter(is_part, folder.iterdir() if folder.is_dir() else ()):
        with suppress(OSError):  # its writer may be about to rename it
            written = max(path.stat().st_mtime for path in (part, *part.rglob("*")))
            if time.time() - written < age:
                continue
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()


def resolved(path: Path) -> Path:
    """``path`` with its links followed, whether or not something is there. Raises UserError where it leads nowhere."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # which raises for links in a circle; resolve() does so in some versions of Python alone
        return path.resolve()
    except OSError as error:
        reason = "it is a link to itself" if error.errno == errno.ELOOP else str(error.strerror).lower()
        raise UserError(f"{path} cannot be used ({reason}): choose another path") from error


@contextmanager
def reading(path: Path, repair: str) -> Iterator[None]:
    """Turn whatever goes wrong while ``path`` is read into one UserError that names it and ends in ``repair``.

    Our own errors pass, and those of the system that say nothing about the file's content.
    """
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
            raise
        raise UserError(f"{path} is damaged ({one_line(error)}): {repair}") from error


def flush_to_disk(path: Path) -> None:
    """Bring the content of a file or folder to the disk (fsync), so that a later rename is not written before it.

    Raises OSError where that fails; a folder on a file system that cannot do so, such as some network disks, is left.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def flush_tree(path: Path) -> None:
    """`flush_to_disk` for a file, or for a folder and all that is in it."""
    with ThreadPoolExecutor(FLUSHES_AT_ONCE) as threads:
        list(threads.map(flush_to_disk, (path, *path.rglob("*"))))


def check_writable(path: Path, what: str) -> None:
    """Raise UserError unless the file or folder ``path`` (named ``what`` in the message) can be created or replaced.

    Nothing is left behind: the nearest existing parent is probed. Devices and pipes are not replaced, nor opened.
    """
    named, path = path, resolved(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{what} {named} cannot be written: it is no regular file; choose another output")
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{what} {path} cannot be written: {parent} is not a folder")
    target = path if path.exists() else parent
    # access() alone says yes to root on a read-only mount's folders in some containers; the flags of the mount do not
    if not os.access(target, os.W_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise UserError(f"{what} {path} cannot be written: {target} is read-only; choose another output")


def json_in(path: Path) -> Any:
    """The JSON values in a file; None where it holds none, or more than a record of gmtool would."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= LARGEST_RECORD:
            return json.loads(path.read_bytes())
    return None


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that will hold ``path``."""
    parent = resolved(path).parent
    while not parent.exists():
        parent = parent.parent
    return shutil.disk_usage(parent).free


def check_space(path: Path, needed: int, what: str, inside: bool = False) -> None:
    """Raise MachineError when ``needed`` bytes for ``path`` (named ``what``) exceed the free disk.

    inside: whether it is a folder that stays and is filled, which may be the root of a disk.
    """
    free = free_bytes(path / "file" if inside else path)
    if needed > free:
        raise MachineError(
            f"{what} {path} needs {human_bytes(needed)}, but only {human_bytes(free)} are free there: free some, or "
            "choose another disk"
        )


def reserve(path: Path, size: int) -> None:
    """Give the file ``path``, created if need be, ``size`` bytes of disk at least.

    Raises MachineError where the disk, a quota or a limit on the size of files does not allow it.
    """
    with path.open("ab") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror).lower()
            raise MachineError(
                f"{path} cannot have the {human_bytes(size)} that it needs ({reason}): free some space, or choose "
                "another disk"
            ) from error
