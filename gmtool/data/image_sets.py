"""Finding images: a class-folder tree or a flat folder, on disk, in a .zip or in a .tar (also compressed).

The order is that of the paths, folder by folder, and does not depend on the file system. In a tree, an image's class
is its top-level folder; an image that lies beside the class folders has none. Where a ``dataset.json`` gives labels, as
in the archives of StyleGAN and EDM, these are the classes, and the folders mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from gmtool.artifacts.files import resolved
from gmtool.artifacts.manifest import fingerprint
from gmtool.data.file_trees import File, FilePlaces, FileReader, FileTree, LeftOut, list_files
from gmtool.errors import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".avif"),
)
"""File names, in lower case, that are taken for images; other files are counted and left out."""
LABELS = "dataset.json"
"""At the root of a folder or archive of StyleGAN or EDM: the label of each image."""
NO_IMAGES = "files that are no images"
LISTED = 5
"""Names that are listed of each kind of what is left out."""


@dataclass(frozen=True)
class LeftOutKind:
    """Things left out for one reason: their number, and the names of the first few."""

    reason: str
    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.count:,} {self.reason} ({', '.join(self.names)}{more})"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images that were found, in order.

    root: what the user named. names: paths relative to it, with forward slashes. labels: int64, index into classes or
    -1. classes: sorted names of top-level folders, or the numbers of a ``dataset.json``; empty where there are none.
    bytes: size of all. left_out: what is not among the images. files: how to read image i (`FileReader`).
    fingerprint: digest of names, sizes and times of change (or checksums). listing: digest of names and sizes alone,
    which older files name the images by.
    """

    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    bytes: int
    left_out: tuple[LeftOutKind, ...]
    files: FilePlaces
    fingerprint: str
    listing: str

    def __len__(self) -> int:
        return len(self.names)

    def is_known_by(self, recorded: str) -> bool:
        """Whether these are the images that a manifest records by a fingerprint."""
        return recorded in (self.fingerprint, self.listing)


def find_images(path: Path) -> ImageSet:
    """The images of a folder, .zip or .tar.

    Raises as `list_files` does, and UserError when it holds no images, when an image's name is not UTF-8, and when a
    ``dataset.json`` is damaged or lacks the label of an image.
    """
    root = Path(path)
    tree = list_files(root)
    images = [file for file in tree.files if PurePosixPath(file.path).suffix.lower() in SUFFIXES]
    others = [LeftOut(file.path, NO_IMAGES) for file in tree.files if _is_other(file)]
    if not images:
        raise UserError(
            f"{root} holds no images (of {len(tree.files)} files): give a folder or archive of JPEG, PNG, ..."
        )
    images.sort(key=lambda file: file.path.split("/"))
    for file in images:
        if not _is_unicode(file.path):
            raise UserError(f"{root} holds a file whose name is not UTF-8, {file.path!a}: rename it")
    labels, classes = _labelled(root, tree, images)
    places = [file.place for file in images]
    uniform = tree.kind == "tar" and all(len(place) == 2 for place in places)
    return ImageSet(
        root=root,
        names=tuple(file.path for file in images),
        labels=labels,
        classes=classes,
        bytes=sum(file.size for file in images),
        left_out=_by_reason([*others, *tree.left_out]),
        files=FilePlaces(tree.kind, tree.store, np.array(places, dtype=np.int64) if uniform else tuple(places)),  # type: ignore[arg-type]  # numbers in rows
        fingerprint=fingerprint(part for file in images for part in (file.path, str(file.size), str(file.stamp))),
        listing=fingerprint(part for file in images for part in (file.path, str(file.size))),
    )


def expect_outside(output: Path, images: Path) -> None:
    """Raise UserError if an output that contains pictures would lie among the images that it is made from."""
    if resolved(output).is_relative_to(resolved(images)):
        raise UserError(
            f"{output} lies in {images}, and its pictures would be among those images: choose another place"
        )


def spread(count: int, limit: int | None) -> np.ndarray:
    """Indices (n,), increasing, of at most ``limit`` of ``count`` things, evenly spaced; of all without a limit."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


def _is_other(file: File) -> bool:
    return file.path != LABELS and PurePosixPath(file.path).suffix.lower() not in SUFFIXES


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _by_reason(left_out: Iterable[LeftOut]) -> tuple[LeftOutKind, ...]:
    """What is left out, by its reasons."""
    names: dict[str, list[str]] = {}
    for item in left_out:
        names.setdefault(item.reason, []).append(item.path.encode(errors="backslashreplace").decode())
    return tuple(LeftOutKind(reason, len(paths), tuple(sorted(paths)[:LISTED])) for reason, paths in names.items())


def _labelled(root: Path, tree: FileTree, images: Sequence[File]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The label of each image, int64, and the names of the classes."""
    record = next((file for file in tree.files if file.path == LABELS), None)
    labels_by_path = None if record is None else _read_labels(root, tree, record)
    if labels_by_path is None:
        folders = [file.path.split("/")[0] if "/" in file.path else None for file in images]
        classes = tuple(sorted({folder for folder in folders if folder is not None}))
        number = {name: index for index, name in enumerate(classes)}
        return np.array([-1 if folder is None else number[folder] for folder in folders], np.int64), classes
    if not labels_by_path:
        return np.full(len(images), -1), ()
    missing = [file.path for file in images if file.path not in labels_by_path]
    if missing:
        raise UserError(
            f"{root}: {LABELS} has no label for {missing[0]} ({len(missing):,} such images): add them, or remove it"
        )
    numbers, labels = np.unique([labels_by_path[file.path] for file in images], return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, numbers.tolist()))


def _read_labels(root: Path, tree: FileTree, record: File) -> Mapping[str, int] | None:
    """The labels of a ``dataset.json`` by path; empty where it says that there are none, None where it is another file.

    Raises UserError when it is damaged, or its labels are no whole numbers.
    """
    whose = f"{root}: {LABELS}"
    try:
        content = json.loads(FileReader(FilePlaces(tree.kind, tree.store, (record.place,))).read(0))
    except Exception as error:  # JSON, text, recursion, or the archive
        raise UserError(f"{whose} cannot be read ({' '.join(str(error).split())}): repair or remove it") from error
    if not isinstance(content, Mapping) or "labels" not in content:
        return None
    pairs = content["labels"]
    if isinstance(pairs, Mapping):
        pairs = list(pairs.items())
    if pairs is None:
        return {}
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{whose}: labels must be a list of [file, label]: repair or remove it")
    for name, label in pairs:
        if not (isinstance(name, str) and type(label) is int and 0 <= label < 2**31):
            raise UserError(f"{whose}: the label of {name!r} must be a whole number of at least 0, not {label!r}")
    return {name.replace("\\", "/"): label for name, label in pairs}
