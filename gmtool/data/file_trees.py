"""The files of a folder, a .zip or a .tar (also compressed): their paths, where their bytes are, and what is left out.

Paths have forward slashes and are relative to the root; in an archive, one top-level folder that holds everything is
not part of them. Links are followed: on disk to files and folders, but not into a folder that encloses them, and a
folder is entered once below each top-level one; in an archive to what the archive itself holds.
"""

from __future__ import annotations

import atexit
import bz2
import gzip
import lzma
import os
import posixpath
import stat
import tarfile
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

from gmtool.artifacts.files import check_space
from gmtool.errors import FULL, GmtoolError, UserError
from gmtool.words import human_bytes, one_line

LARGEST = 2**30
"""Bytes of a file that is read whole; of a larger one only the size is looked at."""
UNPACKED_AT_ONCE = 2**28
"""Bytes of a compressed tar that are unpacked before the free space is looked at again."""
LONGEST_LINK = 4096
"""Bytes of a link's target; and links of links are followed 40 times, as Linux does."""

HIDDEN, SPECIAL, LOST, ENCLOSING, AGAIN, REPLACED = (
    "hidden files and folders",
    "pipes, sockets and devices",
    "links that lead nowhere, or out of the archive",
    "links to a folder that encloses them",
    "links to a folder that is there already",
    "members of an archive that a later one of the same name replaces",
)

_DECOMPRESS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True)
class File:
    """A file: its path, its size in bytes, its place for `FileReader`, and a number that changes with its content.

    place: the path on disk, the name in a zip, or in a tar (offset, size) and, of a sparse member, the runs (start,
    length) that it has data for. stamp: in a zip its CRC-32, else the time of the last change, in nanoseconds, of the
    file or of the tar that holds it.
    """

    path: str
    size: int
    place: Any
    stamp: int


@dataclass(frozen=True)
class LeftOut:
    """A path that is left out of the files, and the reason, in words that all paths left out for it share."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class FilePlaces:
    """Where files are: the kind of storage, the folder or archive, and the place of each file in it (`File.place`)."""

    kind: Literal["folder", "zip", "tar"]
    store: Path
    places: Sequence[Any]


@dataclass(frozen=True, eq=False)
class FileTree:
    """What a folder or archive holds, in no particular order.

    store: the folder or archive; for a compressed tar, a decompressed copy that is removed when the process ends.
    """

    kind: Literal["folder", "zip", "tar"]
    store: Path
    files: tuple[File, ...]
    left_out: tuple[LeftOut, ...]


def list_files(path: Path) -> FileTree:
    """The files of a folder, .zip or .tar.

    Raises UserError when it is missing, neither of these, damaged, encrypted or not readable; MachineError when the
    disk of temporary files has no space for the decompressed copy of a compressed tar; OSError when a folder below
    ``path`` cannot be read.
    """
    with _named(path):
        if path.is_dir():
            return _tree("folder", path, _of_folder(path))
        if not path.exists():
            raise UserError(f"{path} does not exist: give a folder, .zip or .tar of images")
        if not path.is_file():
            raise UserError(f"{path} is a pipe or a device: give a folder, .zip or .tar of images")
        store = _plain_tar(path)
        # in this order: a tar may end in a zip, and then looks like that zip
        if _is_tar(store):
            return _without_common_folder(_tree("tar", store, _of_tar(store, path.stat().st_mtime_ns)))
        if zipfile.is_zipfile(path):
            return _without_common_folder(_tree("zip", path, _of_zip(path)))
    raise UserError(f"{path} is neither a folder nor a .zip or .tar archive: give one that holds images")


class FileReader:
    """The bytes of files. An archive is opened by the process that reads, never shared with a forked one."""

    def __init__(self, files: FilePlaces) -> None:
        self._files = files
        self._archive: zipfile.ZipFile | IO[bytes] | None = None
        self._owner = 0

    def __getstate__(self) -> dict[str, object]:
        return {"_files": self._files, "_archive": None, "_owner": 0}

    def read(self, index: int) -> bytes:
        """The bytes of file ``index``.

        Raises ValueError for a file of more than `LARGEST` bytes, OSError or an error of zipfile or zlib when it cannot
        be read.
        """
        files, place = self._files, self._files.places[index]
        if files.kind == "folder":
            path = files.store / str(place)
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is no longer a file")
            _check_size(status.st_size)
            return path.read_bytes()
        if self._archive is None or self._owner != os.getpid():
            self._archive = zipfile.ZipFile(files.store) if files.kind == "zip" else files.store.open("rb")
            self._owner = os.getpid()
        if isinstance(self._archive, zipfile.ZipFile):
            _check_size(self._archive.getinfo(str(place)).file_size)
            return self._archive.read(str(place))
        offset, size, *sparse = place
        _check_size(int(size))
        self._archive.seek(int(offset))
        if not sparse:
            return self._bytes(int(size))
        content = bytearray(int(size))
        for start, length in sparse[0]:
            content[start : start + length] = self._bytes(length)
        return bytes(content)

    def _bytes(self, count: int) -> bytes:
        """The next bytes of a tar, which may have been cut short since its members were listed."""
        content = cast("IO[bytes]", self._archive).read(count)
        if len(content) < count:
            raise OSError("the archive ends within it")
        return content


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"it is {human_bytes(size)}, and a file of more than {human_bytes(LARGEST)} is not read")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever the readers of archives meet in damaged data into one line with the archive's name."""
    try:
        yield
    except GmtoolError:
        raise
    except OSError as error:
        if error.errno is not None:  # the system's own: no permission, a full disk, a name that is too long
            if error.errno in FULL:  # that of temporary files
                raise
            if error.filename is None or str(error.filename) == str(path):
                raise UserError(f"{path}: {error.strerror}") from error
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # struct, zlib, lzma, Unicode, recursion, memory: broken data raise anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    reason = one_line(error)
    return UserError(f"{path} is a damaged archive ({reason}): make or fetch it again")


