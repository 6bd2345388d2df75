"""Decoding: every mode to the same RGB, ADM's crop, and batches that do not depend on the workers."""

import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gmtool
from gmtool.data.file_trees import FileReader
from gmtool.data.image_sets import find_images
from gmtool.data.images import centre_crop, image_batches, load_image, to_rgb
from gmtool.errors import MachineError, UserError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def decoded(path: Path, image: Image.Image, name: str, **options: object) -> np.ndarray:
    """What the reader makes of ``image`` saved under ``name``."""
    image.save(path / name, **options)
    return np.asarray(load_image(FileReader(find_images(path).files), 0))


def test_lossless_colour_and_grey_survive(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(RGB), "x.png"), RGB)
    grey = decoded(tmp_path, Image.fromarray(RGB[..., 0]), "a.png")
    np.testing.assert_array_equal(grey, np.repeat(RGB[..., :1], 3, axis=2))


@pytest.mark.parametrize("name", ["x.bmp", "x.tiff", "x.ppm", "x.tga", "x.webp"])
def test_other_lossless_formats(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    np.testing.assert_array_equal(decoded(tmp_path, Image.fromarray(RGB), name, **options), RGB)


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    opaque = decoded(tmp_path, image, "x.png")
    np.testing.assert_array_equal(opaque[0], [[10, 20, 30], [40, 50, 60]])
    seen = decoded(tmp_path, image, "a.png", transparency=1)
    np.testing.assert_array_equal(seen, [[[10, 20, 30], [255] * 3], [[70, 80, 90], [255] * 3]])


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]], np.uint8)
    seen = decoded(tmp_path, Image.fromarray(pixels, "RGBA"), "x.png")
    np.testing.assert_allclose(seen[0], [[100, 0, 200], [255] * 3, [224, 204, 244]], atol=1)
    grey = np.array([[[100, 255], [100, 0]]], np.uint8)
    seen = decoded(tmp_path, Image.fromarray(grey, "LA"), "a.png")
    np.testing.assert_array_equal(seen[0], [[100] * 3, [255] * 3])


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 200 * 257 + 100]], np.uint16)
    seen = decoded(tmp_path, Image.fromarray(values), name)
    np.testing.assert_array_equal(seen[0, :, 0], [0, 1, 128, 255, 200])


def test_thirty_two_bits_and_floats() -> None:
    np.testing.assert_array_equal(
        np.asarray(to_rgb(Image.fromarray(np.array([[65535, 0]], np.int32))))[0, :, 0], [255, 0]
    )
    with pytest.raises(ValueError, match="beyond 16 bits"):
        to_rgb(Image.fromarray(np.array([[70000]], np.int32)))
    with pytest.raises(ValueError, match="floating-point"):
        to_rgb(Image.fromarray(np.array([[0.5]], np.float32)))


def test_cmyk_and_bilevel(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    seen = decoded(tmp_path, flat.convert("CMYK"), "x.jpg", quality=100)
    np.testing.assert_allclose(seen, np.asarray(flat), atol=4)
    (tmp_path / "x.jpg").unlink()
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decoded(tmp_path, bits, "x.png")[..., 0], [[0, 255], [255, 0]])


@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, name: str) -> None:
    # how the stored array becomes the upright one, by the standard's definition of the orientation values
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "x.webp" else {}
    seen = decoded(tmp_path, Image.fromarray(RGB), name, exif=exif, **options)
    np.testing.assert_array_equal(seen, upright(RGB))


def jpeg(exif: bytes) -> bytes:
    buffer = BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value


BAD_EXIF = {
    # an XResolution that is text, which Pillow reads, and cannot write as the rational that it should be
    "unwritable": [entry(0x0112, 3, 1, b"\6\0\0\0"), entry(0x011A, 2, 4, b"abc\0")],
    "out of the file": [entry(0x0112, 3, 1, b"\6\0\0\0"), entry(0x010F, 2, 2**31, b"\xff\xff\xff\x7f")],
    "of an unknown kind": [entry(0x0112, 3, 1, b"\6\0\0\0"), entry(0x010F, 77, 1, b"\0\0\0\0")],
}


