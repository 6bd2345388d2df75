"""An .npz is whole and of numbers, or one error that names it."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gmtool.artifacts.npz import npz_header, read_npz
from gmtool.errors import UserError

REPAIR = "make it again"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def refused(path: Path, name: str = "a") -> str:
    with pytest.raises(UserError) as caught:
        read_npz(path, name, REPAIR)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [IMAGES, np.asfortranarray(IMAGES), np.arange(6.0), np.float32(3), np.zeros((0, 7)), np.eye(3, dtype=">i4")],
    ids=["images", "columns first", "float64", "scalar", "empty", "another byte order"],
)
def test_arrays_come_back_as_numpy_reads_them(save, array, tmp_path):
    save(tmp_path / "x.npz", a=array, other=np.array([{"k": 1}], dtype=object))
    array_read = read_npz(tmp_path / "x.npz", "a", REPAIR)
    assert array_read.dtype == np.asarray(array).dtype and array_read.flags.writeable
    np.testing.assert_array_equal(array_read, array)
    header = npz_header(tmp_path / "x.npz", "a", REPAIR)
    assert header is not None and header.shape == np.shape(array)
    assert npz_header(tmp_path / "x.npz", "b", REPAIR) is None


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a.npy", content)
    return path


def header(text: str, body: bytes = bytes(48), version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text.encode() + body


PLAIN = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no npy",
        npy(IMAGES)[:-1],
        npy(IMAGES) + b"x",
        npy(IMAGES)[:20],
        npy(np.array(["text"])),
        npy(np.zeros(3, "datetime64[s]")),
        npy(np.zeros(2, [("x", "f4")])),
        header(PLAIN.format("'|u1'", (2**62, 2**62))),
        header(PLAIN.format("'|u1'", (-48,))),
        header(PLAIN.format("'|u1'", (10**12,))),
        header(PLAIN.format("'|V0'", (48,))),
        header(PLAIN.format("'|O'", (6,))),
        header(PLAIN.format("7", (6,))),
        header(PLAIN.format("'|u1'", "'abc'")),
        header("(" * 9000),
        header("[" * 90 + "]" * 90),
        header(PLAIN.format("'|u1'", (48,)), version=b"\x09\x00"),
    ],
)
def test_what_is_no_array_of_numbers_is_one_line(content, tmp_path):
    message = refused(archive(tmp_path / "x.npz", content))
    assert "is damaged, or no .npz of numbers" in message and message.endswith(REPAIR) and "\n" not in message


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_refused_or_changes_nothing(method, tmp_path):
    """A byte flipped anywhere: never other numbers, never another error."""
    whole = archive(tmp_path / "whole.npz", npy(IMAGES), method).read_bytes()
    random, path = np.random.default_rng(1), tmp_path / "flipped.npz"
    refusals = 0
    for place in random.choice(len(whole), min(len(whole), 150), replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_npz(path, "a", REPAIR), IMAGES)
        except UserError as error:
            assert str(path) in str(error)
            refusals += 1
    assert refusals > 50
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        refused(path)


def test_more_than_the_memory_is_refused_before_it_is_taken(tmp_path):
    """Its directory and its header agree on a size that the few bytes in it could never be."""
    size = 2**50
    content = header(PLAIN.format("'|u1'", (size,)), body=b"")
    path = archive(tmp_path / "bomb.npz", content)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    with zipfile.ZipFile(path) as whole:
        compressed = whole.infolist()[0].compress_size
    extra = struct.pack("<HHQQ", 1, 16, size + len(content), compressed)
    struct.pack_into("<II", data, place + 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<H", data, place + 30, len(extra))
    name_end = place + 46 + len("a.npy")
    data[name_end:name_end] = extra
    end = data.index(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, end - place)
    path.write_bytes(data)
    assert "of memory here" in refused(path)


def test_what_is_no_archive(tmp_path):
    (tmp_path / "x.npz").write_bytes(npy(IMAGES))
    assert "is damaged, or no .npz of numbers" in refused(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", b=IMAGES)
    assert "holds no a" in refused(tmp_path / "y.npz")
