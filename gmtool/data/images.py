"""Decoding images: any format and mode to square RGB of one size, in worker processes.

Each image becomes uint8 (3, S, S): turned as its EXIF orientation says, transparency laid over white, 16 bits scaled
to 8, then ADM's centre crop (Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from gmtool.data.image_sets import ImageReader, ImageSet
from gmtool.distributed import neighbours
from gmtool.errors import UserError

MAX_WORKERS = 16


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read: its index in the set, its name, and why in words."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """indices: int64 (B,), rows of the set. images: uint8 (B, 3, S, S). bad: those of the batch that were left out."""

    indices: np.ndarray
    images: np.ndarray
    bad: tuple[BadImage, ...] = ()


def image_batches(
    images: ImageSet,
    image_size: int,
    batch_size: int,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[ImageBatch]:
    """Batches of the images ``rows`` (default: all), in that order, decoded ahead in worker processes.

    The i-th batch covers rows [i B, (i + 1) B) whatever is bad among them, so it may hold fewer images, or none.
    workers: processes; None takes the cores of this machine. Raises UserError, with its name, at an image that cannot
    be read, unless ``skip_bad``.
    """
    order = np.arange(len(images)) if rows is None else np.asarray(rows, dtype=np.int64)
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    workers = min(default_workers() if workers is None else workers, len(batches))
    for batch in decoded_batches(images, image_size, batches, workers):
        if batch.bad and not skip_bad:
            raise bad_image_error(images, batch.bad[0])
        yield batch


def decoded_batches(
    images: ImageSet,
    image_size: int,
    batches: Iterable[Sequence[int]],
    workers: int,
    begin_worker: Callable[[int], None] | None = None,
) -> Iterator[ImageBatch]:
    """The images of each of ``batches``, rows of the set, decoded ahead in ``workers`` processes; 0 decodes here.

    begin_worker: called in each process with its number.
    """
    yield from DataLoader(
        _Decoder(images, image_size),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=begin_worker,
    )


def first_image_size(images: ImageSet, rows: np.ndarray, skip_bad: bool) -> tuple[int, int]:
    """Width and height, upright, of the first of the images ``rows`` that can be read. Raises UserError without one."""
    reader = ImageReader(images)
    for index in rows.tolist():
        try:
            return load_image(reader, index).size
        except Exception as error:  # as below: broken data raise anything; the loader lists what is passed over here
            if not skip_bad:
                raise bad_image_error(images, BadImage(index, images.names[index], describe(error))) from error
    raise no_image_error(images)


def no_image_error(images: ImageSet) -> UserError:
    """The error of a set of which no image can be read."""
    return UserError(f"{images.root}: none of its {len(images)} images can be read: give others")


def bad_image_error(images: ImageSet, bad: BadImage) -> UserError:
    """The error that names an image which cannot be read."""
    return UserError(
        f"{images.root}: {bad.name} cannot be read as an image ({bad.reason}): repair or remove it, or encode with "
        "--skip-bad"
    )


def default_workers() -> int:
    """Processes that decode images by default: this process's share of the cores that it may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // neighbours(), MAX_WORKERS))


def load_image(reader: ImageReader, index: int) -> Image.Image:
    """Image ``index`` of a set, whole, as 8-bit RGB. Raises some Exception when it cannot be read."""
    data = reader.read(index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that we do not use
        with Image.open(BytesIO(data)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: 16 bits scaled by 1/257, transparency over white.

    Raises ValueError for 32-bit numbers beyond 16 bits and for floating-point images, whose white is not defined.
    """
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixels from {values.min()} to {values.max()} are beyond 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop of an RGB image to uint8 (3, size, size).

    The image is halved (box filter) while its short side is at least twice ``size``, resized (bicubic) so that the
    short side is ``size``, and cropped in the middle.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image)[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _Decoder(Dataset):
    """Image i of a set as uint8 (3, S, S), or as a `BadImage`."""

    def __init__(self, images: ImageSet, image_size: int) -> None:
        self._images, self._size, self._reader = images, image_size, ImageReader(images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray] | BadImage:
        try:
            return index, centre_crop(load_image(self._reader, index), self._size)
        except MemoryError:
            raise
        except Exception as error:  # a decoder meets broken data in any way it likes
            return BadImage(index, self._images.names[index], describe(error))


def describe(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if "cannot identify image file" in str(error):  # Pillow's text ends with the address of a buffer
        return "not an image of a known format"
    return " ".join(str(error).split()) or type(error).__name__


def _collate(items: list[tuple[int, np.ndarray] | BadImage]) -> ImageBatch:
    """A batch as numpy arrays: unlike tensors they travel between processes by pipe, not by scarce /dev/shm."""
    good = [item for item in items if not isinstance(item, BadImage)]
    images = np.stack([pixels for _, pixels in good]) if good else np.empty((0, 3, 0, 0), np.uint8)
    bad = tuple(item for item in items if isinstance(item, BadImage))
    return ImageBatch(np.array([index for index, _ in good], dtype=np.int64), images, bad)