@pytest.mark.parametrize("name", BAD_EXIF)
def test_metadata_never_refuse_an_image(tmp_path: Path, name: str) -> None:
    entries = BAD_EXIF[name]
    block = b"II*\0\10\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    (tmp_path / "x.jpg").write_bytes(jpeg(b"Exif\0\0" + block))
    (tmp_path / "y.jpg").write_bytes(jpeg(b"Exif\0\0II*\0"))
    reader = FileReader(find_images(tmp_path).files)
    plain = np.asarray(load_image(reader, 1))
    assert plain.shape == RGB.shape
    np.testing.assert_array_equal(np.asarray(load_image(reader, 0)), np.rot90(plain, -1))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_tiff_whose_white_is_not_defined_is_refused(tmp_path: Path, dtype: type) -> None:
    """Its values may be 0 ... 255, or 0 ... 2^32 - 1: as 16 bits the first are black."""
    Image.fromarray(RGB[..., 0].astype(dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match=r"x\.tiff cannot be read as an image \(.*convert it to 8 or 16 bits\)"):
        list(image_batches(find_images(tmp_path), 12, 4, workers=0))


def png_of(width: int, height: int) -> bytes:
    """A grey PNG, black, row by row: its maker needs no memory, a bomb's victim does."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, packed = zlib.compressobj(1), []
    for _ in range(height):
        packed.append(packer.compress(bytes(1 + width)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"".join([*packed, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_of(16_384, 8_193))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"x\.png .*16384 x 8193 pixels are more than 134,217,728"):
        list(image_batches(find_images(tmp_path), 12, 4, workers=0))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 10_000)])
def test_a_thin_image_is_cropped_before_it_is_enlarged(shape: tuple[int, int]) -> None:
    """1 x 60,000 pixels at size 256 would be an image of 4 gigapixels. The middle is what a crop of less gives."""
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cropped = centre_crop(Image.fromarray(pixels), 256)
    # the middle alone, with an even rest so that it stays the middle; near enough to be resized as a whole
    middle = tuple(slice((side - 4) // 2 - 3 * (side > 99), (side + 4) // 2 + 3 * (side > 99)) for side in shape)
    part = pixels[middle[0] if shape[0] > 99 else slice(None), middle[1] if shape[1] > 99 else slice(None)]
    expected = centre_crop(Image.fromarray(part), 256)
    assert np.abs(cropped.astype(int) - expected.astype(int)).max() <= 3  # the scales differ by how the sides round


def test_want_of_memory_is_the_machine_s_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MachineError, match=r"out of memory while decoding 00\.png: use fewer --workers .* where"):
        list(image_batches(find_images(folder), 12, 4, workers=0, skip_bad=True))


@pytest.mark.slow
def test_workers_that_cannot_start_are_one_line(folder: Path) -> None:
    code = (
        "import resource, sys, torch, torch.utils.data\n"
        "from pathlib import Path\n"
        "from gmtool.data.image_sets import find_images\n"
        "from gmtool.data.images import image_batches\n"
        "from gmtool.errors import MachineError\n"
        "images = find_images(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "try:\n"
        "    print(sum(len(batch.images) for batch in image_batches(images, 12, 1, workers=11)))\n"
        "except MachineError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(gmtool.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the 11 processes that decode images cannot start" in done.stdout
    assert "use fewer --workers (0: none) where a command has them, or raise" in done.stdout


GOES_ON = """
import signal, sys
from pathlib import Path
from gmtool.data.image_sets import find_images
from gmtool.data.images import decoded_batches

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
images = find_images(Path(sys.argv[1]))
batches = decoded_batches(images, 256, (range(len(images)) for _ in range(40)), 2)
print(len(next(batches).images), flush=True)
sys.stdin.readline()
print(sum(len(batch.images) for batch in batches), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "read"), [(signal.SIGINT, "429\n"), (signal.SIGTERM, "429\n"), (signal.SIGKILL, "")]
)
def test_workers_leave_signals_to_the_main_process_and_end_with_it(
    folder: Path, number: signal.Signals, read: str
) -> None:
    """What Ctrl-C and `timeout` send reaches them too; and a process that is killed leaves none behind."""
    environment = {**os.environ, "PYTHONPATH": str(Path(gmtool.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", GOES_ON, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == "11\n"
        time.sleep(0.5)  # the pipe to the main process is full now
        if number == signal.SIGKILL:
            main.kill()
        else:
            os.killpg(main.pid, number)
        time.sleep(0.5)
        shown, _ = main.communicate("\n", timeout=60)  # to the end of the output, which the workers have open too
        assert shown == read


def test_the_crop_of_an_image_of_that_size_is_itself() -> None:
    np.testing.assert_array_equal(centre_crop(Image.fromarray(RGB[:, :20]), 20), RGB[:, :20].transpose(2, 0, 1))
    np.testing.assert_array_equal(centre_crop(Image.fromarray(RGB), 20), RGB[:, 5:25].transpose(2, 0, 1))


def test_halving_averages_boxes() -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = blocks.repeat(4, axis=0).repeat(4, axis=1)  # 32 -> 8 is two halvings of constant boxes
    np.testing.assert_array_equal(centre_crop(Image.fromarray(large), 8), blocks.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(5, 7), (300, 20), (33, 100), (1, 1)])
def test_any_shape_gives_the_size_asked(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.full((*shape, 3), 77, np.uint8))
    crop = centre_crop(image, 16)
    assert crop.shape == (3, 16, 16)
    assert (crop == 77).all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    for index in range(11):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / f"{index:02}.png")
    return tmp_path


def test_batches_do_not_depend_on_the_workers(folder: Path) -> None:
    images = find_images(folder)
    for workers in (0, 2):
        batches = list(image_batches(images, 12, 4, workers=workers))
        assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert batches[0].images.dtype == np.uint8
        for batch in batches:
            for index, pixels in zip(batch.indices, batch.images, strict=True):
                expected = np.asarray(load_image(FileReader(images.files), index)).transpose(2, 0, 1)
                np.testing.assert_array_equal(pixels, expected)


def test_rows_may_be_chosen(folder: Path) -> None:
    batches = list(image_batches(find_images(folder), 12, 2, workers=0, rows=[9, 0, 3]))
    assert [batch.indices.tolist() for batch in batches] == [[9, 0], [3]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_or_skipped(folder: Path, workers: int) -> None:
    (folder / "02.png").write_text("no image")
    whole = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(whole[: len(whole) // 2])
    (folder / "06.png").write_bytes(b"")
    images = find_images(folder)
    with pytest.raises(UserError, match=r"02\.png cannot be read.*--skip-bad"):
        list(image_batches(images, 12, 4, workers=workers))
    batches = list(image_batches(images, 12, 4, workers=workers, skip_bad=True))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 3], [4, 7], [8, 9, 10]]
    assert [bad.name for batch in batches for bad in batch.bad] == ["02.png", "05.png", "06.png"]
    assert "not an image" in batches[0].bad[0].reason


def test_a_truncated_jpeg_is_broken(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(UserError, match=r"x\.jpg"):
        list(image_batches(find_images(tmp_path), 12, 4, workers=0))
