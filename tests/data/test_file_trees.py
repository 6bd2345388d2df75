"""Folders and archives as people have them: nothing vanishes unnamed, nothing hangs, damage is one line."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gmtool.data import file_trees
from gmtool.data.file_trees import AGAIN, ENCLOSING, LOST, REPLACED, SPECIAL, FileReader
from gmtool.data.image_sets import NO_IMAGES, ImageSet, find_images
from gmtool.errors import UserError

CONTENT = {name: f"bytes of {name}".encode() for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")}


def left_out(images: ImageSet) -> dict[str, tuple[str, ...]]:
    return {kind.reason: kind.names for kind in images.left_out}


def contents(images: ImageSet) -> dict[str, bytes]:
    reader = FileReader(images.files)
    return {name: reader.read(index) for index, name in enumerate(images.names)}


def write_tar(path: Path, members: dict[str, bytes | tuple[bytes, str]]) -> Path:
    """A tar of files and, as (type, target), of links."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                archive.addfile(member)
    return path


def write_zip(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, target)
    return path


LINKS = {
    "c/1.png": "../a/1.png",  # beside
    "c/chain.png": "1.png",  # of a link
    "d": "b",  # a class that is another's folder
    "a/lost.png": "nowhere.png",
    "a/out.png": "../../etc/passwd.png",
    "a/self.png": "self.png",
    "b/loop": "../b",
}
LINKED = CONTENT | {
    "c/1.png": CONTENT["a/1.png"],
    "c/chain.png": CONTENT["a/1.png"],
    "d/1.png": CONTENT["b/1.png"],
    "d/2.png": CONTENT["b/2.png"],
}
LINKS_LEFT_OUT = {LOST: ("a/lost.png", "a/out.png", "a/self.png"), ENCLOSING: ("b/loop",)}


def test_links_in_a_tar_are_what_they_lead_to(tmp_path: Path) -> None:
    links: dict[str, bytes | tuple[bytes, str]] = {name: (tarfile.SYMTYPE, to) for name, to in LINKS.items()}
    images = find_images(write_tar(tmp_path / "x.tar", CONTENT | links))
    assert contents(images) == LINKED
    assert images.classes == ("a", "b", "c", "d")
    assert left_out(images) == LINKS_LEFT_OUT


def test_links_in_a_zip_are_what_they_lead_to(tmp_path: Path) -> None:
    images = find_images(write_zip(tmp_path / "x.zip", CONTENT, LINKS))
    assert contents(images) == LINKED
    assert left_out(images) == LINKS_LEFT_OUT


def test_links_on_disk_are_what_they_lead_to(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name, content in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "c").mkdir()
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    images = find_images(root)
    assert contents(images) == LINKED
    assert left_out(images) == LINKS_LEFT_OUT | {ENCLOSING: ("b/loop", "d/loop")}


def test_hard_links_in_a_tar_are_images(tmp_path: Path) -> None:
    """As tar makes them: every file after the first of one content is a link to it, by its path in the archive."""
    root = tmp_path / "images"
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        (root / name).parent.mkdir(parents=True)
        if name == "a/1.png":
            (root / name).write_bytes(b"one content")
        else:
            os.link(root / "a/1.png", root / name)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root, "images")
    images = find_images(tmp_path / "x.tar")
    assert contents(images) == dict.fromkeys(("a/1.png", "b/2.png", "c/3.png"), b"one content")
    assert images.classes == ("a", "b", "c")
    assert images.left_out == ()


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("kind", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.1"]])
def test_sparse_members_have_their_holes(tmp_path: Path, kind: list[str]) -> None:
    root = tmp_path / "images/a"
    root.mkdir(parents=True)
    content = bytes(2**17) + b"between" * 1000 + bytes(2**18) + b"end"
    with (root / "1.png").open("wb") as file:  # holes are made by seeking over them
        file.seek(2**17)
        file.write(b"between" * 1000)
        file.seek(2**18, os.SEEK_CUR)
        file.write(b"end")
    (root / "2.png").write_bytes(b"whole")
    subprocess.run(["tar", "-S", *kind, "-cf", "x.tar", "images"], cwd=tmp_path, check=True)
    images = find_images(tmp_path / "x.tar")
    assert images.files.store.stat().st_size < 2**17, "the file system keeps no holes"
    read = contents(images)
    assert list(read) == ["a/1.png", "a/2.png"]
    assert read["a/1.png"] == content and read["a/2.png"] == b"whole"


@pytest.mark.parametrize("link", [None, "a/2.png"])
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, link: str | None) -> None:
    members: dict[str, bytes | tuple[bytes, str]] = dict(CONTENT)
    if link is not None:
        members["c/3.png"] = (tarfile.LNKTYPE, link)
    whole = write_tar(tmp_path / "x.tar", members).read_bytes()
    end = whole.rindex(b"ustar") - 257 + 512 * (1 if link else 2)  # where the last member ends
    cut = tmp_path / "cut.tar"
    for size in {*range(512, end + 512, 256), end - 1, end + 1, end + 511}:
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.tar (was cut short|is a damaged archive)"):
            find_images(cut)
    cut.write_bytes(whole[: end + 512])
    assert len(find_images(cut)) == len(members)


