"""Images in the .npz of other tools: which array, which axes, which range; and what could be read in two ways."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gmtool.errors import UserError
from gmtool.evaluation.array_images import find_array_images

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
GREY = IMAGES[..., :1]


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "x.npz", **arrays)
    return path / "x.npz"


def read(path: Path, batch_size: int = 3) -> np.ndarray:
    images = find_array_images(path, str(path), "repair it")
    return torch.cat(list(images.batches(batch_size, range(len(images))))).permute(0, 2, 3, 1).numpy()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_array_images(path, str(path), "repair it")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        IMAGES,
        np.asfortranarray(IMAGES),
        IMAGES.transpose(0, 3, 1, 2).copy(),
        IMAGES.astype(np.int64),
        IMAGES.astype(np.float64),
        (IMAGES / 255).astype(np.float32),
        (IMAGES / 255).astype(np.float16),
        IMAGES / 127.5 - 1,
        (IMAGES / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2),
    ],
    ids=["NHWC", "columns first", "NCHW", "int64", "0...255", "0...1", "float16", "-1...1", "-1...1 NCHW"],
)
def test_the_same_images_in_any_form(array, tmp_path):
    for name in ("arr_0", "samples"):
        np.testing.assert_array_equal(read(write(tmp_path, **{name: array, "labels": np.arange(7)})), IMAGES)


@pytest.mark.parametrize("array", [GREY, GREY.transpose(0, 3, 1, 2), GREY[..., 0], GREY / 255])
def test_grey_images_become_three_equal_channels(array, tmp_path):
    np.testing.assert_array_equal(read(write(tmp_path, grey=array)), GREY.repeat(3, axis=-1))


def test_compressed_files_and_other_batches_give_the_same(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", IMAGES)
    for batch_size in (1, 3, 100):
        np.testing.assert_array_equal(read(tmp_path / "x.npz", batch_size), IMAGES)


def test_a_part_and_every_second_image(tmp_path):
    images = find_array_images(write(tmp_path, arr_0=IMAGES), "x", "repair it")
    (part,) = images.batches(10, range(2, 5))
    np.testing.assert_array_equal(part.permute(0, 2, 3, 1).numpy(), IMAGES[2:5])
    thin = images.thinned(2).thinned(2)
    assert len(thin) == 2 and len(images.thinned(3)) == 3
    np.testing.assert_array_equal(torch.cat(list(thin.batches(1, range(2)))).permute(0, 2, 3, 1), IMAGES[::4])


def test_damage_at_the_end_is_noticed_by_whoever_reads_the_start(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (500, 16, 16, 3), dtype=np.uint8)
    path = write(tmp_path, arr_0=images)
    content = bytearray(path.read_bytes())
    content[content.index(images[-1].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    damaged = find_array_images(path, "x", "repair it")
    with pytest.raises(UserError, match=r"x\.npz is damaged.*repair it"):
        list(damaged.batches(2, range(2)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": IMAGES, "b": IMAGES}, "several arrays that could be images (a, b): name one of them arr_0"),
        ({"arr_0": np.zeros((5, 3, 3, 3))}, "could be NHWC or NCHW"),
        ({"arr_0": np.zeros((5, 8, 8, 4))}, "neither 1 nor 3 channels"),
        ({"arr_0": np.zeros((5, 8, 4, 3))}, "8 x 4 px"),
        ({"arr_0": np.zeros((5, 0, 0, 3))}, "holds no image"),
        ({"arr_0": np.zeros((0, 8, 8, 3))}, "holds no image"),
        ({"arr_0": np.zeros((5, 64))}, "is not (N, S, S, 3)"),
        ({"arr_0": IMAGES - 300.0}, "none of [0, 1], [-1, 1] and [0, 255]"),
        ({"arr_0": np.full((5, 8, 8, 3), np.nan)}, "not a number"),
        ({"arr_0": IMAGES.astype(np.int32) - 1}, "whole numbers must be 0 ... 255"),
        ({"arr_0": IMAGES.astype(complex)}, "complex128"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "holds no numbers"),
    ],
)
def test_what_could_be_read_in_two_ways_or_in_none(arrays, message, tmp_path):
    assert message in refused(write(tmp_path, **arrays))


def test_arrays_that_are_no_images_are_passed_over(tmp_path):
    assert find_array_images(write(tmp_path, mu=np.zeros((3, 3, 3)), labels=np.zeros(3)), "x", "repair it") is None
