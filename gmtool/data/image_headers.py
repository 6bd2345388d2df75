"""A look at the headers of some images of a set: their sizes and file formats, without decoding them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from gmtool.data.file_trees import FileReader
from gmtool.data.image_sets import ImageSet, spread

LOOKED_AT = 32
"""Images of a set that are looked at."""

LOSSY = ("JPEG", "MPO")
"""Formats, as Pillow names them, of which a picture comes back changed."""


@dataclass(frozen=True)
class Headers:
    """The sizes, (width, height) in pixels, and file formats of some images with their counts, most frequent first."""

    sizes: tuple[tuple[tuple[int, int], int], ...]
    formats: tuple[tuple[str, int], ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """The most frequent width and height, in pixels; None where no header could be read."""
        return self.sizes[0][0] if self.sizes else None

    @property
    def lossy(self) -> bool:
        """Whether most of the images were compressed with loss."""
        return bool(self.formats) and self.formats[0][0] in LOSSY


def read_headers(images: ImageSet, rows: np.ndarray) -> Headers:
    """The headers of at most `LOOKED_AT` images of ``rows`` (n,), evenly spaced; unreadable ones are passed over."""
    reader = FileReader(images.files)
    sizes: Counter[tuple[int, int]] = Counter()
    formats: Counter[str] = Counter()
    for index in rows[spread(len(rows), LOOKED_AT)].tolist():
        try:
            with Image.open(BytesIO(reader.read(index))) as image:
                sizes[image.size] += 1
                formats[image.format or "unknown"] += 1
        except Exception:  # broken data raise anything; whoever decodes the images says so
            continue
    return Headers(tuple(sizes.most_common()), tuple(formats.most_common()))
