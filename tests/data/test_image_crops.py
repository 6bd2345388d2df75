"""Random crops: where they are taken, and what they are made of."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.data.image_crops import CropSource, random_crop
from gmtool.data.image_sets import find_images
from gmtool.errors import UserError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, so that two ways of resizing it agree."""
    grid = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("sides", [(40, 60), (60, 40), (48, 48)])
def test_a_crop_of_the_enlarged_image(sides: tuple[int, int]) -> None:
    image = picture(*sides)
    scale = 48 / min(sides)
    large = image.resize((round(sides[0] * scale), round(sides[1] * scale)), Image.Resampling.BICUBIC)
    for down, right in ((0.0, 0.0), (0.999, 0.0), (0.0, 0.999), (0.5, 0.3)):
        top, left = int(down * (large.height - 32 + 1)), int(right * (large.width - 32 + 1))
        expected = np.asarray(large)[top : top + 32, left : left + 32].transpose(2, 0, 1)
        crop = random_crop(image, down, right, size=32, enlarged=48)
        assert np.abs(crop.astype(int) - expected).max() <= 2


def test_an_image_smaller_than_the_crop() -> None:
    with pytest.raises(ValueError, match=r"20 x 40 pixels are fewer than the 32 of a crop; --upscale"):
        random_crop(picture(20, 40), 0, 0, size=32, enlarged=48)
    assert random_crop(picture(20, 40), 0, 0, size=32, enlarged=48, upscale=True).shape == (3, 32, 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(7):
        picture(40 + number, 50, number).save(tmp_path / f"{number}.png")
    return tmp_path


def source(folder: Path, upscale: bool = False) -> CropSource:
    return CropSource(find_images(folder), np.array([0, 2, 3, 5, 6]), 32, 48, upscale)


def batches(crops: CropSource, start: int, share: slice = slice(None)) -> list[np.ndarray]:
    return list(crops.batches(4, 1, start, 6, 0, share))


def test_batches_follow_from_the_seed_and_the_step(folder: Path) -> None:
    crops = source(folder)
    crops.check()
    whole = batches(crops, 0)
    assert [batch.shape for batch in whole] == [(4, 3, 32, 32)] * 6
    for later, batch in zip(whole[4:], batches(crops, 4), strict=True):
        assert np.array_equal(later, batch)
    parts = [batches(crops, 0, share) for share in (slice(0, 2), slice(2, 4))]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert np.array_equal(batch, np.concatenate([one, other]))
    assert not np.array_equal(whole[0], next(crops.batches(4, 2, 0, 1, 0, slice(None))))


def test_what_cannot_be_used_is_named(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png cannot be used \(not an image"):
        batches(source(folder), 0)
    picture(20, 50).save(folder / "3.png")
    with pytest.raises(UserError, match=r"3\.png cannot be used \(its 20 x 50 pixels .*--upscale"):
        source(folder).check()
    source(folder, upscale=True).check()
