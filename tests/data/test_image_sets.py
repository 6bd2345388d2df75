"""Finding images: trees, flat folders and archives give the same names, labels and bytes in the same order."""

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gmtool.data.file_trees import HIDDEN, FileReader
from gmtool.data.image_sets import NO_IMAGES, expect_outside, find_images, spread
from gmtool.errors import UserError

TREE = ["a/2.png", "a/10.JPG", "a-b/1.webp", "b/deep/1.png", "b/é.png"]
NOISE = ["labels.csv", ".hidden/3.png", "a/._2.png", "__MACOSX/a/._2.png", "b/.DS_Store"]


def make(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"bytes of {name}".encode())
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "images", TREE + NOISE)


def to_zip(folder: Path, prefix: str) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return path


def to_tar(folder: Path, prefix: str) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.add(file, f"{prefix}{file.relative_to(folder)}", recursive=False)
    return path


def compressed(compress: Callable[[bytes], bytes], suffix: str) -> Callable[[Path, str], Path]:
    def pack(folder: Path, prefix: str) -> Path:
        plain = to_tar(folder, prefix)
        path = plain.with_name(plain.name + suffix)
        path.write_bytes(compress(plain.read_bytes()))
        return path

    return pack


PACKERS = {
    "zip": to_zip,
    "tar": to_tar,
    "tar.gz": compressed(gzip.compress, ".gz"),
    "tar.bz2": compressed(bz2.compress, ".bz2"),
    "tar.xz": compressed(lzma.compress, ".xz"),
}


def test_a_tree_is_sorted_by_class_then_path(folder: Path) -> None:
    images = find_images(folder)
    assert images.names == ("a/10.JPG", "a/2.png", "a-b/1.webp", "b/deep/1.png", "b/é.png")
    assert images.classes == ("a", "a-b", "b")
    assert images.labels.tolist() == [0, 0, 1, 2, 2]
    kinds = {kind.reason: kind for kind in images.left_out}
    assert kinds[NO_IMAGES].names == ("labels.csv",)
    assert kinds[HIDDEN].count == 4  # two files, two folders
    assert len(images) == 5


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    images = find_images(make(tmp_path / "flat", ["2.png", "1.png"]))
    assert images.names == ("1.png", "2.png")
    assert images.classes == ()
    assert images.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("prefix", ["", "images/", "./"])
@pytest.mark.parametrize("packer", PACKERS)
def test_archives_hold_what_the_folder_holds(folder: Path, packer: str, prefix: str) -> None:
    expected = find_images(folder)
    archive = PACKERS[packer](folder, prefix)
    images = find_images(archive)
    assert images.root == archive
    assert (images.names, images.classes) == (expected.names, expected.classes)
    assert images.labels.tolist() == expected.labels.tolist()
    assert images.listing == expected.listing
    reader = FileReader(images.files)
    for index in [4, 0, 2, 1, 3]:
        assert reader.read(index) == f"bytes of {images.names[index]}".encode()


def test_the_fingerprint_follows_names_and_sizes(folder: Path) -> None:
    first = find_images(folder).fingerprint
    (folder / "a/2.png").write_bytes(b"longer than it was before, by far")
    second = find_images(folder).fingerprint
    (folder / "a/2.png").rename(folder / "a/3.png")
    assert len({first, second, find_images(folder).fingerprint}) == 3


def test_links_are_followed_but_not_in_circles(folder: Path) -> None:
    (folder / "c").symlink_to(folder / "b", target_is_directory=True)
    (folder / "b/loop").symlink_to(folder, target_is_directory=True)
    images = find_images(folder)
    assert images.names[-2:] == ("c/deep/1.png", "c/é.png")
    assert len(images) == 7


def test_the_last_of_members_with_one_name_counts(folder: Path) -> None:
    path = to_tar(folder, "")
    (folder / "a/2.png").write_bytes(b"updated")
    with tarfile.open(path, "a") as archive:
        archive.add(folder / "a/2.png", "a/2.png")
    images = find_images(path)
    assert len(images) == 5
    assert FileReader(images.files).read(images.names.index("a/2.png")) == b"updated"


def test_errors_name_the_path_and_the_repair(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 2000)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04" + b"x" * 50 + b"PK\x05\x06" + b"\x01" * 18)
    (tmp_path / "broken.tar.gz").write_bytes(gzip.compress(os.urandom(5000))[:3000])
    make(tmp_path / "others", ["notes.txt"])
    (tmp_path / "empty").mkdir()
    for name, words in {
        "missing": "does not exist",
        "text": "neither a folder nor a .zip or .tar",
        "broken.zip": "damaged archive",
        "broken.tar.gz": "damaged archive",
        "others": r"holds no images \(of 1 files\)",
        "empty": "holds no images",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            find_images(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"not UTF-8.*rename"):
        find_images(tmp_path)


def test_a_limit_spreads_evenly() -> None:
    assert spread(10, None).tolist() == list(range(10))
    assert spread(10, 20).tolist() == list(range(10))
    assert spread(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert spread(10, 1).tolist() == [0]
    gaps = np.diff(spread(1000, 77))
    assert set(gaps.tolist()) == {12, 13}


def test_pictures_are_not_made_among_the_images_that_they_are_made_from(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "link").symlink_to(images)
    for inside in (images / "run", tmp_path / "link" / "a" / "run", images):
        with pytest.raises(UserError, match=r"lies in .*images, and its pictures would be among those images"):
            expect_outside(inside, images)
    expect_outside(tmp_path / "run", images)
    expect_outside(tmp_path / "images-run", tmp_path / "link")
