"""Pictures that lie in the page itself, made smaller where all of them together would be too large for it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gmtool.artifacts.files import reading

LARGEST = 64_000_000
"""Pixels of a picture that is read."""

SMALLEST = 96
"""Pixels of the longer side below which a picture is not made smaller."""

LEAST = 0.05
"""Bytes that a pixel takes at least, in a picture that is not all of one colour."""

QUALITY = 80
"""Quality of lossy pictures, out of 100."""


@dataclass(frozen=True)
class Picture:
    """A picture ready for a page: its data as a URL, the size of what is there, and that of the original, in pixels."""

    url: str
    width: int
    height: int
    original: tuple[int, int]

    @property
    def is_smaller(self) -> bool:
        """Whether it was made smaller than the original."""
        return (self.width, self.height) != self.original


def read_picture(path: Path) -> bytes:
    """A PNG file's bytes, after all of it has been decoded. Raises UserError, naming it, where it is damaged."""
    with reading(path, "make it again, or remove it"):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width} x {image.height} pixels are too many for a page")
            if image.format != "PNG":
                raise ValueError(f"it is {image.format}, not PNG")
            image.load()
        return content


def png_of(pixels: np.ndarray) -> bytes:
    """An image uint8 (H, W, 3) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def fit_pictures(files: Sequence[bytes], size: int) -> list[Picture]:
    """The PNG files as pictures that take about ``size`` bytes of a page at most.

    Small files stay as they are; what they leave of their shares goes to the others, which are stored as WebP, and
    scaled down where that is not enough.
    """
    budget, pictures = size * 3 // 4, {}  # base64 writes three bytes as four
    order = sorted(range(len(files)), key=lambda index: len(files[index]))
    for place, index in enumerate(order):
        share = budget // (len(order) - place)
        content, kind, sizes = _fitted(files[index], share)
        budget -= len(content)
        url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        pictures[index] = Picture(url, *sizes)
    return [pictures[index] for index in range(len(files))]


def _fitted(file: bytes, size: int) -> tuple[bytes, str, tuple[int, int, tuple[int, int]]]:
    """A file of about ``size`` bytes at most, its kind, and its width, height and original size."""
    with Image.open(io.BytesIO(file)) as image:
        original = image.size
        if len(file) <= size:
            return file, "png", (*original, original)
        pixels = image.convert("RGB")
    # more pixels than could fit need not be stored to find that out
    pixels = _scaled(pixels, (size / LEAST / (pixels.width * pixels.height)) ** 0.5)
    content = _webp(pixels)
    while len(content) > size and max(pixels.size) > SMALLEST:
        # bytes go about as the pixels do; a little less, so that one step is mostly enough
        pixels = _scaled(pixels, min(0.9, max(0.1, 0.95 * (size / len(content)) ** 0.5)))
        content = _webp(pixels)
    return content, "webp", (*pixels.size, original)


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    """A smaller image; the same where the scale is not below 1."""
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _webp(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=QUALITY, method=1)
    return stream.getvalue()
