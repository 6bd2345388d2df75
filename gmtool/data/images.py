"""Decoding images: any format and mode to square RGB of one size, in worker processes.

Each image becomes uint8 (3, S, S): turned as its EXIF orientation says, transparency laid over white, 16 bits scaled
to 8, then ADM's centre crop (Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Dataset

from gmtool.data.file_trees import FileReader
from gmtool.data.image_sets import ImageSet, spread
from gmtool.distributed import neighbours
from gmtool.errors import MachineError, UserError
from gmtool.tokenizers.base import is_grey
from gmtool.words import one_line

MAX_WORKERS = 16
MAX_PIXELS = 2**27
"""Pixels of an image that is decoded: 12000 x 11000, which take half a GiB."""
LONGEST = 16
"""An image whose long side is more than so many times the short one is cropped before it is resized."""
AHEAD = 2
"""Batches that each worker makes ahead: torch's default."""
FEWER_WORKERS = "use fewer --workers (0: none) where a command has them"
"""What helps where the processes that decode images are too many, in messages."""
SAMPLE_BATCH = 64
"""Images in memory at once, where some are looked at before any is encoded."""


Place = int | tuple[Any, ...]
"""An image of a set: its row, also followed by what tells which part of it is meant."""


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read: its index in the set, its name, and why in words.

    out_of_memory: whether that is the machine's fault and not the image's.
    """

    index: int
    name: str
    reason: str
    out_of_memory: bool = False


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
    image_size: S, in pixels. workers: processes; None takes the cores of this machine. Raises UserError, naming the
    image, where one cannot be read, unless ``skip_bad``; MachineError as `decoded_batches` does.
    """
    order = np.arange(len(images)) if rows is None else np.asarray(rows, dtype=np.int64)
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    workers = min(default_workers() if workers is None else workers, len(batches))
    for batch in decoded_batches(images, image_size, batches, workers):
        if batch.bad and not skip_bad:
            raise bad_image_error(images, batch.bad[0])
        yield batch


def decoded_batches(
    images: ImageSet, image_size: int, batches: Iterable[Sequence[int]], workers: int
) -> Iterator[ImageBatch]:
    """The images of each of ``batches``, rows of the set, decoded ahead in ``workers`` processes; 0: in this process.

    image_size: S, in pixels. Raises MachineError when the processes cannot start or are killed, or the memory does not
    suffice.
    """
    yield from cut_batches(images, partial(_centred, size=image_size), batches, workers)


def cut_batches(
    images: ImageSet, cut: Callable[..., np.ndarray], batches: Iterable[Sequence[Place]], workers: int
) -> Iterator[ImageBatch]:
    """Batches of parts of the images, like `decoded_batches`, which cuts out the centre.

    cut: makes uint8 (3, S, S) of a whole RGB image and of what follows the row in its `Place`; an image for which it
    raises is a bad one. Raises MachineError as `decoded_batches` does.
    """
    loader = DataLoader(
        _Decoder(images, cut),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_follow_the_main_process,
    )
    started = _started(loader, workers)
    while True:
        try:
            batch: ImageBatch | None = next(started, None)
        except RuntimeError as error:
            raise MachineError(
                f"a process that decodes images was killed, perhaps for want of memory: {FEWER_WORKERS}, or a smaller "
                "--batch-size"
            ) from error
        if batch is None:
            return
        if lacking := next((bad for bad in batch.bad if bad.out_of_memory), None):
            raise MachineError(
                f"{images.root}: out of memory while decoding {lacking.name}: {FEWER_WORKERS}, or remove the image"
            )
        yield batch


def _follow_the_main_process(_worker: int) -> None:
    """Let a worker process, which calls this with its number when it starts, end when the main process does or asks it
    to, and not before.
    """
    # Ctrl-C, and SIGTERM from `timeout` or a scheduler, reach every process: a worker that died of it would take the
    # main process's last step down with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_wait_for_the_end, args=[multiprocessing.parent_process()], daemon=True).start()


def _wait_for_the_end(main: Any) -> None:
    """End this process once the main one, a `multiprocessing.parent_process`, is gone or sends SIGTERM.

    Of itself torch's worker does not end after a kill of the main process: it waits for ever to pass its batches on.
    """
    while main.is_alive():
        told = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if told is not None and told.si_pid == main.pid:
            break
    os._exit(0)


def _started(loader: DataLoader[Any], workers: int) -> Iterator[Any]:
    """The loader's batches. Raises MachineError when its processes cannot start."""
    try:
        return iter(loader)
    except (OSError, RuntimeError) as error:  # too few file descriptors or processes, no space for semaphores
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise MachineError(
            f"the {workers} processes that decode images cannot start ({reason}): {FEWER_WORKERS}, or raise "
            "`ulimit -n` and `ulimit -u`, or enlarge /dev/shm"
        ) from error