def test_a_tar_cut_short_after_it_was_listed_gives_no_half_image(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", dict(CONTENT))
    tree = file_trees.list_files(archive)
    last = max(tree.files, key=lambda file: file.place[0])
    places = file_trees.FilePlaces("tar", tree.store, [last.place])
    assert len(FileReader(places).read(0)) == last.size
    os.truncate(archive, last.place[0] + last.size - 1)
    with pytest.raises(OSError, match="ends within it"):
        FileReader(places).read(0)


def test_a_disk_that_fills_while_a_tar_is_unpacked_is_no_damage_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gzip, "open", full)
    monkeypatch.setattr(gzip.GzipFile, "read", full)
    with pytest.raises(OSError) as caught:
        find_images(tmp_path / "x.tar.gz")
    assert caught.value.errno == errno.ENOSPC


def test_a_tar_is_not_the_zip_in_it_nor_half_of_two(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"z/9.png": b"inner"}).read_bytes()
    images = find_images(write_tar(tmp_path / "x.tar", CONTENT | {"inner.zip": inner}))
    assert contents(images) == CONTENT
    assert left_out(images) == {NO_IMAGES: ("inner.zip",)}
    two = tmp_path / "two.tar"
    two.write_bytes(2 * (tmp_path / "x.tar").read_bytes())
    with pytest.raises(UserError, match=r"two\.tar holds further data after its end"):
        find_images(two)


def test_backslashes_in_a_zip_are_folders(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "x.zip", {name.replace("/", "\\"): content for name, content in CONTENT.items()} | {"e\\": b""}
    )
    images = find_images(path)
    assert contents(images) == CONTENT
    assert images.classes == ("a", "b")
    assert images.left_out == ()


def test_members_that_are_replaced_are_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", CONTENT)
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a/1.png"))
        fifo = tarfile.TarInfo("a/fifo.png")
        fifo.type = tarfile.FIFOTYPE
        archive.addfile(fifo)
    images = find_images(path)
    assert contents(images) == CONTENT | {"a/1.png": b""}
    assert left_out(images) == {REPLACED: ("a/1.png",), SPECIAL: ("a/fifo.png",)}


def within(seconds: float, call: Callable[[], ImageSet]) -> ImageSet:
    """The result of a call that must not hang."""
    sets: list[ImageSet] = []
    thread = threading.Thread(target=lambda: sets.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert sets, "it hangs, or has failed"
    return sets[0]


def test_pipes_devices_and_links_to_them_do_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"one")
    os.mkfifo(tmp_path / "a/2.png")
    (tmp_path / "a/3.png").symlink_to("2.png")
    (tmp_path / "a/4.png").symlink_to("/dev/zero")
    (tmp_path / "a/5.png").symlink_to("5.png")
    images = within(60, lambda: find_images(tmp_path))
    assert contents(images) == {"a/1.png": b"one"}
    assert left_out(images) == {SPECIAL: ("a/2.png", "a/3.png", "a/4.png"), LOST: ("a/5.png",)}
    with pytest.raises(UserError, match=r"2\.png is a pipe or a device"):
        find_images(tmp_path / "a/2.png")


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    """Ten folders with links to the nine others have ten million paths without a circle."""
    names = "abcdefghij"
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(name.encode())
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    images = within(60, lambda: find_images(tmp_path))
    assert images.classes == tuple(names)
    read = contents(images)
    assert [read[f"{name}/1.png"] for name in names] == [name.encode() for name in names]
    assert sorted(content for path, content in read.items() if path.startswith("a/")) == [
        name.encode() for name in names
    ]
    assert set(left_out(images)) == {AGAIN, ENCLOSING}


def test_a_real_folder_keeps_its_place_where_links_lead_to_it(tmp_path: Path) -> None:
    (tmp_path / "a/z").mkdir(parents=True)
    (tmp_path / "a/z/1.png").write_bytes(b"one")
    (tmp_path / "a/link").symlink_to("z")
    images = find_images(tmp_path)
    assert images.names == ("a/z/1.png",)
    assert left_out(images) == {AGAIN: ("a/link/",)}


def write_labels(content: object) -> bytes:
    return (content if isinstance(content, str) else json.dumps(content)).encode()


