"""Batches of latents straight from images: decoded by worker processes, mirrored by a coin, encoded where we train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.latents import LatentsFile
from gmtool.data.image_sets import ImageSet, find_images
from gmtool.data.images import bad_image_error, check_grey, decoded_batches, default_workers
from gmtool.data.latent_loader import EVERY_ROW, LatentBatch, ShuffledRows
from gmtool.errors import UserError
from gmtool.streams import generator
from gmtool.tokenizers.base import Tokenizer
from gmtool.tokenizers.build import takes_grey

AT_ONCE = 64
"""Images per call of the tokenizer."""


@dataclass(frozen=True)
class ImageSource:
    """Images to train on: their set, their labels (N,) by the classes of a latents file, what encodes them, and whether
    each is mirrored with probability 1/2, every time anew.
    """

    images: ImageSet
    labels: np.ndarray
    tokenizer: Tokenizer
    flip: bool

    def batches(
        self, batch_size: int, seed: int, start: int, stop: int, workers: int | None, share: slice = EVERY_ROW
    ) -> Iterator[LatentBatch]:
        """The batches of steps ``start`` ... ``stop`` - 1.

        share: what this process takes of each. workers: processes that decode; None takes the cores of this machine.
        Raises UserError, naming the image, where one cannot be read, or has colours and the tokenizer takes grey ones
        only; MachineError as `decoded_batches` does.
        """
        order = ShuffledRows(len(self.images), batch_size, seed)
        rows = (order.of_step(step)[share].tolist() for step in range(start, stop))
        workers = default_workers() if workers is None else workers
        size, grey = self.tokenizer.image_size, takes_grey(self.tokenizer.spec())
        decoded = decoded_batches(self.images, size, rows, workers)
        for step, batch in enumerate(decoded, start):
            if batch.bad:
                raise bad_image_error(self.images, batch.bad[0])
            if grey:
                check_grey(self.images, batch)
            images = torch.from_numpy(batch.images)
            if self.flip:
                images = _mirrored(images, torch.rand(batch_size, generator=generator(seed, "flip", step))[share])
            with torch.no_grad():
                encoded = [self.tokenizer.encode(part) for part in images.split(AT_ONCE)]
                patches = torch.cat([part.patches for part in encoded])
                descriptors = torch.cat([part.descriptors for part in encoded])
            yield LatentBatch(order.of_step(step), share, patches, descriptors)


def open_images(path: Path, latents: LatentsFile, tokenizer: Tokenizer, flip: bool) -> ImageSource:
    """The images of a folder or archive, labelled by the classes of the latents file that a run is based on.

    Raises UserError and MachineError as `find_images` does, and UserError for a class that the file does not have.
    """
    images = find_images(path)
    numbers = {name: number for number, name in enumerate(latents.classes)}
    if unknown := [name for name in images.classes if name not in numbers]:
        raise UserError(f"--images {path}: {latents.path} knows no class {unknown[0]!r}: encode some images of each")
    of_class = np.array([*(numbers[name] for name in images.classes), -1], dtype=np.int64)
    return ImageSource(images, of_class[images.labels], tokenizer, flip)


def _mirrored(images: Tensor, coins: Tensor) -> Tensor:
    """Images (B, 3, S, S) uint8, each mirrored left to right where its coin (B,), uniform in [0, 1), is below 1/2."""
    return torch.where((coins < 0.5)[:, None, None, None], images.flip(-1), images)