@dataclass(frozen=True, eq=False)
class ImageSample:
    """The images ``rows`` of a set, which are to be encoded, as a tokenizer sees them beforehand.

    It is the `gmtool.tokenizers.base.ImageSample`. workers: processes that decode. skip_bad: whether images that cannot
    be read are passed over; else they raise UserError.
    """

    images: ImageSet
    rows: np.ndarray
    workers: int
    skip_bad: bool

    def __len__(self) -> int:
        return len(self.rows)

    def first_size(self) -> tuple[int, int]:
        """Width and height, upright, in pixels, of the first that can be read.

        Raises UserError when none can be, or, without ``skip_bad``, when the first cannot.
        """
        reader = FileReader(self.images.files)
        for index in self.rows.tolist():
            try:
                return load_image(reader, index).size
            except Exception as error:  # as below; the loader lists what is passed over here
                if not self.skip_bad:
                    bad = BadImage(index, self.images.names[index], why_unreadable(error))
                    raise bad_image_error(self.images, bad) from error
        raise no_image_error(self.images)

    def batches(self, size: int, limit: int, grey: bool = False) -> Iterator[np.ndarray]:
        """At most ``limit`` of them, spread evenly, as uint8 (B, 3, size, size), B >= 1.

        Raises as `image_batches` does, and UserError for a colour image where all should be ``grey``, or when none can
        be read.
        """
        rows = self.rows[spread(len(self.rows), limit)]
        none = True
        for batch in image_batches(
            self.images, size, SAMPLE_BATCH, workers=self.workers, skip_bad=self.skip_bad, rows=rows
        ):
            if grey:
                check_grey(self.images, batch)
            if len(batch.images):
                none = False
                yield batch.images
        if none:
            raise no_image_error(self.images)


def check_grey(images: ImageSet, batch: ImageBatch) -> None:
    """Raise UserError, naming the image, if one of a batch for a tokenizer of grey images is not grey."""
    grey = is_grey(batch.images)
    if not grey.all():
        name = images.names[batch.indices[int(grey.int().argmin())]]
        raise UserError(f"{images.root}: {name} is a colour image: encode with --channels 3")


def no_image_error(images: ImageSet) -> UserError:
    """The error of a set of which no image can be read."""
    return UserError(f"{images.root}: none of its {len(images)} images can be read: give others")


def bad_image_error(images: ImageSet, bad: BadImage) -> UserError:
    """The error that names an image which cannot be read."""
    return UserError(
        f"{images.root}: {bad.name} cannot be read as an image ({bad.reason}): repair or remove it, or use "
        "--skip-bad where a command has it"
    )


def batch_bytes(image_size: int, batch_size: int, workers: int) -> int:
    """Bytes of the decoded batches that are in memory at once: that in use, and those that ``workers`` made ahead."""
    return 3 * image_size**2 * batch_size * (1 + AHEAD * workers)


def default_workers() -> int:
    """Processes that decode images by default: this process's share of the cores that it may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // neighbours(), MAX_WORKERS))


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


def load_image(reader: FileReader, index: int) -> Image.Image:
    """Image ``index`` of a set, whole and upright, as 8-bit RGB.

    Raises ValueError for more than `MAX_PIXELS` pixels and for those that `to_rgb` refuses; for damaged data whatever
    the reader or Pillow raises.
    """
    data = reader.read(index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that we do not use
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}: make it smaller")
            # 16 bits of PNG and PGM come as mode I, whose white is then that of 16 bits
            if image.mode == "I" and image.format not in ("PNG", "PPM"):
                raise ValueError("32-bit or signed pixels have no defined range; convert it to 8 or 16 bits")
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            # Pillow's own exif_transpose writes the EXIF again, and fails where it cannot
            return to_rgb(image if turn is None else image.transpose(turn))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF raises anything, and then says nothing about the pixels
        return None


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
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixels from {values.min()} to {values.max()} are beyond 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop of an RGB image to uint8 (3, size, size); see the module for the source.

    The image is halved (box filter) while its short side is at least twice ``size`` pixels, resized (bicubic) so that
    the short side is ``size``, and cropped in the middle. Of an image that is much longer than wide only the middle is
    resized, since the whole would take gigabytes.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) > LONGEST * size:
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    else:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _centred(image: Image.Image, size: int) -> np.ndarray:
    return centre_crop(image, size)


class _Decoder(Dataset):
    """Image i of a set, cut to uint8 (3, S, S), or as a `BadImage`."""

    def __init__(self, images: ImageSet, cut: Callable[..., np.ndarray]) -> None:
        self._images, self._cut, self._reader = images, cut, FileReader(images.files)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: Place) -> tuple[int, np.ndarray] | BadImage:
        index, *part = place if isinstance(place, tuple) else (place,)
        try:
            return index, self._cut(load_image(self._reader, index), *part)
        except MemoryError:
            return BadImage(index, self._images.names[index], "out of memory", out_of_memory=True)
        except Exception as error:  # a decoder meets broken data in any way it likes
            return BadImage(index, self._images.names[index], why_unreadable(error))


def why_unreadable(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if "cannot identify image file" in str(error):  # Pillow's text ends with the address of a buffer
        return "not an image of a known format"
    return one_line(error)


def _collate(items: list[tuple[int, np.ndarray] | BadImage]) -> ImageBatch:
    """A batch as numpy arrays: unlike tensors they travel between processes by pipe, not by scarce /dev/shm."""
    good = [item for item in items if not isinstance(item, BadImage)]
    images = np.stack([pixels for _, pixels in good]) if good else np.empty((0, 3, 0, 0), np.uint8)
    bad = tuple(item for item in items if isinstance(item, BadImage))
    return ImageBatch(np.array([index for index, _ in good], dtype=np.int64), images, bad)