SHARDED = {"00000/img0.png": b"0", "00000/img1.png": b"1", "00001/img2.png": b"2"}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mapping", [True, False])
def test_labels_of_a_stylegan_archive_are_the_classes(tmp_path: Path, packed: bool, mapping: bool) -> None:
    pairs = {"00000/img0.png": 10, "00000/img1.png": 2, "00001/img2.png": 10}
    record = write_labels({"labels": pairs if mapping else list(map(list, pairs.items()))})
    path = tmp_path / "x.zip"
    if packed:
        write_zip(path, SHARDED | {"dataset.json": record})
    else:
        path = tmp_path / "images"
        for name, content in (SHARDED | {"dataset.json": record}).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    images = find_images(path)
    assert images.classes == ("2", "10")
    assert images.labels.tolist() == [1, 0, 1]
    assert contents(images) == SHARDED


def test_a_stylegan_archive_without_labels_has_no_classes(tmp_path: Path) -> None:
    images = find_images(write_zip(tmp_path / "x.zip", SHARDED | {"dataset.json": write_labels({"labels": None})}))
    assert images.classes == ()
    assert images.labels.tolist() == [-1, -1, -1]
    other = find_images(write_zip(tmp_path / "y.zip", SHARDED | {"dataset.json": write_labels({"photos": []})}))
    assert other.classes == ("00000", "00001")  # some other program's file


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ({"labels": 3}, "labels must be a list"),
        ({"labels": [["00000/img0.png", 0.5]]}, "must be a whole number"),
        ({"labels": [["00000/img0.png", -1]]}, "must be a whole number"),
        ({"labels": [["00000/img0.png", [1, 0]]]}, "must be a whole number"),
        ({"labels": [["00000/img0.png", 1]]}, r"no label for 00000/img1\.png \(2 such"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path: Path, record: object, words: str) -> None:
    path = write_zip(tmp_path / "x.zip", SHARDED | {"dataset.json": write_labels(record)})
    with pytest.raises(UserError, match=words) as caught:
        find_images(path)
    assert "x.zip" in str(caught.value) and "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": None, "tar": None}


@pytest.mark.parametrize("kind", COMPRESS)
def test_damage_is_one_line_or_does_no_harm(tmp_path: Path, kind: str) -> None:
    """Flipped bytes and lost ends: refused by name, or the names and the bytes that can be read are the right ones."""
    draws = np.random.default_rng(0)
    noise = {name: draws.bytes(300) for name in CONTENT}
    tar = write_tar(tmp_path / "x.tar", dict(noise)).read_bytes()
    compress = COMPRESS[kind]
    whole = write_zip(tmp_path / "y.zip", noise).read_bytes() if kind == "zip" else compress(tar) if compress else tar
    path = tmp_path / f"damaged.{kind}"
    refused = 0
    for _ in range(120):
        spoilt = bytearray(whole)
        for place in draws.integers(len(whole), size=int(draws.integers(1, 4))):
            spoilt[place] ^= 1 << int(draws.integers(8))
        path.write_bytes(spoilt[: len(spoilt) - int(draws.integers(100)) * int(draws.integers(2))])
        try:
            images = find_images(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
            assert "\n" not in str(error)
            continue
        if kind == "tar":
            continue  # it has no checksum of the content
        reader = FileReader(images.files)
        for index in range(len(images)):
            try:
                assert reader.read(index) in noise.values()
            except AssertionError:
                raise
            except Exception:
                refused += 1  # which the loader turns into a line with the image's name
    assert refused > 20


def test_what_would_take_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_trees, "LARGEST", 10_000)
    zeros = bytes(10_001)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(zeros)
    for path in (
        tmp_path / "images",
        write_tar(tmp_path / "x.tar", {"1.png": zeros}),
        write_zip(tmp_path / "x.zip", {"1.png": zeros}),
    ):
        images = find_images(path)
        with pytest.raises(ValueError, match=r"is 9\.8 KiB, and a file of more than 9\.8 KiB is not read"):
            FileReader(images.files).read(0)


def test_a_changed_image_of_equal_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.mkdir()
    (path / "1.png").write_bytes(b"one")
    first = find_images(path)
    os.utime(path / "1.png", ns=(0, first.files.store.stat().st_mtime_ns + 1))
    second = find_images(path)
    assert second.fingerprint != first.fingerprint
    assert second.listing == first.listing
    assert second.is_known_by(first.listing) and not second.is_known_by(first.fingerprint)
    write_zip(tmp_path / "x.zip", {"1.png": b"one"})
    zipped = find_images(tmp_path / "x.zip").fingerprint
    write_zip(tmp_path / "x.zip", {"1.png": b"two"})
    assert find_images(tmp_path / "x.zip").fingerprint != zipped


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name too long"):
        find_images(tmp_path / ("x" * 300))