def _tree(kind: Literal["folder", "zip", "tar"], store: Path, entries: Iterator[File | LeftOut]) -> FileTree:
    """The entries sorted out; of several with one path, the last counts, as tar does."""
    unique: dict[str, File] = {}
    left_out: list[LeftOut] = []
    for entry in entries:
        if isinstance(entry, LeftOut):
            left_out.append(entry)
        elif is_hidden(entry.path):
            left_out.append(LeftOut(entry.path, HIDDEN))
        else:
            if entry.path in unique:
                left_out.append(LeftOut(entry.path, REPLACED))
            unique[entry.path] = entry
    return FileTree(kind, store, tuple(unique.values()), tuple(left_out))


def is_hidden(path: str) -> bool:
    """Whether a part of a path begins with a dot, or is the folder __MACOSX that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _of_folder(root: Path) -> Iterator[File | LeftOut]:
    """All files below a folder, real folders before those behind links, so that a link never takes a folder's place."""
    # prefix, the real paths of the folders that enclose it, and which top-level folder it is below
    pending: deque[tuple[str, tuple[str, ...]]] = deque([("", (os.path.realpath(root),))])
    linked: deque[tuple[str, tuple[str, ...]]] = deque()
    entered: set[tuple[str, str]] = set()
    while pending or linked:
        prefix, ancestors = pending.popleft() if pending else linked.popleft()
        top = prefix.partition("/")[0]
        if (top, ancestors[-1]) in entered:
            yield LeftOut(prefix, AGAIN)
            continue
        entered.add((top, ancestors[-1]))
        with os.scandir(root / prefix) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{prefix}{entry.name}"
            try:
                mode = 0 if is_hidden(entry.name) else entry.stat().st_mode
            except OSError:  # a link to nothing, or to itself
                yield LeftOut(path, LOST)
                continue
            if not mode:
                yield LeftOut(path, HIDDEN)
            elif stat.S_ISDIR(mode):
                real = os.path.realpath(entry.path)
                if real in ancestors:
                    yield LeftOut(path, ENCLOSING)
                else:
                    (linked if entry.is_symlink() else pending).append((f"{path}/", (*ancestors, real)))
            elif stat.S_ISREG(mode):
                yield File(path, entry.stat().st_size, path, entry.stat().st_mtime_ns)
            else:
                yield LeftOut(path, SPECIAL)


def _of_zip(path: Path) -> Iterator[File | LeftOut]:
    files: dict[str, File] = {}
    links: dict[str, str] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # some programs of Windows write backslashes, against the format's letter
            name = _relative(member.filename.replace("\\", "/"))
            if member.filename.endswith(("/", "\\")):
                continue
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted ({member.filename}): unpack it, and give the folder")
            if stat.S_ISLNK(member.external_attr >> 16) and member.file_size <= LONGEST_LINK:
                links[name] = _beside(name, archive.read(member).decode(errors="surrogateescape"))
                continue
            if name in files:
                yield LeftOut(name, REPLACED)
            files[name] = File(name, member.file_size, member.filename, member.CRC)
    yield from files.values()
    yield from _resolved(files, links)


