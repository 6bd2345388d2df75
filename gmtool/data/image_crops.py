"""Random crops of enlarged images, in an order and at places that the seed and the step fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from gmtool.data.file_trees import FileReader
from gmtool.data.image_sets import ImageSet, spread
from gmtool.data.images import cut_batches, default_workers
from gmtool.data.latent_loader import ShuffledRows
from gmtool.errors import UserError
from gmtool.streams import generator

LOOKED_AT = 256
"""Images at most whose size is looked at before any is used."""


@dataclass(frozen=True)
class CropSource:
    """Crops to train on.

    images: the set. rows (n,) int64: those of its images that are used. size: side of a crop, in pixels. enlarged:
    pixels that the short side is resized to before. upscale: whether images smaller than a crop are used too.
    """

    images: ImageSet
    rows: np.ndarray
    size: int
    enlarged: int
    upscale: bool

    def batches(
        self, batch_size: int, seed: int, start: int, stop: int, workers: int | None, share: slice
    ) -> Iterator[np.ndarray]:
        """The crops uint8 (b, 3, S, S) of steps ``start`` ... ``stop`` - 1.

        share: what this process takes of each batch. workers: processes that decode; None takes the cores of this
        machine. Raises UserError, naming the image, where one cannot be used, MachineError as `cut_batches` does.
        """
        order = ShuffledRows(len(self.rows), batch_size, seed)

        def places(step: int) -> list[tuple[int, float, float]]:
            where = torch.rand(batch_size, 2, generator=generator(seed, "crop", step))[share].tolist()
            return [
                (row, *position)
                for row, position in zip(self.rows[order.of_step(step)[share]].tolist(), where, strict=True)
            ]

        steps = (places(step) for step in range(start, stop))
        cut = partial(random_crop, size=self.size, enlarged=self.enlarged, upscale=self.upscale)
        workers = default_workers() if workers is None else workers
        for batch in cut_batches(self.images, cut, steps, workers):
            if batch.bad:
                raise _unusable(self.images, batch.bad[0].index, batch.bad[0].reason)
            yield batch.images

    def check(self) -> None:
        """Raise UserError, naming the image, if one is smaller than a crop and ``upscale`` does not allow it.

        At most `LOOKED_AT` images, evenly spaced, are looked at.
        """
        reader = FileReader(self.images.files)
        for row in self.rows[spread(len(self.rows), LOOKED_AT)].tolist() if not self.upscale else ():
            try:
                with Image.open(BytesIO(reader.read(row))) as image:
                    size = image.size
            except Exception:  # it is named when its turn comes
                continue
            if min(size) < self.size:
                raise _unusable(self.images, row, _too_small(size, self.size))


def random_crop(
    image: Image.Image, down: float, right: float, *, size: int, enlarged: int, upscale: bool = False
) -> np.ndarray:
    """A crop uint8 (3, size, size) of an RGB image whose short side is resized (bicubic) to ``enlarged`` pixels.

    down, right: the position of the crop, in [0, 1) of the range of possible ones. Raises ValueError for an image
    smaller than the crop, unless ``upscale``.
    """
    if min(image.size) < size and not upscale:
        raise ValueError(_too_small(image.size, size))
    scale = enlarged / min(image.size)
    width, height = (max(enlarged, round(side * scale)) for side in image.size)
    left, top = int(right * (width - size + 1)), int(down * (height - size + 1))
    # the part alone is resized: of a panorama the whole would take gigabytes
    across, along = image.width / width, image.height / height
    box = (left * across, top * along, (left + size) * across, (top + size) * along)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _too_small(sides: tuple[int, int], size: int) -> str:
    return f"its {sides[0]} x {sides[1]} pixels are fewer than the {size} of a crop; --upscale enlarges it"


def _unusable(images: ImageSet, row: int, reason: str) -> UserError:
    return UserError(f"{images.root}: {images.names[row]} cannot be used ({reason}): repair or remove it")