def _of_tar(path: Path, changed: int) -> Iterator[File | LeftOut]:
    """changed: when the archive was, in nanoseconds."""
    files: dict[str, File] = {}
    links: dict[str, str] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = _relative(member.name)
            links.pop(name, None)
            if name in files and not member.isdir():
                yield LeftOut(name, REPLACED)
                del files[name]
            if member.isreg():
                sparse: Any = member.sparse
                place = (member.offset_data, member.size, *(() if sparse is None else (tuple(sparse),)))
                files[name] = File(name, member.size, place, changed)
            elif member.islnk():
                links[name] = _relative(member.linkname)
            elif member.issym():
                links[name] = _beside(name, member.linkname)
            elif not member.isdir():
                yield LeftOut(name, SPECIAL)
        _check_end(path, archive.offset)
    yield from files.values()
    yield from _resolved(files, links)


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _check_end(path: Path, offset: int) -> None:
    """Raise UserError unless a tar has its end mark at ``offset``, where its last member ends, and nothing after it."""
    with path.open("rb") as file:
        file.seek(offset)
        mark = file.read(tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE:
            raise UserError(f"{path} was cut short: it lacks the end mark of a tar; make or fetch it again")
        if mark.strip(b"\0"):
            raise UserError(f"{path} is a damaged archive (no member begins at byte {offset}): make or fetch it again")
        while block := file.read(2**20):
            if block.strip(b"\0"):
                raise UserError(
                    f"{path} holds further data after its end, such as a second tar: unpack it, and give the folder"
                )


def _beside(link: str, target: str) -> str:
    """The path in the archive of what a link's target says; one that leads out of it begins with .. or /."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), target.replace("\\", "/")))


def _resolved(files: Mapping[str, File], links: Mapping[str, str]) -> Iterator[File | LeftOut]:
    """What the links of an archive lead to, under the links' names."""
    folders = {path[:end] for path in files for end, letter in enumerate(path) if letter == "/"} if links else set()
    for link, target in links.items():
        for _ in range(40):
            if target not in links:
                break
            target = links[target]
        if target in files:
            yield replace(files[target], path=link)
        elif target not in folders and target != ".":
            yield LeftOut(link, LOST)
        elif target == "." or f"{link}/".startswith(f"{target}/"):
            yield LeftOut(link, ENCLOSING)
        else:
            for path, file in files.items():
                if path.startswith(f"{target}/"):
                    yield replace(file, path=link + path[len(target) :])


def _relative(member: str) -> str:
    """A member's path without a leading ./ or /."""
    return posixpath.normpath(member.lstrip("/"))


def _plain_tar(path: Path) -> Path:
    """``path``, or when it is compressed a decompressed copy, for the time of this process, in the temporary folder.

    A compressed tar can only be read from front to back, which is neither our order nor possible for several workers.
    """
    with path.open("rb") as file:
        head = file.read(8)
    decompress = next((opener for magic, opener in _DECOMPRESS.items() if head.startswith(magic)), None)
    if decompress is None:
        return path
    handle, name = tempfile.mkstemp(prefix="gmtool-", suffix=".tar")
    copy = Path(name)
    atexit.register(_remove, copy, os.getpid())
    try:
        with os.fdopen(handle, "wb") as plain, decompress(path) as compressed:
            while True:
                check_space(copy, UNPACKED_AT_ONCE, f"{path} unpacked to")
                for _ in range(UNPACKED_AT_ONCE // 2**20):
                    if not (block := compressed.read(2**20)):
                        return copy
                    plain.write(block)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _remove(copy: Path, owner: int) -> None:
    if os.getpid() == owner:  # forked workers inherit the exit handlers
        copy.unlink(missing_ok=True)


def _without_common_folder(tree: FileTree) -> FileTree:
    """The tree with the one top-level folder that holds all files taken off their paths."""
    tops = {file.path.partition("/")[0] if "/" in file.path else "" for file in tree.files}
    if len(tops) != 1 or tops == {""}:
        return tree
    cut = len(next(iter(tops))) + 1
    return replace(tree, files=tuple(replace(file, path=file.path[cut:]) for file in tree.files))
